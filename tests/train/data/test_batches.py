"""Rows of batches, and their order."""

from collections import Counter

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax.train.data.batches import collate, eval_batches, train_batches
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.data.layout import Layout, Shape


def encoded(lengths: list[int]) -> Encoded:
    """Example i consists of `lengths[i]` tokens 100 + i; its label is i."""
    tokens = tuple(np.full(s, 100 + i, np.int32) for i, s in enumerate(lengths))
    return Encoded(tokens, np.arange(len(lengths), dtype=np.int32))


# Rows.


def test_collate_pads_on_the_right():
    batch = collate(encoded([2, 9, 1]), np.array([[2], [0]]), Shape(4, 4))
    assert batch.tokens.tolist() == [[102, 0, 0, 0], [100, 100, 0, 0]]
    assert batch.lengths.tolist() == [[1], [2]]
    assert batch.labels.tolist() == [[2], [0]]
    assert batch.weights.tolist() == [[1], [1]]
    kinds = [part.dtype.name for part in jax.tree.leaves(batch)]
    assert kinds == ["int32"] * 3 + ["float32"] + ["int32"] * 3


def test_texts_of_a_row_follow_one_another():
    batch = collate(encoded([2, 9, 1, 3]), np.array([[3, 0], [2, 1]]), Shape(12, 9))
    assert batch.tokens.tolist() == [
        [103] * 3 + [100] * 2 + [0] * 7,
        [102] + [101] * 9 + [0] * 2,
    ]
    assert batch.lengths.tolist() == [[3, 2], [1, 9]]
    assert batch.labels.tolist() == [[3, 0], [2, 1]]
    assert batch.weights.tolist() == [[1, 1], [1, 1]]
    places = np.pad(batch.tokens, ((0, 0), (0, 1)))[
        np.arange(2)[:, None, None], batch.packed.token
    ]
    wanted = [[(103, 3), (100, 2)], [(102, 1), (101, 9)]]
    for row, texts in zip(places, wanted, strict=True):
        for place, (token, length) in zip(row, texts, strict=True):
            assert place.tolist() == [token] * length + [0] * (9 - length)


def test_a_full_row_has_its_texts_at_their_places():
    batch = collate(encoded([2, 1, 3]), np.array([[0, 1, 2]]), Shape(9, 3))
    assert batch.packed.full
    row = [100, 100, 0, 101, 0, 0, 102, 102, 102]
    assert batch.tokens.tolist() == [row]
    assert batch.packed.token[..., 0].tolist() == [[0, 3, 6]]


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (2, 2), (4, 2), (8, 1)])
def test_a_text_has_its_number_in_whatever_row(rows, groups):
    """Masks are drawn by it: also the rows of one process have those of the batch."""
    data = encoded([3, 17, 5, 9, 1, 30, 2, 8, 4, 6])
    layout = Layout.of(data, 8, rows, groups)
    whole = batches_of(data, 8, 0)
    parts = [train_batches(data, layout, 0, rows=np.array([i])) for i in range(rows)]
    for _ in range(3):
        wanted = next(whole)
        assert wanted.packed.text.tolist() == [list(range(8))]
        for part in map(next, parts):
            numbers = part.packed.text[0]
            np.testing.assert_array_equal(wanted.labels[0, numbers], part.labels[0])
    (batch, _), *_ = eval_batches(data, 8, rows)
    (alone, _), *_ = eval_batches(data, 8, 1)
    np.testing.assert_array_equal(alone.labels[0, batch.packed.text], batch.labels)


# Training order.


def batches_of(data: Encoded, size: int, seed: int, rows: int = 1, **more):
    return train_batches(data, Layout.of(data, size, rows), seed, **more)


