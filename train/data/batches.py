"""From token ids to padded batches.

Shapes: r rows of a batch, k texts in a row (1 unless packed), s padded length of a
row, b examples of a batch. All arrays are NumPy; the caller decides what goes to which
device.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.train.data.encoding import Encoded


class Batch(NamedTuple):
    """A right-padded batch; a pytree, so it can be passed to a jitted step.

    Every array is one of rows, so a batch is split by splitting all of them alike.

    Attributes:
        tokens: token ids, a row's texts one after another; those beyond the last one
            mean nothing.
        lengths: number of tokens of each text; a decoder predicts the answer from a
            text's last.
        labels: index of the right class, or the number to predict.
        weights: 1, or 0 for a text that only fills the batch up.
        second_starts: where in each text its second part begins; None for decoders.
    """

    tokens: Int[np.ndarray, "r s"]
    lengths: Int[np.ndarray, "r k"]
    labels: Int[np.ndarray, "r k"] | Float[np.ndarray, "r k"]
    weights: Float[np.ndarray, "r k"]
    second_starts: Int[np.ndarray, "r k"] | None = None


def bucket(length: int) -> int:
    """Rounds a length up to one of few, each of which is compiled for once.

    Multiples of 8, from 64 on at least an eighth apart: 24 of them up to 512.

    Example:
        >>> [bucket(length) for length in (1, 8, 9, 64, 65, 73)]
        [8, 8, 16, 64, 72, 88]
    """
    size = 8
    while size < length:
        size = max(size + 8, -(-size * 9 // 64) * 8)
    return size


def padded_lengths(encoded: Encoded, pack: int = 1) -> list[int]:
    """What rows of `pack` of these examples can be padded to."""
    ordered = np.sort(encoded.lengths)
    shortest, longest = ordered[:pack].sum(), ordered[-pack:].sum()
    sums = ordered if pack == 1 else np.arange(shortest, longest + 1)
    return sorted({bucket(int(length)) for length in sums})


def collate(
    encoded: Encoded, indices: Int[np.ndarray, "r k"], pad_to: int | None = None
) -> Batch:
    """Puts the chosen examples into rows, padded on the right to their `bucket`.

    Args:
        encoded: the examples.
        indices: the examples of each row.
        pad_to: another width to pad to; None for the bucket of the longest row.
    """
    lengths = encoded.lengths[indices]
    width = bucket(int(lengths.sum(1).max())) if pad_to is None else pad_to
    # Not the tokenizer's padding token: that may have been added to it, and the model
    # may have no embedding for it. Every model has one for 0, and padding is masked.
    tokens = np.zeros((len(indices), width), np.int32)
    for row, chosen in zip(tokens, indices, strict=True):
        texts = np.concatenate([encoded.tokens[i] for i in chosen])
        row[: len(texts)] = texts
    second_starts = (
        None if encoded.second_starts is None else encoded.second_starts[indices]
    )
    weights = np.ones(indices.shape, np.float32)
    return Batch(tokens, lengths, encoded.labels[indices], weights, second_starts)


def arrange(lengths: Int[np.ndarray, " b"], pack: int) -> Int[np.ndarray, "r k"]:
    """Puts a batch's texts into rows of `pack` each that are about equally long.

    Sorted by length they are dealt out to the rows, there and back again: of two in a
    row the longest gets the shortest, the second longest the second shortest.

    Args:
        lengths: of the texts; `pack` divides their number.
        pack: texts in a row. One in a row stays in its place.

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
        """The position, as plain JSON."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave, forward or back."""
        ...


def train_batches(
    encoded: Encoded,
    batch_size: int,
    seed: int,
    *,
    pack: int = 1,
    rows: Int[np.ndarray, " r"] | None = None,
) -> BatchStream:
    """An endless stream of training batches.

    Every epoch is a new permutation of all examples, a function of the seed alone.
    An epoch's last examples share a batch with the next one's first, so all batches
    are full and none is dropped.

    Args:
        encoded: the examples.
        batch_size: examples in a batch, over all processes.
        seed: any non-negative integer.
        pack: examples in a row, see `arrange`. Which a batch has does not change.
        rows: which of each batch's rows to return, None for all. The padded length is
            that of the whole batch, the same on every process.

    Raises:
        ValueError: the batch size is not positive, or no multiple of `pack`.
    """
    import grain

    if batch_size < 1 or batch_size % pack:
        raise ValueError(f"batch size {batch_size} is not a multiple of {pack}, >= 1")
    mine = slice(None) if rows is None else rows

    def batch(indices: Sequence[int]) -> Batch:
        chosen = np.asarray(indices)
        placed = chosen[arrange(encoded.lengths[chosen], pack)]
        longest = int(encoded.lengths[placed].sum(1).max())
        return collate(encoded, placed[mine], bucket(longest))

    # grain shuffles epoch e with seed + e: with seeds 0, 1, 2 used as they are, one
    # run's second epoch would be the next run's first. Hashing takes them apart.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    order = grain.MapDataset.range(len(encoded)).shuffle(seed=spread).repeat()
    stream = order.batch(batch_size, drop_remainder=True, batch_fn=batch)
    # Padding takes microseconds; threads that read ahead would only have to be
    # stopped again when training is interrupted.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(stream.to_iter_dataset(options))


def eval_batches(
    encoded: Encoded, batch_size: int
) -> list[tuple[Batch, Int[np.ndarray, " rows"]]]:
    """Every example once, sorted by length so that little is padding.

    All batches have `batch_size` rows; the last is filled up with repeats of weight
    0, which come last.

    Returns:
        Batches, each with the indices that its real rows had; they come first.
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
