"""Few shapes of rows, which fit every batch and waste little."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.data.layout import (
    SHARE,
    Layout,
    Shape,
    arrange,
    bucket,
    own_shape,
    padded_lengths,
)


def encoded(lengths) -> Encoded:
    tokens = tuple(np.zeros(n, np.int32) for n in lengths)
    return Encoded(tokens, np.zeros(len(lengths), np.int32))


def test_buckets_are_few_and_near():
    sizes = {length: bucket(length) for length in range(1, 2049)}
    for length, size in sizes.items():
        assert size % 8 == 0
        assert length <= size < max(length + 8, 9 / 8 * length + 8)
        assert bucket(size) == size
    assert len({sizes[length] for length in range(1, 513)}) <= 24


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=12),
    rows=st.integers(1, 3),
    texts=st.integers(1, 4),
    data=st.data(),
)
@settings(deadline=None, max_examples=40)
def test_every_batch_fits_and_shapes_are_few(lengths, rows, texts, data):
    examples, size = encoded(lengths), rows * texts
    layout = Layout.of(examples, size, rows, prefix=3)
    assert (layout.rows, layout.texts) == (rows, texts)
    most = SHARE * len({bucket(n) for n in lengths})
    assert len(layout.shapes) <= most
    assert len(set(layout.shapes)) == len(layout.shapes)
    # As training draws them: whole epochs one after another.
    orders = st.permutations(range(len(lengths)))
    drawn = list(itertools.chain(*(data.draw(orders) for _ in range(3 + size))))
    for start in (0, len(lengths) // 2):
        batch = examples.lengths[drawn[start : start + size]]
        placed = batch[arrange(batch, texts)]
        shape = layout.shape_of(placed)
        assert placed.sum(1).max() <= shape.tokens
        assert placed.max() <= shape.width


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_are_filled(rows):
    """Texts as those of a usual task: most are near the mean, few are long."""
    rng = np.random.default_rng(1)
    lengths = np.clip(rng.gamma(4, 12, 1000).astype(int) + 15, 15, 200)
    examples = encoded(lengths)
    layout = Layout.of(examples, 8, rows, prefix=11)
    used = held = 0
    for _ in range(200):
        batch = examples.lengths[rng.permutation(1000)[:8]]
        placed = batch[arrange(batch, 8 // rows)]
        used += placed.sum()
        held += rows * layout.shape_of(placed).tokens
    assert used / held > (0.9 if rows == 1 else 0.85)


def test_one_text_a_row_is_padded_to_its_bucket():
    layout = Layout.of(encoded([3, 9, 12, 30]), 2, rows=2)
    assert layout.shapes == tuple(Shape(n, n) for n in (8, 16, 32))
    assert padded_lengths(np.array([3, 9, 12, 30])) == [8, 16, 32]
    assert own_shape(np.array([[3], [9]])) == Shape(16, 16)


def test_sorted_texts_are_padded_by_an_eighth_at_most():
    for texts in range(2, 9):
        for length in (3, 30, 300):
            lengths = np.full((2, texts), length)
            shape = own_shape(lengths)
            assert shape.width == bucket(length)
            eighth = texts * shape.width / 8
            assert texts * length <= shape.tokens < texts * length + eighth


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=3).map(lambda x: x + x)
)
def test_two_in_a_row_are_the_shortest_rows_there_are(lengths):
    def longest(pairs):
        return max(sum(lengths[i] for i in pair) for pair in pairs)

    found = arrange(np.array(lengths), 2)
    assert sorted(found.ravel().tolist()) == list(range(len(lengths)))
    if len(found) > 1:
        orders = itertools.permutations(range(len(lengths)))
        assert longest(found) == min(
            longest(zip(o[::2], o[1::2], strict=True)) for o in orders
        )


@given(
    lengths=st.lists(st.integers(1, 40), min_size=12, max_size=12),
    texts=st.sampled_from([1, 2, 3, 4, 6, 12]),
)
def test_rows_are_about_equally_long(lengths, texts):
    rows = arrange(np.array(lengths), texts)
    assert rows.shape == (12 // texts, texts)
    assert sorted(rows.ravel().tolist()) == list(range(12))
    if texts in (1, 12):
        assert rows.ravel().tolist() == list(range(12))
    else:
        sums = np.array(lengths)[rows].sum(1)
        # Each round of dealing brings two rows apart by no more than its own spread,
        # and these spreads do not overlap.
        assert np.ptp(sums) <= np.ptp(lengths)


@pytest.mark.parametrize(("batch_size", "rows"), [(0, 1), (-4, 2), (4, 3)])
def test_illegal_batch_sizes(batch_size, rows):
    message = f"batch size {batch_size} is not a multiple of {rows}"
    with pytest.raises(ValueError, match=message):
        Layout.of(encoded([1]), batch_size, rows)
