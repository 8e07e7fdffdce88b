"""The metrics of GLUE against scikit-learn and SciPy."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ivon_jax import metrics
from ivon_jax.metrics import regression

few = settings(max_examples=25, deadline=None)
matthews, f1 = jax.jit(metrics.matthews), jax.jit(metrics.f1)
summary = jax.jit(regression.summary)


def certain(classes, count):
    """Log-probabilities that predict these classes."""
    one_hot = np.eye(count, dtype=np.float32)[np.asarray(classes)]
    return jnp.log(jnp.asarray(0.9 * one_hot + 0.1 / count))


@given(
    st.sampled_from([(12, 2), (40, 3)]).flatmap(
        lambda shape: st.tuples(
            st.just(shape[1]),
            *[
                st.lists(
                    st.integers(0, shape[1] - 1), min_size=shape[0], max_size=shape[0]
                )
            ]
            * 2,
        )
    )
)
@few
def test_matthews_and_f1_equal_scikit_learn(case):
    count, labels, predicted = case
    args = certain(predicted, count), jnp.array(labels)
    assume(len({*labels, *predicted}) > 1)  # scikit-learn warns; see the next test
    expected = sklearn.metrics.matthews_corrcoef(labels, predicted)
    assert float(matthews(*args)) == pytest.approx(expected, abs=1e-5)
    if count == 2:
        expected = sklearn.metrics.f1_score(labels, predicted, zero_division=0)
        assert float(f1(*args)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("labels", [[0] * 7, [1] * 7, [0, 1, 0, 1, 1, 0, 0]])
@pytest.mark.parametrize("predicted", [[0] * 7, [1] * 7])
def test_one_class_only(labels, predicted):
    labels, predicted = 149 * labels, 149 * predicted  # of which no mean is exact
    args = certain(predicted, 2), jnp.array(labels)
    assert float(matthews(*args)) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sklearn.metrics.f1_score(labels, predicted)
    assert float(metrics.f1(*args)) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [metrics.matthews, metrics.f1])
def test_wrong_values_make_scores_nan(metric):
    good = certain([0, 1, 1], 2)
    assert np.isnan(metric(good, jnp.array([0, 1, 2])))
    assert np.isnan(metric(good.at[1, 0].set(jnp.nan), jnp.array([0, 1, 1])))


@given(
    seed=st.integers(0, 2**32 - 1), tied=st.booleans(), shift=st.sampled_from([0, 1e3])
)
@few
def test_correlations_equal_scipy(seed, tied, shift):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 60))
    y = x * rng.uniform(-2, 2) + y
    x, y = (np.round(x, 1), np.round(y)) if tied else (x, y)
    x, y = (np.float32(values + shift) for values in (x, y))
    found = summary(x, y)
    x, y = np.float64(x), np.float64(y)
    wanted = {
        "pearson": scipy.stats.pearsonr(x, y).statistic,
        "spearman": scipy.stats.spearmanr(x, y).statistic,
        "mse": sklearn.metrics.mean_squared_error(x, y),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(found[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_correlations_with_a_constant_are_not_defined(value):
    constant, other = jnp.full(7, value), jnp.arange(7.0)
    for metric in (regression.pearson, regression.spearman):
        assert np.isnan(metric(constant, other))
        assert np.isnan(metric(other, constant))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_shows(bad):
    values = jnp.array([1.0, bad, 2.0])
    for metric in (regression.pearson, regression.spearman):
        assert np.isnan(metric(values, jnp.arange(3.0)))
    assert not np.isfinite(regression.mse(values, jnp.arange(3.0)))


def test_shapes_are_checked():
    with pytest.raises(Exception, match=r"values must be \[n\]|[Tt]ype-check"):
        regression.mse(jnp.ones((2, 1)), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="not empty"):
        regression.mse(jnp.ones(0), jnp.ones(0))


def test_16_bit_numbers_are_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(size=50), jnp.bfloat16)
    for metric in (regression.pearson, regression.spearman, regression.mse):
        found = metric(x, -x)
        assert found.dtype == jnp.float32
        assert float(found) == float(
            metric(x.astype(jnp.float32), -x.astype(jnp.float32))
        )


def test_scores_work_under_vmap():
    x, y = jax.random.normal(jax.random.key(0), (2, 3, 20))
    for metric in (regression.pearson, regression.spearman):
        mapped = jax.vmap(metric)(x, y)
        single = jnp.stack([metric(*pair) for pair in zip(x, y, strict=True)])
        np.testing.assert_allclose(mapped, single, rtol=1e-5)
