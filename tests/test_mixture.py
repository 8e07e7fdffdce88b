"""The mixture of posteriors, against its parts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ivon_jax
from ivon_jax import Kronecker, Mixture, Particles, Posterior, load_posterior
from ivon_jax.ensemble import ensemble_outputs
from ivon_jax.kronecker import Eigen

KEY = jax.random.key(1)


def gaussian(seed: int) -> Posterior:
    keys = jax.random.split(jax.random.key(seed), 2)
    mean = {
        "x": {"a": jax.random.normal(keys[0], (3, 2))},
        "b": jnp.full(2, seed, float),
    }
    precision = {"x/a": jnp.exp(jax.random.normal(keys[1], (3, 2)))}
    return Posterior(mean, precision, {})


@pytest.fixture(scope="module")
def parts() -> list:
    """Of three kinds: a Gaussian, a point, and a Kronecker-factored Gaussian."""
    eigen = Eigen(jnp.eye(3), jnp.ones(3), jnp.eye(2), jnp.ones(2))
    return [
        gaussian(0),
        Posterior.point(gaussian(1).mean),
        Kronecker.of(gaussian(2).mean, {"x/a": eigen}, 2.0),
    ]


def test_draws_are_those_of_the_parts_in_turn(parts):
    mixture = Mixture.of(parts)
    assert mixture.spread and mixture.size is None
    for index in range(7):
        drawn = mixture.draw(KEY, index)
        alone = parts[index % 3].draw(KEY, index)  # a switch is compiled
        chex.assert_trees_all_close(drawn, alone, rtol=1e-5, atol=1e-6)
    # A part's draws differ from each other.
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(mixture.draw(KEY, 0), mixture.draw(KEY, 3))


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_outputs_of_the_draws(parts, chunk_size):
    found = jax.jit(
        lambda mixture: ensemble_outputs(
            lambda params: params["x"]["a"], mixture, KEY, 5, chunk_size
        )
    )(Mixture.of(parts))
    wanted = [parts[i % 3].draw(KEY, i)["x"]["a"] for i in range(5)]
    np.testing.assert_allclose(found, np.stack(wanted), rtol=1e-5, atol=1e-6)


def test_mean_and_variance_are_those_of_a_mixture():
    """By the laws of total expectation and variance; bounds of six sigma."""
    parts = [gaussian(seed) for seed in range(4)]
    mixture, count = Mixture.of(parts), 20_000
    drawn = jax.vmap(lambda i: mixture.draw(KEY, i)["x"]["a"])(jnp.arange(count))
    means = np.stack([part.mean["x"]["a"] for part in parts])
    variances = np.stack([1 / part.precision["x/a"] for part in parts])
    variance = variances.mean(0) + means.var(0)
    np.testing.assert_allclose(mixture.mean["x"]["a"], means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(mixture.variance()["x/a"], variance, rtol=1e-4)
    error = np.abs(np.asarray(drawn).mean(0) - means.mean(0))
    assert (error < 6 * np.sqrt(variance / count)).all()
    # Each fourth moment is below 3 (v + m^2)^2 of the part's spread around the mean.
    fourth = 3 * (variances + (means - means.mean(0)) ** 2) ** 2
    error = np.abs(np.asarray(drawn).var(0) - variance)
    assert (error < 6 * np.sqrt(fourth.mean(0) / count)).all()


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 10), st.floats(0, 0.9), st.integers(0, 20))
def test_tempering_and_pruning_are_those_of_the_parts(tau, prune, index):
    parts = [gaussian(0), gaussian(1), gaussian(2)]
    mixture = Mixture.of(parts).prune(prune).temper(tau)
    part = parts[index % 3].prune(prune).temper(tau)
    drawn, alone = mixture.draw(KEY, index), part.draw(KEY, index)
    chex.assert_trees_all_close(drawn, alone, rtol=1e-5, atol=1e-6)


def test_a_mixture_of_mixtures_is_one_of_all_parts(parts):
    nested = Mixture.of([Mixture.of(parts[:2]), parts[2]])
    chex.assert_trees_all_equal(nested, Mixture.of(parts))


def test_a_file_gives_the_same_parts(parts, tmp_path):
    many = parts * 4  # of which the eleventh has a name of two digits
    mixture = Mixture.of(many)
    mixture.save(tmp_path / "p", step=3)
    loaded, facts = load_posterior(tmp_path / "p")
    assert isinstance(loaded, Mixture) and facts == {"step": 3}
    assert [type(p) for p in loaded.parts] == [type(p) for p in many]
    chex.assert_trees_all_equal(loaded, mixture)
    assert ivon_jax.Mixture is Mixture


def test_a_part_alone_spreads_as_it_does(parts):
    assert [Mixture.of([part]).spread for part in parts] == [True, False, True]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (list, "parts: name at least one"),
        (
            lambda: [gaussian(0), Posterior.point({"b": jnp.ones(2)})],
            "parts: they differ in structure, shapes or dtypes",
        ),
        (
            lambda: [
                Posterior.point({"b": jnp.ones(2, t)}) for t in ("f4", "bfloat16")
            ],
            "parts: they differ in structure, shapes or dtypes",
        ),
        (
            lambda: [Particles.of([gaussian(0).mean] * 3)],
            "parts: one has only 3 draws",
        ),
    ],
)
def test_what_cannot_be_mixed(made, message):
    with pytest.raises(ValueError, match=message):
        Mixture.of(made())


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"mean": {"b": np.ones(2)}}, "unknown tensor 'mean:b'"),
        ({"0/other/mean": {"b": np.ones(2)}}, "unknown tensor '0/other/mean:b'"),
        ({"1/gaussian/mean": {"b": np.ones(2)}}, "not numbered from 0"),
        ({"0/gaussian/nonsense": {"b": np.ones(2)}}, "unknown tensor 'nonsense:b'"),
        ({}, "parts: name at least one"),
    ],
)
def test_what_is_no_mixture(groups, message):
    with pytest.raises(ValueError, match=message):
        Mixture.from_groups(groups)


def test_points_vary_by_their_means_alone():
    points = [Posterior.point({"w": jnp.full(2, x)}) for x in (0.0, 2.0)]
    chex.assert_trees_all_close(Mixture.of(points).variance(), {"w": jnp.ones(2)})
    assert Mixture.of(points[:1]).variance() == {}
