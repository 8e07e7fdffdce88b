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
from ivon_jax.train.pod.processes import divide
from ivon_jax.train.tasks.registry import Example


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokenised examples.

    Attributes:
        tokens: token ids of each prompt, int32, not padded.
        labels: class indices, int32; or numbers, float32.
        seconds: where each one's second text begins; None for decoders.
    """

    tokens: tuple[Int[np.ndarray, " _"], ...]
    labels: Int[np.ndarray, " n"] | Float[np.ndarray, " n"]
    seconds: Int[np.ndarray, " n"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    # Asked for with every batch, of which there may be many.
    @functools.cached_property
    def lengths(self) -> Int[np.ndarray, " n"]:
        """Number of tokens of every prompt."""
        return np.array([len(ids) for ids in self.tokens], np.int32)


def encode(
    tokenizer: Any, examples: Sequence[Example], max_length: int | None = None
) -> Encoded:
    """Tokenises prompts, with the special tokens the tokenizer adds by default.

    Of several processes each tokenises its share, and all get the whole.

    Args:
        tokenizer: a tokenizer in the manner of `transformers`.
        examples: at least one.
        max_length: most tokens a prompt may have; None for no limit.

    Raises:
        ValueError: no examples, a prompt without tokens, or one beyond the limit:
            cutting it would cut the question or the cue the answer follows.
    """
    if not examples:
        raise ValueError("no examples to encode")
    # Said explicitly: a tokenizer file may switch both on.
    prompts = [example.prompt for example in examples]

    def tokenise(share: Sequence[str]) -> Sequence[Sequence[int]]:
        return tokenizer(share, padding=False, truncation=False)["input_ids"]

    tokens = tuple(divide(tokenise, prompts))
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
    return Encoded(tokens, _labels(examples))


def encode_texts(
    tokenizer: Any, examples: Sequence[Example], max_length: int
) -> Encoded:
    """Tokenises what an encoder reads; of long texts the end of the longer is cut.

    Of several processes each tokenises its share, and all get the whole.

    Args:
        tokenizer: a tokenizer in the manner of `transformers`.
        examples: at least one.
        max_length: most tokens of a text, or of two together.

    Raises:
        ValueError: no examples, or nothing left of one.
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
    seconds = np.array([row[0] for row in rows])
    tokens = tuple(row[1:] for row in rows)
    if not all(ids.size for ids in tokens):
        raise ValueError("the tokenizer makes no tokens of a text")
    return Encoded(tokens, _labels(examples), seconds)


def answer_tokens(
    tokenizer: Any, words: Sequence[str], leading_space: bool
) -> Int[np.ndarray, " c"]:
    """The token that stands for each label word.

    Args:
        tokenizer: a tokenizer in the manner of `transformers`.
        words: the label words in class order.
        leading_space: whether to take the token of " word" or of "word".

    Raises:
        ValueError: a word is not a single token, or two words share one. The
            message gives the pieces, and says so if the other setting would do.
    """
    pieces = _pieces(tokenizer, words, leading_space)
    problem = _problem(words, pieces)
    if problem is None:
        return np.array([ids[0] for ids in pieces], np.int32)
    index, why = problem
    space = " " if leading_space else ""
    other = _problem(words, _pieces(tokenizer, words, not leading_space)) is None
    hint = "without" if leading_space else "with"
    named = tokenizer.convert_ids_to_tokens(pieces[index])
    raise ValueError(
        f"answer word {shown(space + words[index])} {why}: {shown(list(named))}"
        + (f"; all words are single tokens {hint} a leading space" if other else "")
    )


def common_prefix_length(encoded: Encoded) -> int:
    """Number of tokens all prompts begin with, at least one short of each prompt.

    The key-value cache of that prefix can be computed once for all of them; every
    prompt must keep a token of its own to predict from.
    """
    prompts = [ids.tolist() for ids in encoded.tokens]
    # What the first and the last in dictionary order share, all between share.
    first, last = min(prompts), max(prompts)
    shared = next(
        (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b),
        min(len(first), len(last)),
    )
    return min(shared, min(map(len, prompts)) - 1)


def _pieces(
    tokenizer: Any, words: Sequence[str], leading_space: bool
) -> list[list[int]]:
    """Tokens of each word where it follows a prompt.

    At the start of a text they may be others: there the tokenizers of Llama 2 and
    Mistral add a blank of their own.
    """
    before, space = ":", " " if leading_space else ""
    cut = len(tokenizer.encode(before, add_special_tokens=False))
    whole = [
        tokenizer.encode(before + space + word, add_special_tokens=False)
        for word in words
    ]
    return [ids[cut:] for ids in whole]


def _problem(
    words: Sequence[str], pieces: Sequence[Sequence[int]]
) -> tuple[int, str] | None:
    """Index of the first word that cannot be an answer, and what is wrong."""
    seen: dict[int, str] = {}
    for i, (word, ids) in enumerate(zip(words, pieces, strict=True)):
        if len(ids) != 1:
            return i, f"is {len(ids)} tokens, not one, for this tokenizer"
        if ids[0] in seen:
            return i, f"is the same token as {shown(seen[ids[0]])}"
        seen[ids[0]] = word
    return None


def _labels(examples: Sequence[Example]) -> np.ndarray:
    labels = [example.label for example in examples]
    return np.array(labels, np.float32 if isinstance(labels[0], float) else np.int32)
