"""The posterior's operations against numpy, scipy and torch; its file."""

import contextlib
import math
from fractions import Fraction

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_low_rank import products

from ivon_jax import Posterior, ivon, ivon_lora
from ivon_jax._tree import by_path

KEY = jax.random.key(2)
SHAPES = {"deep/b": (2, 3, 5), "deep/a": (2, 4, 3), "head": (5, 4), "bias": (7,)}


def draw(seed, ties=False, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    leaves = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    precision = {n: rng.uniform(0.5, 9.0, shape) for n, shape in shapes.items()}
    if ties:
        leaves = {n: np.round(leaf) for n, leaf in leaves.items()}
        precision = {n: np.ones_like(leaf) for n, leaf in precision.items()}
    mean = {"point": np.arange(3.0)}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = mean.setdefault(parents[0], {}) if parents else mean
        node[last] = leaf
    prior = {n: np.full((1,) * leaf.ndim, 2.0) for n, leaf in leaves.items()}
    return Posterior(
        *jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (mean, precision, prior))
    )


def assert_equal(actual, expected):
    """The same trees of the same arrays, bit for bit."""
    chex.assert_trees_all_equal(actual, expected, strict=True)


def pruned(posterior):
    """Which entries are gone, after checking that they are wholly gone."""
    mean = by_path(posterior.mean)
    gone = {n: np.isinf(np.asarray(p)) for n, p in posterior.precision.items()}
    for name, mask in gone.items():
        assert not np.asarray(mean[name])[mask].any()
    return gone


# --- temper and prune ---------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.25, 1, 3.0, math.inf])
def test_temper_divides_the_variance(tau):
    posterior = draw(0)
    tempered = posterior.temper(tau)
    for name, precision in posterior.precision.items():
        np.testing.assert_allclose(
            1 / tempered.precision[name], 1 / (np.asarray(precision) * tau), rtol=1e-6
        )
    assert_equal(tempered.mean, posterior.mean)
    theta, cold = posterior.draw(KEY), tempered.draw(KEY)
    jax.tree.map(
        lambda m, t, c: np.testing.assert_allclose(
            c - m, (t - m) / math.sqrt(tau), rtol=1e-4, atol=1e-6
        ),
        posterior.mean,
        theta,
        cold,
    )


@pytest.mark.parametrize("tau", [0, -1.0, math.nan])
def test_temper_refuses(tau):
    with pytest.raises(ValueError, match=rf"^tau: {tau} is not > 0$"):
        draw(0).temper(tau)


def test_sample_refuses():
    with pytest.raises(ValueError, match=r"^n: 0 is not >= 1$"):
        draw(0).sample(KEY, 0)


def numpy_lowest(score, ratio):
    """The flat positions of the lowest floor(ratio*d) by a plain Python sort."""
    ranked = sorted(range(len(score)), key=lambda i: (score[i], i))
    return set(ranked[: math.floor(Fraction(str(ratio)) * len(score))])


def score_of(posterior, name):
    """|m|/sqrt(v) in the arithmetic of float32, in which ties are ties."""
    mean, precision = by_path(posterior.mean)[name], posterior.precision[name]
    return np.abs(np.asarray(mean)) * np.sqrt(np.asarray(precision))


ratios = st.one_of(
    st.sampled_from([0, 1, 0.0, 1.0, 0.29, 0.57, 0.1, 1e-9, 1 - 1e-9]),
    st.floats(0, 1),
)


@settings(max_examples=40, deadline=None)
@given(ratio=ratios, seed=st.integers(0, 99), ties=st.booleans())
def test_global_prune_takes_the_lowest(ratio, seed, ties):
    posterior = draw(seed, ties)
    after = posterior.prune(ratio)
    names = list(posterior.precision)
    flat = np.concatenate([score_of(posterior, n).ravel() for n in names])
    gone = np.concatenate([pruned(after)[n].ravel() for n in names])
    assert set(np.flatnonzero(gone)) == numpy_lowest(flat, ratio)
    kept = jax.tree.map(lambda m, a: a[a != 0], posterior.mean, after.mean)
    originals = by_path(posterior.mean)
    for name, values in by_path(kept).items():
        assert np.isin(values, originals[name]).all()
    np.testing.assert_array_equal(after.mean["point"], posterior.mean["point"])


