"""From token ids to batches.

Shapes: b rows of a batch, k texts in a row (one for encoders), t tokens of a row, q
predictions in a row: k, or its learnt or scored tokens. All arrays are NumPy; the
caller decides what goes to which device.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from ivon_jax.models.packed import Packed
from ivon_jax.train.data.choice_encoding import ScoredTokens, branches, scored_tokens
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.data.layout import Layout, Shape, arrange, own_shape

# The number of learnt tokens is rounded up to such parts of a row's length.
QUARTERS = 4


class Batch(NamedTuple):
    """A batch; a pytree, so it can be passed to a jitted step.

    The first axis of every array is that of rows.

    Attributes:
        tokens: token ids, a row's texts where `packed` says, and padding.
        lengths: number of tokens of each text; a decoder predicts the answer from a
            text's last token.
        labels: index of the right class, the number or the token to predict.
        weights: 1, or 0 for what only fills the batch.
        second_starts: position of each text's second part; None for decoders.
        positions: position in the row of the token from which each learnt or scored
            token is predicted; None if there are words of classes, or numbers.
        packed: where the texts are; None for encoders, whose rows are one text each.
        scored: the scored tokens, if classes have texts.
    """

    tokens: Int[np.ndarray, "b t"]
    lengths: Int[np.ndarray, "b k"]
    labels: Int[np.ndarray, "b q"] | Float[np.ndarray, "b q"]
    weights: Float[np.ndarray, "b q"]
    second_starts: Int[np.ndarray, "b k"] | None = None
    positions: Int[np.ndarray, "b q"] | None = None
    packed: Packed | None = None
    scored: ScoredTokens | None = None


def answer_count(encoded: Encoded, indices: Int[np.ndarray, "b k"], tokens: int) -> int:
    """Returns the number of predictions in a row.

    Few programs are compiled: learnt and scored tokens are rounded up to `QUARTERS` of
    the length.

    Args:
        encoded: the examples.
        indices: the examples of each row.
        tokens: tokens of a row.
    """
    if not encoded.reads_tokens:
        return indices.shape[1]
    quarter = -(-tokens // QUARTERS)
    most = int(encoded.scored[indices].sum(1).max())
    return -(-most // quarter) * quarter


def collate(
    encoded: Encoded,
    indices: Int[np.ndarray, "b k"],
    shape: Shape | None = None,
    answers: int | None = None,
    real: Bool[np.ndarray, "b k"] | None = None,
    numbers: Int[np.ndarray, "b k"] | None = None,
) -> Batch:
    """Puts the chosen examples into rows.

    Args:
        encoded: the examples.
        indices: the examples of each row.
        shape: shape of a row; None for these rows' own.
        answers: number of predictions of a row; None for these rows' own.
        real: whether each example counts; None for all.
        numbers: number of each example in the whole batch, by which masks are drawn;
            None for their order.
    """
    lengths = encoded.lengths[indices]
    shape = shape or own_shape(lengths)
    # Not the tokenizer's padding token, which may have no embedding in the model. Every
    # model has one for 0, and padding is masked.
    tokens = np.zeros((len(indices), shape.tokens), np.int32)
    packed = Packed.of(lengths, *shape, numbers)
    starts = packed.token[..., 0]
    for row, k in np.ndindex(*indices.shape):
        start, text = starts[row, k], encoded.tokens[indices[row, k]]
        tokens[row, start : start + len(text)] = text
    counts = np.ones(indices.shape, bool) if real is None else real
    if encoded.second_starts is not None:
        second_starts = encoded.second_starts[indices]
        weights = counts.astype(np.float32)
        labels = encoded.labels[indices]
        return Batch(tokens, lengths, labels, weights, second_starts)
    count = answers or answer_count(encoded, indices, shape.tokens)
    if encoded.learnt is not None:
        labels, weights, positions = _targets(
            encoded, indices, tokens, starts, counts, count
        )
        return Batch(tokens, lengths, labels, weights, None, positions, packed)
    labels, weights = encoded.labels[indices], counts.astype(np.float32)
    batch = Batch(tokens, lengths, labels, weights, packed=packed)
    if encoded.choices is None:
        return batch
    scored, positions = scored_tokens(encoded, indices, tokens, starts, count)
    packed = packed._replace(branch=branches(encoded, indices, shape.width))
    return batch._replace(positions=positions, packed=packed, scored=scored)


def _targets(
    encoded: Encoded,
    indices: Int[np.ndarray, "b k"],
    tokens: Int[np.ndarray, "b t"],
    starts: Int[np.ndarray, "b k"],
    real: Bool[np.ndarray, "b k"],
    count: int,
) -> tuple[Int[np.ndarray, "b q"], Float[np.ndarray, "b q"], Int[np.ndarray, "b q"]]:
    """Returns labels, weights and positions of learnt tokens."""
    assert encoded.learnt is not None
    labels, positions = np.zeros((2, len(indices), count), np.int32)
    weights = np.zeros((len(indices), count), np.float32)
    for row, chosen in enumerate(indices):
        pairs = zip(starts[row], chosen, strict=True)
        learnt = np.concatenate([start + encoded.learnt[i] for start, i in pairs])
        labels[row, : learnt.size] = tokens[row, learnt]
        weights[row, : learnt.size] = np.repeat(real[row], encoded.answers[chosen])
        positions[row, : learnt.size] = learnt - 1
    return labels, weights, positions


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
    layout: Layout,
    seed: int,
    *,
    rows: Int[np.ndarray, " r"] | None = None,
) -> BatchStream:
    """Returns an endless stream of training batches.

    Every epoch is a new permutation of all examples, a function of the seed only. An
    epoch's last examples share a batch with the first ones of the next, so all batches
    are full and no example is dropped. Of several shuffles the first is that of one.

    Args:
        encoded: the examples.
        layout: the rows of each batch; they do not change a batch's examples.
        seed: any non-negative integer.
        rows: rows of each batch to return; None for all. Their shape is that of the
            whole batch, the same on every process.
    """
    import grain

    local = slice(None) if rows is None else rows

    def batch(drawn: Sequence[int]) -> Batch:
        chosen = np.asarray(drawn).reshape(-1, layout.orders).T.ravel()
        placed = layout.place(encoded.lengths[chosen])
        indices = chosen[placed]
        shape = layout.shape_of(encoded.lengths[indices])
        count = answer_count(encoded, indices, shape.tokens)
        return collate(encoded, indices[local], shape, count, numbers=placed[local])

    # grain shuffles epoch e with seed + e: with seeds 0, 1, 2 unhashed, the second
    # epoch of one run would be the first of the next.
    seeds = np.random.SeedSequence(seed).generate_state(layout.orders)
    examples = grain.MapDataset.range(len(encoded))
    order = grain.MapDataset.mix(
        [examples.shuffle(seed=int(s)).repeat() for s in seeds]
    )
    size = layout.rows * layout.texts
    stream = order.batch(size, drop_remainder=True, batch_fn=batch)
    # Padding takes microseconds; prefetching threads would only have to be stopped when
    # training is interrupted.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    return iter(stream.to_iter_dataset(options))


def eval_batches(
    encoded: Encoded, batch_size: int, rows: int
) -> Iterator[tuple[Batch, Int[np.ndarray, " examples"]]]:
    """Makes batches of every example once, sorted by length to save padding.

    All batches have `batch_size` texts; the last one ends in repeats of weight 0.

    Args:
        encoded: the examples.
        batch_size: examples in a batch, a multiple of `rows`.
        rows: rows of a batch.

    Yields:
        Batches, each with the indices of its examples in the order of their
        predictions.
    """
    order = np.argsort(encoded.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        padded = np.pad(indices, (0, batch_size - len(indices)), "edge")
        placed = arrange(encoded.lengths[padded], batch_size // rows)
        real = placed < len(indices)
        batch = collate(encoded, padded[placed], real=real, numbers=placed)
        yield batch, padded[placed][real]