def labels_of(stream, batches: int) -> list[int]:
    return [label for _ in range(batches) for label in next(stream).labels.ravel()]


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 23), batch_size=st.integers(1, 30), seed=st.integers(0, 2**70))
def test_every_example_once_an_epoch(n, batch_size, seed):
    epochs = 3
    drawn = labels_of(
        batches_of(encoded([1] * n), batch_size, seed), -(-n * epochs // batch_size)
    )
    for epoch in range(epochs):
        part = drawn[epoch * n : (epoch + 1) * n]
        assert sorted(part) == list(range(n))


def test_order_depends_on_the_seed_and_nothing_else():
    short, mixed = encoded([1] * 50), encoded([3, 17] * 25)
    base = labels_of(batches_of(short, 5, 0), 20)
    assert labels_of(batches_of(short, 5, 0), 20) == base
    np.random.default_rng(1).random()
    assert labels_of(batches_of(mixed, 5, 0), 20) == base
    assert labels_of(batches_of(short, 10, 0), 10) == base
    assert labels_of(batches_of(short, 5, 1), 20) != base
    assert base[:50] != base[50:], "every epoch is shuffled anew"


def test_neighbouring_seeds_share_no_epoch():
    epochs = Counter()
    for seed in range(4):
        drawn = labels_of(batches_of(encoded([1] * 30), 30, seed), 4)
        epochs.update(tuple(drawn[i : i + 30]) for i in range(0, 120, 30))
    assert max(epochs.values()) == 1


def test_training_batches_are_full_and_all_count():
    stream = batches_of(encoded([3, 12, 5]), 2, 0, rows=2)
    for _ in range(6):
        batch = next(stream)
        assert batch.weights.tolist() == [[1], [1]]
        assert batch.tokens.shape in {(2, 8), (2, 16)}
        np.testing.assert_array_equal(batch.tokens[:, :1], 100 + batch.labels)


@pytest.mark.parametrize("orders", [1, 3])
def test_a_stored_position_resumes_exactly(orders):
    data = encoded([1] * 11)
    layout = Layout.of(data, 4, orders=orders)
    stream = train_batches(data, layout, 5)
    labels_of(stream, 7)
    state = stream.get_state()
    ahead = labels_of(stream, 6)
    resumed = train_batches(data, layout, 5)
    resumed.set_state(state)
    assert labels_of(resumed, 6) == ahead


@pytest.mark.parametrize(("rows", "groups"), [(1, 1), (4, 1), (4, 2), (8, 2)])
def test_rows_of_several_orders_alternate(rows, groups):
    data = encoded([3, 20, 5, 9, 30, 1, 2, 17] * 2)
    layout = Layout.of(data, 8, rows, groups, orders=3)
    stream = train_batches(data, layout, 0)
    alone = train_batches(data, Layout.of(data, 8, rows, groups), 0)
    drawn: list[list[int]] = [[], [], []]
    for _ in range(6):  # three epochs
        batch = next(stream)
        assert len(batch.tokens) == 3 * rows
        width = batch.packed.token.shape[2]
        assert Shape(batch.tokens.shape[1], width) in layout.shapes
        np.testing.assert_array_equal(batch.labels[::3], next(alone).labels)
        for order, labels in enumerate(drawn):
            labels += batch.labels[order::3].ravel().tolist()
    epochs = [labels[at : at + 16] for labels in drawn for at in (0, 16, 32)]
    assert all(sorted(epoch) == list(range(16)) for epoch in epochs)
    halves = [frozenset(epoch[:8]) for epoch in epochs]
    assert len(set(halves)) == len(halves), "orders differ, and epochs do"


@given(
    lengths=st.lists(st.integers(1, 60), min_size=6, max_size=20),
    rows=st.sampled_from([1, 2, 3]),
)
@settings(deadline=None, max_examples=30)
def test_rows_keep_batches_and_have_the_shapes_of_the_layout(lengths, rows):
    data = encoded(lengths)
    layout = Layout.of(data, 6, rows)
    alone, stream = batches_of(data, 6, 0, rows=6), train_batches(data, layout, 0)
    for _ in range(5):
        one, other = next(alone), next(stream)
        shape = Shape(other.tokens.shape[1], other.packed.token.shape[2])
        assert other.tokens.shape[0] == rows
        assert shape in layout.shapes
        assert sorted(one.labels.ravel()) == sorted(other.labels.ravel())
        np.testing.assert_array_equal(
            data.lengths[other.labels.ravel()], other.lengths.ravel()
        )


@pytest.mark.parametrize(("texts", "orders"), [(1, 1), (2, 1), (2, 3)])
def test_slices_of_processes_make_up_the_batch(texts, orders):
    data = encoded([3, 20, 5, 9, 30, 1, 2])
    layout = Layout.of(data, 4 * texts, 4, orders=orders)
    whole = train_batches(data, layout, 0)
    parts = [
        train_batches(data, layout, 0, rows=rows)
        for rows in np.split(np.arange(4 * orders), 2)
    ]
    for _ in range(5):
        joined = jax.tree.map(lambda *p: np.concatenate(p), *map(next, parts))
        chex.assert_trees_all_equal(joined, next(whole))


# Evaluation order.


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=25),
    texts=st.integers(1, 4),
    rows=st.integers(1, 3),
)
def test_evaluation_covers_every_example_once(lengths, texts, rows):
    data, batch_size = encoded(lengths), texts * rows
    batches = list(eval_batches(data, batch_size, rows))
    assert len(batches) == -(-len(lengths) // batch_size)
    restored = np.full((len(lengths), 2), -1)
    for batch, indices in batches:
        assert batch.tokens.shape[0] == rows
        assert batch.lengths.shape == (rows, texts)
        real = batch.weights > 0
        assert real.sum() == len(indices)
        assert batch.lengths.min() >= 1
        found = np.stack([batch.labels[real], batch.lengths[real]], 1)
        restored[indices] = found
    widths = [batch.packed.token.shape[2] for batch, _ in batches]
    assert widths == sorted(widths)
    expected = np.stack([np.arange(len(lengths)), lengths], 1)
    np.testing.assert_array_equal(restored, expected)
