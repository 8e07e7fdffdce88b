"""The Gaussian of low rank, against the same one written out as a matrix."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax import LowRank, Posterior, load_posterior
from ivon_jax.kinds import Gaussian

KEY = jax.random.key(0)
SHAPES = {"x": {"a": (2, 3), "b": (4,)}, "point": (2,)}
NAMES = ("x/a", "x/b")
SIZE = 10


def made(seed: int = 0, rank: int = 3) -> LowRank:
    """Two leaves with a covariance, and one that is a point."""
    rng = np.random.default_rng(seed)

    def normal(shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    mean = jax.tree.map(normal, SHAPES, is_leaf=lambda x: isinstance(x, tuple))
    shapes = {"x/a": (2, 3), "x/b": (4,)}
    diagonal = {k: jnp.square(normal(shape)) for k, shape in shapes.items()}
    factors = {k: normal((rank, *shape)) for k, shape in shapes.items()}
    return LowRank(mean, diagonal, factors)


def rows(leaves: dict, lead: int) -> np.ndarray:
    parts = [np.reshape(leaves[k], (lead, -1)) for k in NAMES]
    return np.concatenate(parts, axis=1).astype(np.float64)


def dense(posterior: LowRank) -> np.ndarray:
    """The covariance of all entries, in float64."""
    (diagonal,) = rows(posterior.diagonal, 1)
    f = rows(posterior.factors, len(posterior.factors["x/a"]))
    return np.diag(diagonal) + f.T @ f


def noise(posterior: LowRank, n: int) -> np.ndarray:
    """Deviations of n draws from the mean."""
    drawn = jax.vmap(lambda i: posterior.draw(KEY, i))(jnp.arange(n))
    chex.assert_trees_all_equal(drawn["point"][n - 1], posterior.mean["point"])
    apart = jax.tree.map(lambda d, m: d - m[None], drawn["x"], posterior.mean["x"])
    return rows({f"x/{k}": leaf for k, leaf in apart.items()}, n)


@pytest.mark.parametrize("rank", [1, 3, 12])
def test_draws_have_its_mean_and_covariance(rank):
    posterior, n = made(rank=rank).temper(2.0), 20_000
    wanted, found = dense(posterior), noise(posterior, n)
    deviation = np.sqrt(np.diag(wanted))
    assert np.all(np.abs(found.mean(0)) < 5 * deviation / np.sqrt(n))
    # An entry's estimate has variance (s_pp s_qq + s_pq^2) / n.
    error = np.sqrt(np.outer(deviation, deviation) ** 2 + wanted**2) / np.sqrt(n)
    assert np.all(np.abs(found.T @ found / n - wanted) < 5 * error)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.integers(1, 5), st.sampled_from([0.5, 1.0, 8.0]))
def test_variance_and_covariance_are_the_dense_ones(seed, rank, tau):
    posterior = made(seed, rank).temper(tau)
    wanted = dense(made(seed, rank)) / tau
    (variance,) = rows(posterior.variance(), 1)
    np.testing.assert_allclose(variance, np.diag(wanted), rtol=1e-5)
    jacobian = np.random.default_rng(seed + 1).normal(size=(4, SIZE))
    a, b = np.split(np.float32(jacobian), [6], axis=1)
    tree = {"x": {"a": a.reshape(4, 2, 3), "b": b}, "point": np.ones((4, 2))}
    found = posterior.covariance(jax.tree.map(jnp.float32, tree))
    form = jacobian @ wanted @ jacobian.T
    scale = np.sqrt(np.outer(np.diag(form), np.diag(form)))
    np.testing.assert_allclose(found / scale, form / scale, rtol=0, atol=1e-5)


def products(function, *args):
    """The precision of each matrix product of a function."""
    return re.findall(r"precision=(\S+)", str(jax.make_jaxpr(function)(*args)))


def test_products_are_in_float32_on_every_chip():
    posterior = made()
    rows = jax.tree.map(lambda leaf: jnp.ones((2, *leaf.shape)), posterior.mean)
    for found in (
        products(lambda p: p.draw(jax.random.key(0), 0), posterior),
        products(lambda p: p.covariance(rows), posterior),
    ):
        assert found and set(found) == {"(Precision.HIGHEST,"}


def test_without_factors_it_is_the_diagonal_gaussian():
    posterior = made()
    zero = jax.tree.map(jnp.zeros_like, posterior.factors)
    alone = LowRank(posterior.mean, posterior.diagonal, zero)
    precision = {k: 1 / leaf for k, leaf in posterior.diagonal.items()}
    same = Posterior(posterior.mean, precision, {})
    chex.assert_trees_all_close(alone.draw(KEY, 1), same.draw(KEY, 1), rtol=1e-5)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 100), st.floats(0, 1))
def test_pruning_takes_the_lowest_marginal_ratios(seed, ratio):
    posterior = made(seed)
    pruned = posterior.prune(ratio)
    precision = {k: 1 / v for k, v in posterior.variance().items()}
    gaussian = Posterior(posterior.mean, precision, {}).prune(ratio)
    chex.assert_trees_all_equal(pruned.mean, gaussian.mean)
    kept = {k: jnp.isfinite(leaf) for k, leaf in gaussian.precision.items()}
    drawn, whole = pruned.draw(KEY), posterior.draw(KEY)
    for name, mask in kept.items():
        leaf = name.removeprefix("x/")
        wanted = jnp.where(mask, whole["x"][leaf], 0)
        np.testing.assert_array_equal(drawn["x"][leaf], wanted)
        left = jnp.where(mask, posterior.variance()[name], 0)
        np.testing.assert_array_equal(pruned.variance()[name], left)
    chex.assert_trees_all_equal(posterior.prune(ratio / 2).prune(ratio), pruned)


def test_a_covariance_of_zero_is_none_in_a_file(tmp_path):
    posterior = made()
    assert posterior.spread and posterior.size is None
    exact = posterior.temper(np.inf)
    chex.assert_trees_all_equal(exact.draw(KEY), posterior.mean)
    exact.save(tmp_path / "p")
    loaded, _ = load_posterior(tmp_path / "p")
    assert not loaded.spread
    chex.assert_trees_all_equal(loaded.mean, posterior.mean)
    LowRank(posterior.mean, exact.diagonal, posterior.factors).save(tmp_path / "p")
    assert load_posterior(tmp_path / "p")[0].spread


def test_it_is_a_gaussian_inside_jit():
    """Such a check reads the properties of the protocol."""
    assert jax.jit(lambda p: jnp.asarray(isinstance(p, Gaussian)))(made())


@pytest.mark.parametrize("change", [lambda p: p, lambda p: p.prune(0.3).temper(2.0)])
def test_a_file_gives_the_same_posterior(change, tmp_path):
    posterior = change(made())
    posterior.save(tmp_path / "p", step=3)
    loaded, metadata = load_posterior(tmp_path / "p")
    assert isinstance(loaded, LowRank) and metadata == {"step": 3}
    chex.assert_trees_all_equal(loaded, posterior)


def changed(posterior: LowRank, group: str, **leaves) -> LowRank:
    groups = {"diagonal": posterior.diagonal, "factors": posterior.factors}
    named = {name.replace("_", "/"): leaf for name, leaf in leaves.items()}
    return LowRank(posterior.mean, **(groups | {group: groups[group] | named}))


@pytest.mark.parametrize(
    ("group", "leaf", "message"),
    [
        ("diagonal", jnp.ones(3), "covariance of 'x/b' has no mean of its shape"),
        ("diagonal", jnp.full(4, -1.0), "diagonal of 'x/b' is negative"),
        ("diagonal", jnp.full(4, jnp.nan), "diagonal of 'x/b' is not finite"),
        ("factors", jnp.ones((3, 5)), "covariance of 'x/b' has no mean of its shape"),
        ("factors", jnp.ones(()), "covariance of 'x/b' has no mean of its shape"),
        ("factors", jnp.ones((2, 4)), "factors: their leaves have no common number"),
        ("factors", jnp.full((3, 4), jnp.inf), "factors of 'x/b' is not finite"),
    ],
)
def test_a_wrong_file_is_refused(group, leaf, message, tmp_path):
    changed(made(), group, x_b=leaf).save(tmp_path / "p")
    with pytest.raises(ValueError, match=message):
        load_posterior(tmp_path / "p")


def test_a_leaf_with_half_a_covariance_is_refused(tmp_path):
    changed(made(), "diagonal", point=jnp.ones(2)).save(tmp_path / "p")
    with pytest.raises(ValueError, match="a leaf lacks its diagonal or its factors"):
        load_posterior(tmp_path / "p")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda p: p.temper(0.0), "tau: 0.0 is not > 0"),
        (lambda p: p.prune(1.5), "prune: 1.5 is not in [0, 1]"),
        (lambda p: LowRank([jnp.ones(2)], {}, {}).save("x"), "mean: only trees"),
    ],
)
def test_wrong_arguments(action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        action(made())
