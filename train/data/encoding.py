"""From examples to token ids.

Shapes: n examples, c classes. All arrays are NumPy.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.train.data.fields import shown
from ivon_jax.train.data.task import Example
from ivon_jax.train.pod.processes import divide


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        tokens: token ids of each prompt, int32, not padded.
        labels: class indices, int32; or numbers, float32; or, for text, the id of each
            learnt token with the index of its example.
        second_starts: position of each second text; None for decoders.
        learnt: positions of each example's learnt tokens, rising from 1 at least; None
            if there are classes or numbers.
        choices: of texts that fork into a branch for each class, by branch: its
            position, that of its first scored token, and the characters scored; None
            if classes have no texts.
    """

    tokens: tuple[Int[np.ndarray, " _"], ...]
    labels: Int[np.ndarray, " n"] | Float[np.ndarray, " n"] | Int[np.ndarray, "t 2"]
    second_starts: Int[np.ndarray, " n"] | None = None
    learnt: tuple[Int[np.ndarray, " _"], ...] | None = None
    choices: Int[np.ndarray, "n c 3"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Number of tokens of every prompt."""
        return np.array([len(ids) for ids in self.tokens], np.int32)

    @functools.cached_property
    def answers(self) -> Int[np.ndarray, " n"]:
        """Number of predictions for each example: one, or one a learnt token."""
        if self.learnt is None:
            return np.ones(len(self), np.int32)
        return np.array([len(positions) for positions in self.learnt], np.int32)

    @property
    def reads_tokens(self) -> bool:
        """Whether there are tokens to learn or to score, not one answer a text."""
        return self.learnt is not None or self.choices is not None

    @functools.cached_property
    def scored(self) -> Int[np.ndarray, " n"]:
        """Number of tokens of each example whose probability is computed."""
        if self.choices is None:
            return self.answers
        ends = np.append(self.choices[:, 1:, 0], self.lengths[:, None], axis=1)
        counts: np.ndarray = (ends - self.choices[:, :, 1]).sum(1)
        return counts

    def places(self, indices: Int[np.ndarray, " r"]) -> Int[np.ndarray, " t"]:
        """Returns the indices, among all predictions, of those for some examples."""
        ends = np.cumsum(self.answers)
        starts = ends - self.answers
        return np.concatenate([np.arange(starts[i], ends[i]) for i in indices])

    def take(self, indices: Int[np.ndarray, " r"]) -> "Encoded":
        """Returns some examples of classes or numbers, in the order of the indices."""
        assert self.learnt is None
        own = (self.second_starts, self.choices)
        starts, choices = (x if x is None else x[indices] for x in own)
        tokens = tuple(self.tokens[i] for i in indices)
        return Encoded(tokens, self.labels[indices], starts, choices=choices)

    def without_prefix(self, length: int) -> "Encoded":
        """Returns the examples without their first tokens, none of which is scored."""
        learnt = self.learnt and tuple(positions - length for positions in self.learnt)
        tokens = tuple(ids[length:] for ids in self.tokens)
        choices = self.choices
        if choices is not None:
            choices = choices - np.array([length, length, 0], np.int32)
        return dataclasses.replace(self, tokens=tokens, learnt=learnt, choices=choices)


def encode(
    tokenizer: Any, examples: Sequence[Example], max_length: int | None = None
) -> Encoded:
    """Tokenises prompts, with the special tokens that the tokenizer puts before them.

    Special tokens after a text are left out: the answer follows the prompt's own last
    token. Those before it are not repeated if the prompt already begins with them.

    Each of several processes tokenises its share, and all return the whole.

    Args:
        tokenizer: a `transformers` tokenizer.
        examples: at least one.
        max_length: limit of a prompt's tokens; None for no limit.

    Raises:
        ValueError: no examples, a prompt without tokens, or one beyond the limit, of
            which truncation would remove the question or its end.
    """
    if not examples:
        raise ValueError("no examples to encode")
    prompts = [example.prompt for example in examples]
    tokens = prompt_ids(tokenizer, prompts)
    for number, ids in enumerate(tokens, 1):
        if not ids.size:
            raise ValueError(f"the prompt of example {number} has no tokens")
    if max_length is not None:
        longest = int(np.argmax([ids.size for ids in tokens]))
        if tokens[longest].size > max_length:
            over = sum(ids.size > max_length for ids in tokens)
            raise ValueError(
                f"{over} of {len(tokens)} prompts are longer than the limit of "
                f"{max_length} tokens; the longest, example {longest + 1}, has "
                f"{tokens[longest].size}: {shown(prompts[longest])}"
            )
    return Encoded(tokens, labels_of(examples))


def prompt_ids(
    tokenizer: Any, prompts: Sequence[str]
) -> tuple[Int[np.ndarray, " _"], ...]:
    """Returns the tokens of prompts, see `encode`."""
    before, after = special_tokens_around(tokenizer, prompts)

    def tokenise(share: Sequence[str]) -> Sequence[Sequence[int]]:
        rows = token_ids(tokenizer, share, add_special_tokens=True)
        return [_as_prompt(ids, before, after) for ids in rows]

    return tuple(divide(tokenise, prompts))


def encode_texts(
    tokenizer: Any, examples: Sequence[Example], max_length: int
) -> Encoded:
    """Tokenises an encoder's texts; the end of the longer one is truncated.

    Each of several processes tokenises its share, and all return the whole.

    Args:
        tokenizer: a `transformers` tokenizer.
        examples: at least one.
        max_length: limit of the tokens of a text, or of two together.

    Raises:
        ValueError: no examples, or one without tokens.
    """
    if not examples:
        raise ValueError("no examples to encode")

    def tokenise(share: Sequence[tuple[str, ...]]) -> list[list[int]]:
        encoded = tokenizer(
            *map(list, zip(*share, strict=True)),
            padding=False,
            truncation="longest_first",
            max_length=max_length,
            return_token_type_ids=True,
        )
        pairs = zip(encoded["token_type_ids"], encoded["input_ids"], strict=True)
        return [
            [types.index(1) if 1 in types else len(types), *ids] for types, ids in pairs
        ]

    rows = divide(
        tokenise, [example.texts or (example.prompt,) for example in examples]
    )
    second_starts = np.array([row[0] for row in rows])
    tokens = tuple(row[1:] for row in rows)
    if not all(ids.size for ids in tokens):
        raise ValueError("the tokenizer makes no tokens of a text")
    return Encoded(tokens, labels_of(examples), second_starts)


def common_prefix_length(encoded: Encoded) -> int:
    """Returns the length of the common prefix, shorter than every prompt.

    The key-value cache of the prefix can be computed once for all prompts; each must
    keep a token of its own to predict from.
    """
    first = encoded.tokens[0]
    shared = int(encoded.lengths.min()) - 1
    for ids in encoded.tokens:
        differ = ids[:shared] != first[:shared]
        if differ.any():
            shared = int(differ.argmax())
    return shared


def token_ids(
    tokenizer: Any, texts: Sequence[str], *, add_special_tokens: bool
) -> list[list[int]]:
    """Tokenises texts without padding, whatever the tokenizer's file says."""
    return tokenizer(
        list(texts),
        add_special_tokens=add_special_tokens,
        padding=False,
        truncation=False,
    )["input_ids"]


def special_tokens_around(
    tokenizer: Any, prompts: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Returns the special tokens that a tokenizer puts before and after a text."""
    for text in (":", *prompts):
        (own,) = token_ids(tokenizer, [text], add_special_tokens=False)
        if not own:  # it knows none of the characters
            continue
        (whole,) = token_ids(tokenizer, [text], add_special_tokens=True)
        for start in range(len(whole) - len(own) + 1):
            end = start + len(own)
            if whole[start:end] == own:
                return whole[:start], whole[end:]
        raise ValueError(
            f"the tokenizer changes the tokens of {shown(text)} when it adds special"
            " tokens"
        )
    return [], []


def _as_prompt(ids: list[int], before: list[int], after: list[int]) -> list[int]:
    """Removes the special tokens after a text, and repeated ones before it."""
    ids = ids[: len(ids) - len(after)]
    count = len(before)
    return ids[count:] if before and ids[count : 2 * count] == before else ids


def labels_of(examples: Sequence[Example]) -> np.ndarray:
    """Returns class indices, or numbers."""
    labels = [example.label for example in examples]
    return np.array(labels, np.float32 if isinstance(labels[0], float) else np.int32)
