"""Calibration, abstention and intervals of a page, against other implementations."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from tiny_results import log_probs

from ivon_jax import metrics
from ivon_jax.train.report.intervals import normal, wilson
from ivon_jax.train.report.reliable import BINS, LEVELS, Ranked

LABELS = np.array([0, 1, 2, 1, 0] * 12, np.int32)


@pytest.fixture(scope="module")
def predictions():
    """Half of them twice, so that confidences are equal."""
    found = log_probs(LABELS, seed=3, draws=1, classes=3)[0]
    found[30:] = found[:30]
    return found


@given(st.integers(1, 300), st.floats(0, 1))
def test_wilson_is_scipys(trials, share):
    successes = round(share * trials)
    wanted = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    np.testing.assert_allclose(wilson(successes, trials), wanted, atol=1e-9)


def test_of_no_trials_nothing_is_known():
    assert wilson(0, 0) == (0.0, 1.0)


def test_normal_intervals_stay_in_the_metrics_range():
    assert normal("pearson", 0.9, 1.0) == (0.9, -1.0, 1.0)
    assert normal("perplexity", 1.5, 1.0)[1] == 1.0
    assert normal("density_nll", 0.0, 1.0)[1] == pytest.approx(-1.96, abs=1e-3)


def test_bins_are_those_of_a_reliability_diagram(predictions):
    wanted = metrics.reliability(jnp.asarray(predictions), jnp.asarray(LABELS), BINS)
    found = Ranked.of(predictions, LABELS).bins()
    assert [one.size for one in found] == wanted.count.tolist()
    for name in ("confidence", "accuracy"):
        values = [getattr(one, name) for one in found]
        np.testing.assert_allclose(values, getattr(wanted, name), atol=1e-6)
    filled = [one for one in found if one.size]
    assert all(one.interval[0] <= one.accuracy <= one.interval[1] for one in filled)


@pytest.mark.parametrize("level", [0, 5, 40, LEVELS[-1]])
def test_what_is_answered_is_scored_as_a_set_of_its_own(predictions, level):
    found = Ranked.of(predictions, LABELS).accepted(level)
    confidence = np.exp(predictions.max(axis=1).astype(float))
    kept = confidence >= found.threshold * (1 - 1e-12)
    assert found.size == kept.sum()
    # As many as asked for, and no more than ties require.
    wanted = len(LABELS) - level * len(LABELS) // 100
    assert found.size >= wanted > (confidence > found.threshold * (1 + 1e-12)).sum()
    own = jnp.asarray(predictions[kept]), jnp.asarray(LABELS[kept])
    for name in ("accuracy", "ece", "nll"):
        value, low, high = getattr(found, name)
        assert value == pytest.approx(float(getattr(metrics, name)(*own)), abs=1e-5)
        assert low <= value <= high
    assert found.errors == round((1 - found.accuracy[0]) * found.size)


def test_standard_errors_are_those_of_the_bootstrap():
    """Of overconfident predictions, whose gaps have clear signs."""
    labels = np.tile(LABELS, 20)
    logits = 3 * log_probs(labels, seed=5, draws=1, classes=3)
    predictions = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    resamples = metrics.bootstrap(
        jnp.asarray(predictions), jnp.asarray(labels), seed=0, resamples=4000
    )
    found = Ranked.of(predictions[0], labels).accepted(0)
    for name in ("nll", "ece"):
        value, _, high = getattr(found, name)
        error = resamples[name][:, 0].std()
        assert (high - value) / 1.96 == pytest.approx(error, rel=0.1), name


def test_the_curve_is_the_errors_above_each_confidence(predictions):
    right = predictions.argmax(axis=1) == LABELS
    largest = predictions.max(axis=1)
    wanted = []
    for threshold in sorted(set(largest.tolist()), reverse=True):
        kept = largest >= threshold
        wanted.append((kept.mean(), 1 - right[kept].mean()))
    found = Ranked.of(predictions, LABELS).curve()
    np.testing.assert_allclose([point[:2] for point in found], wanted, atol=1e-12)


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    labels = np.tile(LABELS, 20)
    predictions = log_probs(labels, seed=5, draws=1, classes=3)[0]
    found = Ranked.of(predictions, labels).curve()
    assert len(found) == 100
    assert found[0][0] == 1 / len(labels)
    assert found[-1][0] == 1
