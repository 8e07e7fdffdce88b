"""From choices with texts to token ids of a text that forks, and to a batch's rows.

The tokens of an example are those that all choices begin with, then each choice's own
ones: its branch. Shapes: n examples, c choices; b rows, k texts in each, w places of a
text, q scored tokens of a row. All arrays are NumPy.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.train.data.encoding import Encoded, labels_of, prompt_ids
from ivon_jax.train.data.fields import shown
from ivon_jax.train.data.task import Example


class ScoredTokens(NamedTuple):
    """The tokens of choices whose probability is computed.

    Attributes:
        targets: the tokens.
        choice: index of the choice among the row's k * c; out of range for padding.
        sizes: characters of each choice that are scored.
    """

    targets: Int[np.ndarray, "b q"]
    choice: Int[np.ndarray, "b q"]
    sizes: Float[np.ndarray, "b k c"]


def encode_choices(
    tokenizer: Any, examples: Sequence[Example], max_length: int | None = None
) -> Encoded:
    """Tokenises each prompt with each of its choices; see `encode`.

    Prompt and choice are tokenised together. The first N tokens are not scored, where
    N is the length of the text before the scored part, tokenised by itself, as in
    lm-eval.

    Args:
        tokenizer: a `transformers` tokenizer.
        examples: at least one, with equally many choices each.
        max_length: limit of the tokens of a prompt with a choice; None for no limit.

    Raises:
        ValueError: no examples, nothing to score or to predict it from, or a text
            beyond the limit.
    """
    if not examples:
        raise ValueError("no examples to encode")
    pairs = [
        (example.prompt + given, example.prompt + given + scored)
        for example in examples
        for given, scored in example.choices
    ]
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    ids = dict(zip(texts, prompt_ids(tokenizer, texts), strict=True))
    for context, whole in pairs:
        if not 0 < len(ids[context]) < len(ids[whole]):
            raise ValueError(f"no token to score, or none before, in {shown(whole)}")
    longest = max((whole for _, whole in pairs), key=lambda text: len(ids[text]))
    if len(ids[longest]) > (max_length or len(ids[longest])):
        raise ValueError(
            f"a prompt with a choice is longer than the limit of {max_length} tokens;"
            f" the longest has {len(ids[longest])}: {shown(longest)}"
        )
    tokens, choices = [], []
    count = len(examples[0].choices)
    for start, example in enumerate(examples):
        own = pairs[start * count : (start + 1) * count]
        joined, edges = forked([(ids[a], ids[b]) for a, b in own])
        sizes = [len(choice.scored.strip()) for choice in example.choices]
        tokens.append(joined)
        choices.append(np.column_stack([edges, sizes]))
    labels = labels_of(examples)
    return Encoded(tuple(tokens), labels, choices=np.array(choices, np.int32))


def forked(
    pairs: Sequence[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]],
) -> tuple[Int[np.ndarray, " _"], Int[np.ndarray, "c 2"]]:
    """Writes several texts as one that forks where they begin to differ.

    Args:
        pairs: the tokens of what comes before the scored ones, and of the whole text.

    Returns:
        The tokens, and of each branch its position and that of its first scored token.

    Example:
        >>> one, two = np.array([5, 6, 7]), np.array([5, 6, 8, 9])
        >>> tokens, edges = forked([(one[:2], one), (two[:3], two)])
        >>> tokens.tolist(), edges.tolist()
        ([5, 6, 7, 8, 9], [[2, 2], [3, 4]])
    """
    wholes = [whole.tolist() for _, whole in pairs]
    columns = enumerate(zip(*wholes, strict=False))
    most = min(len(context) for context, _ in pairs)
    shared = min(next((i for i, ids in columns if len(set(ids)) > 1), most), most)
    tokens, edges = wholes[0][:shared], []
    for (context, _), whole in zip(pairs, wholes, strict=True):
        edges.append((len(tokens), len(tokens) + len(context) - shared))
        tokens += whole[shared:]
    return np.array(tokens, np.int32), np.array(edges, np.int32)


def branches(
    encoded: Encoded, indices: Int[np.ndarray, "b k"], width: int
) -> Int[np.ndarray, "b k w"]:
    """Returns the branch of each place of texts, see `Packed`."""
    assert encoded.choices is not None
    starts = encoded.choices[indices, :, 0]
    found: np.ndarray = (starts[..., None, :] <= np.arange(width)[:, None]).sum(-1)
    return found.astype(np.int32)


def scored_tokens(
    encoded: Encoded,
    indices: Int[np.ndarray, "b k"],
    tokens: Int[np.ndarray, "b t"],
    starts: Int[np.ndarray, "b k"],
    count: int,
) -> tuple[ScoredTokens, Int[np.ndarray, "b q"]]:
    """Finds the scored tokens of rows, and the position that each is predicted from.

    A branch's first token is predicted from the last one before the fork.

    Args:
        encoded: the examples.
        indices: the examples of each row.
        tokens: the rows.
        starts: where the examples begin in them.
        count: q.
    """
    assert encoded.choices is not None
    classes = encoded.choices.shape[1]
    targets, positions = np.zeros((2, len(indices), count), np.int32)
    choice = np.full((len(indices), count), indices.shape[1] * classes, np.int32)
    for row, chosen in enumerate(indices):
        done = 0
        for text, example in enumerate(chosen):
            offset = starts[row, text]
            edges = encoded.choices[example, :, :2]
            ends = np.append(edges[1:, 0], encoded.lengths[example])
            for number, ((start, first), end) in enumerate(
                zip(edges, ends, strict=True)
            ):
                at = np.arange(first, end)
                part = slice(done, done + len(at))
                targets[row, part] = tokens[row, offset + at]
                before = np.where(at == start, edges[0, 0], at) - 1
                positions[row, part] = offset + before
                choice[row, part] = text * classes + number
                done += len(at)
    sizes = encoded.choices[indices, :, 2].astype(np.float32)
    return ScoredTokens(targets, choice, sizes), positions
