"""Parts of the examples, and their fingerprint."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rows import message

from ivon_jax.train.data.examples import (
    fingerprint,
    subsample,
    validation_split,
)
from ivon_jax.train.data.task import Example

MANY = [Example(f"p{i}", i % 10 // 7) for i in range(200)]  # 140 of 0, 60 of 1


@pytest.mark.parametrize("balanced", [False, True])
def test_subsamples_are_nested_seeded_and_without_replacement(balanced):
    draws = [subsample(MANY, n, 3, balanced=balanced) for n in (10, 50, 200)]
    assert draws[0] == draws[1][:10] == draws[2][:10]
    assert sorted(draws[2]) == sorted(MANY)
    assert subsample(MANY, 50, 3, balanced=balanced) == draws[1]
    assert subsample(MANY, 50, 4, balanced=balanced) != draws[1]


def test_balanced_subsample():
    for n in (2, 51, 120):
        counts = Counter(e.label for e in subsample(MANY, n, 0, balanced=True))
        assert abs(counts[0] - counts[1]) <= 1
    # Beyond the smaller class the larger one goes on alone.
    assert Counter(e.label for e in subsample(MANY, 150, 0, balanced=True))[1] == 60


@pytest.mark.parametrize("n", [0, -1, 201])
def test_subsample_of_an_impossible_size(n):
    assert f"cannot take {n} examples of 200" in message(subsample, MANY, n, 0)


def test_validation_split_is_a_stratified_partition():
    train, validation = validation_split(MANY, 21, 0)
    assert sorted(train + validation) == sorted(MANY)
    # 21 * (140, 60) / 200 = 14.7, 6.3
    assert Counter(e.label for e in validation) == {0: 15, 1: 6}
    assert validation_split(MANY, 21, 0) == (train, validation)
    assert validation_split(MANY, 21, 1) != (train, validation)


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=40),
    data=st.data(),
)
def test_validation_split_sizes(labels, data):
    examples = [Example(str(i), label) for i, label in enumerate(labels)]
    n = data.draw(st.integers(1, len(labels) - 1))
    train, validation = validation_split(examples, n, 0)
    assert len(validation) == n
    assert sorted(train + validation) == sorted(examples)
    for label, count in Counter(labels).items():
        share = n * count / len(labels)
        assert abs(sum(e.label == label for e in validation) - share) < 1


@pytest.mark.parametrize("n", [0, 200, 300])
def test_validation_split_leaves_neither_part_empty(n):
    assert "legal: 1 to 199" in message(validation_split, MANY, n, 0)


def test_fingerprint_sees_prompts_labels_order_and_bounds():
    base = [Example("a", 0), Example("b", 1)]
    others = [
        base[::-1],
        base[:1],
        [Example("a", 1), Example("b", 1)],
        [Example("a", 0), Example("c", 1)],
        [Example('a", 0]\n["b', 1)],
    ]
    prints = {fingerprint(examples) for examples in [base, *others]}
    assert len(prints) == 1 + len(others)
    assert fingerprint(list(base)) == fingerprint(base)