@settings(max_examples=40, deadline=None)
@given(ratio=ratios, seed=st.integers(0, 99), ties=st.booleans())
def test_matrix_prune_takes_the_lowest_of_each(ratio, seed, ties):
    posterior = draw(seed, ties)
    gone = pruned(posterior.prune(ratio, "matrix"))
    for name, mask in gone.items():
        rows = mask.reshape(-1, math.prod(mask.shape[-2:]))
        assert len(rows) == (2 if "deep" in name else 1)
        scores = score_of(posterior, name).reshape(rows.shape)
        for row, score in zip(rows, scores, strict=True):
            assert set(np.flatnonzero(row)) == numpy_lowest(score, ratio)


@pytest.mark.parametrize("hundredths", range(101))
def test_prune_counts_in_decimal(hundredths):
    """0.29 * 100 is 28.999999999999996 in binary; 29 entries go."""
    posterior = draw(0, shapes={"w": (10, 10)})
    gone = pruned(posterior.prune(hundredths / 100))
    assert gone["w"].sum() == hundredths


@settings(max_examples=40, deadline=None)
@given(
    first=ratios,
    second=ratios,
    seed=st.integers(0, 99),
    ties=st.booleans(),
    scope=st.sampled_from(["global", "matrix"]),
)
def test_pruning_twice_is_pruning_at_the_larger_ratio(first, second, seed, ties, scope):
    posterior = draw(seed, ties)
    twice = posterior.prune(first, scope).prune(second, scope)
    assert_equal(twice, posterior.prune(max(first, second), scope))


@pytest.mark.parametrize("scope", ["global", "matrix"])
def test_pruning_does_not_depend_on_the_temperature(scope):
    posterior = draw(3)
    expected = posterior.prune(0.4, scope).temper(4.0)
    assert_equal(posterior.temper(4.0).prune(0.4, scope), expected)


def test_pruning_a_point_changes_nothing():
    posterior = Posterior.point({"w": jnp.ones(3)})
    assert_equal(posterior.prune(1.0), posterior)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan])
def test_prune_refuses(ratio):
    with pytest.raises(ValueError, match=rf"^prune: {ratio} is not in \[0, 1\]$"):
        draw(0).prune(ratio)


# --- samples and densities ---------------------------------------------------------


def test_sample_is_a_stack_of_draws_that_depend_on_the_index_alone():
    posterior = draw(0).prune(0.3)
    few, many = posterior.sample(KEY, 2), posterior.sample(KEY, 5)
    jax.tree.map(lambda f, m: np.testing.assert_array_equal(f, m[:2]), few, many)
    for index in range(5):
        one = posterior.draw(KEY, index)
        jax.tree.map(
            lambda m, o, i=index: np.testing.assert_allclose(m[i], o, 1e-6), many, one
        )
    assert not np.array_equal(many["head"][0], many["head"][1])


def test_samples_have_the_posteriors_moments():
    posterior, n = draw(1).prune(0.2), 40_000
    draws = jax.jit(lambda: posterior.sample(KEY, n))()
    gone, mean = pruned(posterior), by_path(posterior.mean)
    for name, samples in by_path(draws).items():
        x, m = np.asarray(samples, float), np.asarray(mean[name], float)
        if name == "point":
            assert (x == m).all()
            continue
        v = 1 / np.asarray(posterior.precision[name], float)
        assert (x[:, gone[name]] == 0).all()
        assert (np.abs(x.mean(0) - m) <= 5 * np.sqrt(v / n)).all()
        assert (np.abs(((x - m) ** 2).mean(0) - v) <= 5 * v * math.sqrt(2 / n)).all()


def test_log_prob_equals_scipy():
    posterior = draw(4).prune(0.25)
    theta = draw(5).mean
    mean, at = by_path(posterior.mean), by_path(theta)
    expected = 0.0
    for name, gone in pruned(posterior).items():
        sd = 1 / np.sqrt(np.asarray(posterior.precision[name], float)[~gone])
        expected += scipy.stats.norm.logpdf(
            np.asarray(at[name], float)[~gone], np.asarray(mean[name])[~gone], sd
        ).sum()
    np.testing.assert_allclose(posterior.log_prob(theta), expected, rtol=1e-5)


def test_covariance_is_in_float32_on_every_chip():
    posterior = draw(0)
    jacobian = jax.tree.map(lambda leaf: jnp.ones((2, *leaf.shape)), posterior.mean)
    found = products(lambda p: p.covariance(jacobian), posterior)
    assert found and set(found) == {"(Precision.HIGHEST,"}


