"""The shapes of a batch's rows: few, so that few programs are compiled.

Shapes: n examples, b rows of a batch, k texts in a row, m batches, o shapes.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.train.data.encoding import Encoded

# Batches that are drawn to see which shapes are frequent.
DRAWN = 512
# Pairs of a token and one it attends to that cost as much as a token's products: those
# of a small model, where attention weighs most.
PAIRS = 400
# At most SHARE shapes for each padded length of single texts, and none that saves less
# than the share WORTH of the cost: each takes seconds to compile.
SHARE, WORTH = 1.5, 0.004


class Shape(NamedTuple):
    """The shape of a row.

    Attributes:
        tokens: tokens of its texts, without a shared prefix, padded at the end.
        width: places of each text in attention; at least its tokens.
    """

    tokens: int
    width: int


def bucket(length: int) -> int:
    """Rounds a length up to one of a few.

    They are multiples of 8, from 64 on at least an eighth apart: 24 up to 512.

    Example:
        >>> [bucket(length) for length in (1, 8, 9, 64, 65, 73)]
        [8, 8, 16, 64, 72, 88]
    """
    size = 8
    while size < length:
        size = max(size + 8, -(-size * 9 // 64) * 8)
    return size


def padded_lengths(lengths: Int[np.ndarray, " n"]) -> list[int]:
    """Returns the buckets of texts, each by itself."""
    return sorted({bucket(int(length)) for length in np.unique(lengths)})


@dataclasses.dataclass(frozen=True)
class Layout:
    """The rows of all batches of a run.

    Attributes:
        rows: number of rows.
        texts: texts in a row.
        groups: parts of the rows that have each a block of the batch's texts.
        shapes: the shapes that rows have; the largest fits any batch.
        orders: shuffles of the examples, whose rows alternate.
    """

    rows: int
    texts: int
    groups: int
    shapes: tuple[Shape, ...]
    orders: int = 1

    @classmethod
    def of(
        cls,
        encoded: Encoded,
        batch_size: int,
        rows: int = 1,
        groups: int = 1,
        prefix: int = 0,
        orders: int = 1,
    ) -> "Layout":
        """Chooses shapes that waste little on random batches.

        They are chosen one by one, each the one that saves most on batches drawn from
        the examples; a fixed seed draws them, so that all processes agree.

        Args:
            encoded: the examples, without the prefix.
            batch_size: examples of each shuffle in a batch.
            rows: number of their rows. An encoder's texts have a row each.
            groups: number of their groups, which divides that of rows.
            prefix: tokens of the prefix that all texts share.
            orders: number of shuffles.

        Raises:
            ValueError: the batch size is not positive, or no multiple of `rows`.
        """
        if encoded.second_starts is not None:
            rows = batch_size
        if batch_size < 1 or batch_size % rows:
            raise ValueError(
                f"batch size {batch_size} is not a multiple of {rows}, >= 1"
            )
        texts, padded = batch_size // rows, padded_lengths(encoded.lengths)
        batch_size, rows, groups = (orders * n for n in (batch_size, rows, groups))
        if texts == 1:
            shapes = tuple(Shape(size, size) for size in padded)
            return cls(rows, texts, groups, shapes, orders)
        rng = np.random.default_rng(0)
        drawn = encoded.lengths[rng.integers(len(encoded), size=(DRAWN, batch_size))]
        sums = [own[_placed(own, texts, groups)].sum(1).max() for own in drawn]
        needed = np.stack([sums, drawn.max(1)], axis=1)
        # No example comes twice within an epoch.
        times = 2 + batch_size // len(encoded)
        most = np.sort(np.repeat(encoded.lengths, times))[-texts:]
        largest = Shape(-(-int(most.sum()) // 8) * 8, bucket(int(most[-1])))
        count = int(SHARE * len(padded))
        shapes = _chosen(needed, largest, texts, prefix, count)
        return cls(rows, texts, groups, shapes, orders)

    def place(self, lengths: Int[np.ndarray, " n"]) -> Int[np.ndarray, "b k"]:
        """Puts a batch's texts into rows; see `arrange`.

        What is in a group depends on the number of groups, not on that of rows.

        Args:
            lengths: lengths of the texts, those of one shuffle after the other.
        """
        placed = _placed(lengths, self.texts, self.groups)
        by_order = placed.reshape(self.orders, -1, self.texts)
        return np.swapaxes(by_order, 0, 1).reshape(placed.shape)

    def shape_of(self, lengths: Int[np.ndarray, "b k"]) -> Shape:
        """Returns the first shape, and so the cheapest, that fits rows of texts."""
        return next(
            shape
            for shape in self.shapes
            if lengths.sum(1).max() <= shape.tokens and lengths.max() <= shape.width
        )


def _chosen(
    needed: Int[np.ndarray, "m 2"], largest: Shape, texts: int, prefix: int, count: int
) -> tuple[Shape, ...]:
    """Chooses at most `count` shapes for batches, by rising cost."""
    levels = np.unique(np.quantile(needed[:, 0], np.linspace(0, 1, 33)).astype(int))
    tokens = {min(-(-int(n) // 8) * 8, largest.tokens) for n in levels}
    widths = {bucket(int(n)) for n in np.unique(needed[:, 1])}
    options = np.array(
        sorted((t, w) for t in tokens | {largest.tokens} for w in widths)
    )
    costs: Float[np.ndarray, " o"] = _cost(options.T, texts, prefix)
    fits = (needed[:, None] <= options[None]).all(2)
    each = np.where(fits, costs[None], np.inf)
    chosen = {largest}
    paid = np.full(len(needed), float(_cost(largest, texts, prefix)))
    while len(chosen) < count:
        saved = np.maximum(paid[:, None] - each, 0).sum(0)
        best = int(saved.argmax())
        if saved[best] <= WORTH * paid.sum():
            break
        chosen.add(Shape(*map(int, options[best])))
        paid = np.minimum(paid, each[:, best])
    return tuple(sorted(chosen, key=lambda shape: _cost(shape, texts, prefix)))


def _cost(shape: Any, texts: int, prefix: int) -> Any:
    """Returns the cost of a row, or of each of several, as a number of tokens."""
    tokens, width = shape
    return tokens + texts * width * (prefix + width) / PAIRS


def own_shape(lengths: Int[np.ndarray, "b k"]) -> Shape:
    """Returns a shape for texts of about equal length, as evaluation puts together.

    The tokens are rounded up to eighths of what the longest would need in every place.
    """
    texts, width = lengths.shape[1], bucket(int(lengths.max()))
    if texts == 1:
        return Shape(width, width)
    eighth = texts * width // 8
    return Shape(-(-int(lengths.sum(1).max()) // eighth) * eighth, width)


def arrange(lengths: Int[np.ndarray, " n"], texts: int) -> Int[np.ndarray, "b k"]:
    """Puts a batch's texts into rows of equally many and of about equal length.

    Sorted by length, they are dealt to the rows in alternating direction: with two in
    a row the longest goes with the shortest, the second longest with the second
    shortest.

    Args:
        lengths: lengths of the texts.
        texts: texts in a row, which divides their number; with one, or in one row, the
            order is kept.

    Example:
        >>> arrange(np.array([3, 9, 4, 7]), 2).tolist()
        [[1, 0], [3, 2]]
    """
    if texts in (1, len(lengths)):
        return np.arange(len(lengths)).reshape(-1, texts)
    dealt = np.argsort(-lengths, kind="stable").reshape(texts, -1)
    dealt[1::2] = dealt[1::2, ::-1]
    return dealt.T


def _placed(
    lengths: Int[np.ndarray, " n"], texts: int, groups: int
) -> Int[np.ndarray, "b k"]:
    """Arranges each of several blocks of a batch's texts."""
    blocks = np.arange(len(lengths)).reshape(groups, -1)
    return np.concatenate([block[arrange(lengths[block], texts)] for block in blocks])
