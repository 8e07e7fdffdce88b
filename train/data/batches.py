"""From token ids to padded batches.

Shapes: r rows of a batch, k texts in a row (1 unless packed), s padded length of a
row, q predictions in a row: k, or its learnt tokens; b examples of a batch. All arrays
are NumPy; the caller decides what goes to which device.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.train.data.encoding import Encoded

# The number of learnt tokens is rounded up to such parts of a row's length.
QUARTERS = 4


class Batch(NamedTuple):
    """A right-padded batch; a pytree, so it can be passed to a jitted step.

    The first axis of every array is that of rows.

    Attributes:
        tokens: token ids, a row's texts one after another, then padding.
        lengths: number of tokens of each text; a decoder predicts the answer from a
            text's last token.
        labels: index of the right class, the number or the token to predict.
        weights: 1, or 0 for what only fills the batch.
        second_starts: position of each text's second part; None for decoders.
        positions: position in the row of the token from which each learnt token is
            predicted, the one before it; None if there are classes or numbers.
    """

    tokens: Int[np.ndarray, "r s"]
    lengths: Int[np.ndarray, "r k"]
    labels: Int[np.ndarray, "r q"] | Float[np.ndarray, "r q"]
    weights: Float[np.ndarray, "r q"]
    second_starts: Int[np.ndarray, "r k"] | None = None
    positions: Int[np.ndarray, "r q"] | None = None


def bucket(length: int) -> int:
    """Rounds a length up to one of a few, so that few programs are compiled.

    They are multiples of 8, from 64 on at least an eighth apart: 24 up to 512.

    Example:
        >>> [bucket(length) for length in (1, 8, 9, 64, 65, 73)]
        [8, 8, 16, 64, 72, 88]
    """
    size = 8
    while size < length:
        size = max(size + 8, -(-size * 9 // 64) * 8)
    return size


def padded_lengths(encoded: Encoded, pack: int = 1) -> list[int]:
    """Returns the padded lengths that rows of `pack` examples can have."""
    ordered = np.sort(encoded.lengths)
    shortest, longest = ordered[:pack].sum(), ordered[-pack:].sum()
    sums = ordered if pack == 1 else np.arange(shortest, longest + 1)
    return sorted({bucket(int(length)) for length in sums})


def padded_size(
    encoded: Encoded, indices: Int[np.ndarray, "r k"], pad_to: int | None = None
) -> tuple[int, int]:
    """Returns the padded numbers of tokens and of predictions in a row.

    Few programs are compiled: learnt tokens are rounded up to `QUARTERS` of the length.

    Args:
        encoded: the examples.
        indices: the examples of each row.
        pad_to: number of tokens; None for the bucket of the longest row.
    """
    tokens = pad_to or bucket(int(encoded.lengths[indices].sum(1).max()))
    if encoded.learnt is None:
        return tokens, indices.shape[1]
    quarter = -(-tokens // QUARTERS)
    most = int(encoded.answers[indices].sum(1).max())
    return tokens, -(-most // quarter) * quarter


def collate(
    encoded: Encoded,
    indices: Int[np.ndarray, "r k"],
    pad_to: int | None = None,
    answers: int | None = None,
) -> Batch:
    """Puts the chosen examples into rows, padded on the right to their `padded_size`.

    Args:
        encoded: the examples.
        indices: the examples of each row.
        pad_to: number of tokens of a row; None for these rows' own.
        answers: number of predictions of a row; None for these rows' own.
    """
    lengths = encoded.lengths[indices]
    width, count = padded_size(encoded, indices, pad_to)
    # Not the tokenizer's padding token, which may have no embedding in the model. Every
    # model has one for 0, and padding is masked.
    tokens = np.zeros((len(indices), width), np.int32)
    for row, chosen in zip(tokens, indices, strict=True):
        texts = np.concatenate([encoded.tokens[i] for i in chosen])
        row[: len(texts)] = texts
    if encoded.learnt is not None:
        return Batch(
            tokens, lengths, *_targets(encoded, indices, tokens, answers or count)
        )
    second_starts = (
        None if encoded.second_starts is None else encoded.second_starts[indices]
    )
    weights = np.ones(indices.shape, np.float32)
    return Batch(tokens, lengths, encoded.labels[indices], weights, second_starts)


def _targets(
    encoded: Encoded,
    indices: Int[np.ndarray, "r k"],
    tokens: Int[np.ndarray, "r s"],
    count: int,
) -> tuple[Int[np.ndarray, "r q"], Float[np.ndarray, "r q"], None, Any]:
    """Returns a batch's labels, weights, no second starts, and positions."""
    assert encoded.learnt is not None
    labels, positions = np.zeros((2, len(indices), count), np.int32)
    weights = np.zeros((len(indices), count), np.float32)
    for row, chosen in enumerate(indices):
        starts = np.cumsum(encoded.lengths[chosen]) - encoded.lengths[chosen]
        pairs = zip(starts, chosen, strict=True)
        learnt = np.concatenate([start + encoded.learnt[i] for start, i in pairs])
        labels[row, : learnt.size] = tokens[row, learnt]
        weights[row, : learnt.size] = 1
        positions[row, : learnt.size] = learnt - 1
    return labels, weights, None, positions


