"""SWAG's moments, against the published definitions in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax.iterates import Iterates
from ivon_jax.low_rank import LowRank

A, B = (2, 2), (3,)
SIZE = 7


def tree(flat: np.ndarray) -> dict:
    a, b = np.split(np.asarray(flat, np.float32), [4])
    return {"x": {"a": jnp.asarray(a.reshape(A))}, "b": jnp.asarray(b)}


def flat(tree: dict) -> np.ndarray:
    parts = [np.ravel(tree["x"]["a"]), np.ravel(tree["b"])]
    return np.concatenate(parts).astype(np.float64)


def published(iterates: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of Maddox et al. (2019), Sec. 3.2 and 3.3, row by row."""
    mean = second = np.zeros(SIZE)
    deviations: list[np.ndarray] = []
    for n, theta in enumerate(np.asarray(iterates, np.float64)):
        mean = (n * mean + theta) / (n + 1)
        second = (n * second + theta**2) / (n + 1)
        deviations = [*deviations, theta - mean][-rank:]
    d = np.stack(deviations)
    diagonal = np.diag(second - mean**2)
    return mean, diagonal / 2 + d.T @ d / (2 * max(len(d) - 1, 1))


def covariance(posterior: LowRank) -> np.ndarray:
    diagonal = flat(
        {"x": {"a": posterior.diagonal["x/a"]}, "b": posterior.diagonal["b"]}
    )
    a, b = (np.asarray(posterior.factors[name], np.float64) for name in ("x/a", "b"))
    f = np.concatenate([a.reshape(len(a), -1), b], axis=1)
    return np.diag(diagonal) + f.T @ f


def collected(iterates: np.ndarray, rank: int) -> Iterates:
    state = Iterates.start(tree(np.zeros(SIZE)), rank)
    for theta in iterates:
        state = state.add(tree(theta))
    return state


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000), st.integers(2, 12), st.integers(1, 8))
def test_moments_are_the_published_ones(seed, number, rank):
    rng = np.random.default_rng(seed)
    iterates = np.float32(rng.normal(size=SIZE) + rng.normal(size=(number, SIZE)))
    state = collected(iterates, rank)
    posterior = state.posterior()
    mean, wanted = published(iterates, rank)
    assert int(state.number) == number
    np.testing.assert_allclose(flat(posterior.mean), mean, rtol=1e-5, atol=1e-6)
    scale = np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    error = (covariance(posterior) - wanted) / scale
    np.testing.assert_allclose(error, 0, atol=1e-5)


def test_small_deviations_do_not_cancel():
    """The second moment less the squared mean would be mere rounding in float32; here
    that of the mean, a hundredth of a deviation, is left."""
    rng = np.random.default_rng(0)
    iterates = np.float32(1 + 1e-5 * rng.normal(size=(30, SIZE)))
    naive = np.mean(iterates**2, axis=0) - np.mean(iterates, axis=0) ** 2
    _, wanted = published(iterates, 4)
    exact = np.var(np.float64(iterates), axis=0)
    assert np.max(np.abs(naive / exact - 1)) > 0.5
    found = covariance(collected(iterates, 4).posterior())
    np.testing.assert_allclose(np.diag(found), np.diag(wanted), rtol=0.05)


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_iterates_are_a_point(number):
    iterates = np.random.default_rng(0).normal(size=(number, SIZE))
    posterior = collected(iterates, 3).posterior()
    assert not np.any(covariance(posterior))
    wanted = iterates[0] if number else np.zeros(SIZE)
    np.testing.assert_array_equal(flat(posterior.mean), np.float32(wanted))


def test_two_iterates_have_their_own_covariance():
    """In both halves: the second row is half of their difference."""
    one, other = np.float32(np.random.default_rng(0).normal(size=(2, SIZE)))
    found = covariance(collected(np.stack([one, other]), 5).posterior())
    d = (other - one) / 2
    np.testing.assert_allclose(found, (np.diag(d * d) + np.outer(d, d)) / 2, rtol=1e-4)


def test_it_is_collected_inside_scan_as_outside():
    iterates = np.float32(np.random.default_rng(0).normal(size=(9, SIZE)))
    start = Iterates.start(tree(np.zeros(SIZE)), 4)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(tree, iterates))
    found, _ = jax.jit(
        lambda state, xs: jax.lax.scan(lambda s, x: (s.add(x), None), state, xs)
    )(start, stacked)
    chex.assert_trees_all_close(found, collected(iterates, 4), rtol=1e-4, atol=1e-6)


def test_the_first_state_can_be_donated():
    params = {"w": jnp.arange(3.0)}
    add = jax.jit(lambda state, new: state.add(new), donate_argnums=0)
    found = add(Iterates.start(params, 2), params)
    chex.assert_trees_all_equal(found, Iterates.start(params, 2).add(params))


def test_16_bit_iterates_are_averaged_in_float32():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = Iterates.start(params, 2).add(params).add({"w": params["w"] * 2})
    assert {leaf.dtype for leaf in jax.tree.leaves(state[1:])} == {jnp.dtype("float32")}
    np.testing.assert_array_equal(state.mean["w"], 1.5)


def test_a_rank_below_one_is_refused():
    with pytest.raises(ValueError, match="rank: 0 is not >= 1"):
        Iterates.start({"w": jnp.ones(2)}, 0)
