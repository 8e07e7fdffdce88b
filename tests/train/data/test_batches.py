"""Padding, packing, order."""

import itertools
from collections import Counter

import chex
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax.train.data.batches import (
    arrange,
    bucket,
    collate,
    eval_batches,
    padded_lengths,
    train_batches,
)
from ivon_jax.train.data.encoding import Encoded


def encoded(lengths: list[int]) -> Encoded:
    """Example i consists of `lengths[i]` tokens 100 + i; its label is i."""
    tokens = tuple(np.full(s, 100 + i, np.int32) for i, s in enumerate(lengths))
    return Encoded(tokens, np.arange(len(lengths), dtype=np.int32))


# Padding.


def test_collate_pads_on_the_right():
    batch = collate(encoded([2, 9, 1]), np.array([[2], [0]]), pad_to=4)
    assert batch.tokens.tolist() == [[102, 0, 0, 0], [100, 100, 0, 0]]
    assert batch.lengths.tolist() == [[1], [2]]
    assert batch.labels.tolist() == [[2], [0]]
    assert batch.weights.tolist() == [[1], [1]]
    kinds = [part.dtype.name for part in jax.tree.leaves(batch)]
    assert kinds == ["int32"] * 3 + ["float32"]


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=9))
def test_padding_is_to_the_bucket_of_the_longest(lengths):
    prompts = encoded(lengths)
    batch = collate(prompts, np.arange(len(lengths))[:, None])
    width = batch.tokens.shape[1]
    assert width == bucket(max(lengths))
    assert width in padded_lengths(prompts)
    for i, length in enumerate(lengths):
        expected = [100 + i] * length + [0] * (width - length)
        assert batch.tokens[i].tolist() == expected


@given(
    lengths=st.lists(st.integers(1, 40), min_size=2, max_size=3).map(lambda x: x + x)
)
def test_two_in_a_row_are_the_shortest_rows_there_are(lengths):
    def padded_lengths(pairs):
        return max(sum(lengths[i] for i in pair) for pair in pairs)

    found = arrange(np.array(lengths), 2)
    assert sorted(found.ravel().tolist()) == list(range(len(lengths)))
    orders = itertools.permutations(range(len(lengths)))
    assert padded_lengths(found) == min(
        padded_lengths(zip(o[::2], o[1::2], strict=True)) for o in orders
    )


@given(
    lengths=st.lists(st.integers(1, 40), min_size=12, max_size=12),
    pack=st.sampled_from([1, 2, 3, 4, 6, 12]),
)
def test_rows_are_about_equally_long(lengths, pack):
    rows = arrange(np.array(lengths), pack)
    assert rows.shape == (12 // pack, pack)
    assert sorted(rows.ravel().tolist()) == list(range(12))
    if pack == 1:
        assert rows.ravel().tolist() == list(range(12))
    else:
        sums = np.array(lengths)[rows].sum(1)
        # Each round of dealing brings two rows apart by no more than its own spread,
        # and these spreads do not overlap.
        assert np.ptp(sums) <= np.ptp(lengths)


def test_texts_of_a_row_follow_one_another():
    batch = collate(encoded([2, 9, 1, 3]), np.array([[3, 0], [2, 1]]))
    pad = [0] * 6
    assert batch.tokens.tolist() == [
        [103] * 3 + [100] * 2 + [0] * 5 + pad,
        [102] + [101] * 9 + pad,
    ]
    assert batch.lengths.tolist() == [[3, 2], [1, 9]]
    assert batch.labels.tolist() == [[3, 0], [2, 1]]
    assert batch.weights.tolist() == [[1, 1], [1, 1]]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=6, max_size=20),
    pack=st.sampled_from([2, 3]),
)
@settings(deadline=None, max_examples=30)
def test_packing_keeps_batches_and_pads_to_what_is_announced(lengths, pack):
    data = encoded(lengths)
    plain, packed = train_batches(data, 6, 0), train_batches(data, 6, 0, pack=pack)
    for _ in range(5):
        one, other = next(plain), next(packed)
        assert other.tokens.shape[0] == 6 // pack
        assert other.tokens.shape[1] in padded_lengths(data, pack)
        assert sorted(one.labels.ravel()) == sorted(other.labels.ravel())
        np.testing.assert_array_equal(
            data.lengths[other.labels.ravel()], other.lengths.ravel()
        )