def arrange(lengths: Int[np.ndarray, " b"], pack: int) -> Int[np.ndarray, "r k"]:
    """Puts a batch's texts into rows of `pack` texts and about equal length.

    Sorted by length, they are dealt to the rows in alternating direction: with two in
    a row the longest goes with the shortest, the second longest with the second
    shortest.

    Args:
        lengths: lengths of the texts; `pack` divides their number.
        pack: texts in a row; with one the order is kept.

    Example:
        >>> arrange(np.array([3, 9, 4, 7]), 2).tolist()
        [[1, 0], [3, 2]]
    """
    if pack == 1:
        return np.arange(len(lengths))[:, None]
    dealt = np.argsort(-lengths, kind="stable").reshape(pack, -1)
    dealt[1::2] = dealt[1::2, ::-1]
    return dealt.T


@runtime_checkable
class BatchStream(Protocol):
    """An endless iterator of batches whose position can be stored."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position, as plain JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to a position from `get_state`, forward or back."""
        ...


def train_batches(
    encoded: Encoded,
    batch_size: int,
    seed: int,
    *,
    pack: int = 1,
    rows: Int[np.ndarray, " r"] | None = None,
) -> BatchStream:
    """Returns an endless stream of training batches.

    Every epoch is a new permutation of all examples, a function of the seed only. An
    epoch's last examples share a batch with the first ones of the next, so all batches
    are full and no example is dropped.

    Args:
        encoded: the examples.
        batch_size: examples in a batch, over all processes.
        seed: any non-negative integer.
        pack: examples in a row, see `arrange`; it does not change a batch's examples.
        rows: rows of each batch to return; None for all. The padded size is that of
            the whole batch, the same on every process.

    Raises:
        ValueError: the batch size is not positive, or no multiple of `pack`.
    """
    import grain

    if batch_size < 1 or batch_size % pack:
        raise ValueError(f"batch size {batch_size} is not a multiple of {pack}, >= 1")
    local = slice(None) if rows is None else rows

    def batch(indices: Sequence[int]) -> Batch:
        chosen = np.asarray(indices)
        placed = chosen[arrange(encoded.lengths[chosen], pack)]
        return collate(encoded, placed[local], *padded_size(encoded, placed))

    # grain shuffles epoch e with seed + e: with seeds 0, 1, 2 unhashed, the second
    # epoch of one run would be the first of the next.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    order = grain.MapDataset.range(len(encoded)).shuffle(seed=spread).repeat()
    stream = order.batch(batch_size, drop_remainder=True, batch_fn=batch)
    # Padding takes microseconds; prefetching threads would only have to be stopped when
    # training is interrupted.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(stream.to_iter_dataset(options))


def eval_batches(
    encoded: Encoded, batch_size: int
) -> list[tuple[Batch, Int[np.ndarray, " rows"]]]:
    """Returns batches of every example once, sorted by length to save padding.

    All batches have `batch_size` rows; the last one ends in repeats of weight 0.

    Returns:
        Batches, each with the indices of its examples in row order.
    """
    order = np.argsort(encoded.lengths, kind="stable")
    batches = []
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        missing = batch_size - len(indices)
        batch = collate(encoded, np.pad(indices, (0, missing), "edge")[:, None])
        batch.weights[len(indices) :] = 0
        batches.append((batch, indices))
    return batches