def test_kl_equals_quadrature_and_torch():
    posterior = draw(6).prune(0.25)
    mean, expected, by_hand = by_path(posterior.mean), 0.0, 0.0
    grid, weights = np.polynomial.hermite_e.hermegauss(
        20
    )  # exact: log q/p is quadratic
    for name, gone in pruned(posterior).items():
        m = np.asarray(mean[name], float)[~gone, None]
        sd = 1 / np.sqrt(np.asarray(posterior.precision[name], float)[~gone, None])
        x = m + sd * grid[None]
        ratio = scipy.stats.norm.logpdf(x, m, sd) - scipy.stats.norm.logpdf(
            x, 0, 1 / math.sqrt(2.0)
        )
        expected += (ratio @ weights).sum() / weights.sum()
        by_hand += torch_kl(m, sd)
    np.testing.assert_allclose(posterior.kl(), expected, rtol=1e-5)
    np.testing.assert_allclose(by_hand, expected, rtol=1e-9)


def torch_kl(m, sd):
    distributions = pytest.importorskip("torch").distributions
    torch = pytest.importorskip("torch")
    q = distributions.Normal(torch.tensor(m), torch.tensor(sd))
    p = distributions.Normal(torch.zeros(1, dtype=torch.float64), math.sqrt(0.5))
    return float(distributions.kl_divergence(q, p).sum())


def test_kl_reads_the_priors_of_the_optimizer():
    params = {"w": jnp.full((3, 4), 0.3)}
    fixed = ivon(0.1, ess=40.0, hess_init=2.0, weight_decay=0.25)
    posterior = Posterior.from_state(params, fixed.init(params))
    s0, v = 40.0 * 0.25, 1 / (40.0 * 2.25)
    expected = 12 * (s0 * (0.09 + v) - 1 - math.log(s0 * v)) / 2
    np.testing.assert_allclose(posterior.kl(), expected, rtol=1e-5)

    lora = ivon_lora(0.1, ess=40.0, hess_init=2.0)
    opt_state = lora.init(params)
    assert np.isposinf(Posterior.from_state(params, opt_state).kl())
    _, opt_state = lora.update(params, opt_state, params, key=KEY)
    prior = Posterior.from_state(params, opt_state).prior_precision["w"]
    # Eq. 2 at the first step's mean and variance: the prior that minimises the KL.
    np.testing.assert_allclose(prior, [[1 / (0.09 + 1 / 80)]], rtol=1e-5)


def test_kl_needs_a_prior():
    posterior = Posterior({"a": jnp.ones(2)}, {"a": jnp.ones(2)}, {})
    with pytest.raises(ValueError, match=r"^prior_precision: lacks the leaf 'a'$"):
        posterior.kl()


def test_operations_under_jit_and_vmap():
    posterior = draw(0)
    temper = jax.jit(lambda p, tau: p.prune(0.5).temper(tau))
    assert_equal(temper(posterior, 2.0), posterior.prune(0.5).temper(2.0))
    theta = jax.vmap(lambda key: posterior.draw(key))(jax.random.split(KEY, 3))
    assert theta["head"].shape == (3, 5, 4)


@pytest.mark.parametrize("transform", [lambda fn: fn, jax.jit], ids=["eager", "jit"])
@pytest.mark.parametrize("inside", [False, True])
def test_operations_that_mix_axes_on_a_mesh_of_explicit_axes(inside, transform):
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    leaf = jnp.linspace(-1, 1, 3 * 16 * 4).reshape(3, 16, 4)
    whole = Posterior({"w": leaf}, {"w": 1 + jnp.square(leaf)}, {})
    sharding = NamedSharding(mesh, PartitionSpec(None, "x", "y"))
    parts = jax.device_put(whole, sharding)

    def operations(posterior):
        jacobian = jax.tree.map(lambda m: jnp.stack([m, 2 * m]), posterior.mean)
        scopes = [posterior.prune(0.3, scope) for scope in ("global", "matrix")]
        return scopes, posterior.covariance(jacobian)

    with jax.set_mesh(mesh) if inside else contextlib.nullcontext():
        scopes, covariance = transform(operations)(parts)
    expected, expected_covariance = operations(whole)
    chex.assert_trees_all_equal(scopes, expected)
    np.testing.assert_allclose(covariance, expected_covariance, rtol=1e-5)
    assert all(x.sharding == sharding for x in jax.tree.leaves(scopes))


def test_outputs_of_a_point_do_not_vary():
    mean = {"w": jnp.ones((4, 5))}
    found = Posterior.point(mean).covariance({"w": jnp.ones((3, 4, 5))})
    np.testing.assert_array_equal(found, np.zeros((3, 3)))