def test_buckets_are_few_and_near():
    sizes = {length: bucket(length) for length in range(1, 2049)}
    for length, size in sizes.items():
        assert size % 8 == 0
        assert length <= size < max(length + 8, 9 / 8 * length + 8)
        assert bucket(size) == size
    assert len({sizes[length] for length in range(1, 513)}) <= 24


# Training order.


def labels_of(stream, batches: int) -> list[int]:
    return [label for _ in range(batches) for label in next(stream).labels.ravel()]


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 23), batch_size=st.integers(1, 30), seed=st.integers(0, 2**70))
def test_every_example_once_an_epoch(n, batch_size, seed):
    epochs = 3
    drawn = labels_of(
        train_batches(encoded([1] * n), batch_size, seed), -(-n * epochs // batch_size)
    )
    for epoch in range(epochs):
        part = drawn[epoch * n : (epoch + 1) * n]
        assert sorted(part) == list(range(n))


def test_order_depends_on_the_seed_and_nothing_else():
    short, mixed = encoded([1] * 50), encoded([3, 17] * 25)
    base = labels_of(train_batches(short, 5, 0), 20)
    assert labels_of(train_batches(short, 5, 0), 20) == base
    np.random.default_rng(1).random()
    assert labels_of(train_batches(mixed, 5, 0), 20) == base
    assert labels_of(train_batches(short, 10, 0), 10) == base
    assert labels_of(train_batches(short, 5, 1), 20) != base
    assert base[:50] != base[50:], "every epoch is shuffled anew"


def test_neighbouring_seeds_share_no_epoch():
    epochs = Counter()
    for seed in range(4):
        drawn = labels_of(train_batches(encoded([1] * 30), 30, seed), 4)
        epochs.update(tuple(drawn[i : i + 30]) for i in range(0, 120, 30))
    assert max(epochs.values()) == 1


def test_training_batches_are_full_and_all_count():
    stream = train_batches(encoded([3, 12, 5]), 2, 0)
    for _ in range(6):
        batch = next(stream)
        assert batch.weights.tolist() == [[1], [1]]
        assert batch.tokens.shape in {(2, 8), (2, 16)}
        np.testing.assert_array_equal(batch.tokens[:, :1], 100 + batch.labels)


def test_a_stored_position_resumes_exactly():
    data = encoded([1] * 11)
    stream = train_batches(data, 4, 5)
    labels_of(stream, 7)
    state = stream.get_state()
    ahead = labels_of(stream, 6)
    resumed = train_batches(data, 4, 5)
    resumed.set_state(state)
    assert labels_of(resumed, 6) == ahead


@pytest.mark.parametrize("pack", [1, 2])
def test_slices_of_processes_make_up_the_batch(pack):
    data = encoded([3, 20, 5, 9, 30, 1, 2])
    whole = train_batches(data, 4 * pack, 0, pack=pack)
    parts = [
        train_batches(data, 4 * pack, 0, pack=pack, rows=np.arange(2 * i, 2 * i + 2))
        for i in range(2)
    ]
    for _ in range(5):
        joined = jax.tree.map(lambda *p: np.concatenate(p), *map(next, parts))
        chex.assert_trees_all_equal(joined, next(whole))


@pytest.mark.parametrize(("batch_size", "pack"), [(0, 1), (-4, 2), (4, 3)])
def test_illegal_batch_sizes(batch_size, pack):
    message = f"batch size {batch_size} is not a multiple of {pack}"
    with pytest.raises(ValueError, match=message):
        train_batches(encoded([1]), batch_size, 0, pack=pack)


# Evaluation order.


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=25),
    batch_size=st.integers(1, 9),
)
def test_evaluation_covers_every_example_once(lengths, batch_size):
    data = encoded(lengths)
    batches = eval_batches(data, batch_size)
    assert len(batches) == -(-len(lengths) // batch_size)
    restored = np.full((len(lengths), 2), -1)
    for batch, indices in batches:
        assert batch.tokens.shape[0] == batch_size
        assert batch.weights.tolist() == [[1]] * len(indices) + [[0]] * (
            batch_size - len(indices)
        )
        assert batch.lengths.min() >= 1
        rows = np.concatenate([batch.labels, batch.lengths], 1)
        restored[indices] = rows[: len(indices)]
    padded_lengths = [batch.tokens.shape[1] for batch, _ in batches]
    assert padded_lengths == sorted(padded_lengths)
    expected = np.stack([np.arange(len(lengths)), lengths], 1)
    np.testing.assert_array_equal(restored, expected)
