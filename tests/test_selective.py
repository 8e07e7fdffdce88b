"""The abstention threshold: its guarantee, and the binomial behind it."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax.selective import binomial_cdf, fewest_accepted, fit_threshold


def draw(rng, n, power):
    """Confidences, and errors that are rarer at higher ones."""
    confidence = rng.random(n)
    return confidence, rng.random(n) >= (1 - confidence) ** power


def true_risk(threshold, power):
    """Share of errors above a threshold: the integral of (1 - c)^power, divided."""
    return (1 - threshold) ** power / (power + 1)


@pytest.mark.parametrize(
    ("n", "power", "max_risk", "delta"),
    [(300, 2.0, 0.1, 0.1), (2000, 1.0, 0.1, 0.1), (500, 3.0, 0.05, 0.2)],
)
def test_the_guarantee_fails_as_rarely_as_it_says(n, power, max_risk, delta):
    rng = np.random.default_rng(5)
    draws, found = 1000, []
    for _ in range(draws):
        threshold = fit_threshold(*draw(rng, n, power), max_risk, delta)
        found.append(threshold.confidence)
    chosen = np.array([value for value in found if value < math.inf])
    violated = (true_risk(np.maximum(chosen, 0), power) > max_risk).sum()
    assert violated <= delta * draws + 5 * math.sqrt(delta * (1 - delta) * draws)
    # It is of use: nearly always one is found, and it accepts most of what is legal.
    legal = 1 - (max_risk * (power + 1)) ** (1 / power)
    assert len(chosen) > 0.8 * draws
    assert np.median(1 - chosen) > 0.6 * (1 - legal)


def test_what_is_always_right_is_accepted_whole():
    confidence = np.linspace(0.5, 1, 100)
    found = fit_threshold(confidence, np.ones(100, bool), 0.05, 0.05)
    assert (found.accepted, found.errors) == (100, 0)
    assert found.confidence == -math.inf


def test_what_is_always_wrong_is_refused():
    found = fit_threshold(np.linspace(0.5, 1, 100), np.zeros(100, bool), 0.05, 0.05)
    assert found == (math.inf, 0, 0)


@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 400))
def test_counts_are_those_above_the_threshold(seed, levels):
    """Also with ties, of which a threshold accepts all or none."""
    rng = np.random.default_rng(seed)
    confidence, correct = draw(rng, 400, 2.0)
    confidence = np.ceil(confidence * levels) / levels
    found = fit_threshold(confidence, correct, 0.15, 0.1)
    above = confidence > found.confidence
    assert found.accepted == above.sum()
    assert found.errors == (above & ~correct).sum()
    if found.accepted:
        bound = scipy.stats.binomtest(found.errors, found.accepted, 0.5, "less")
        interval = bound.proportion_ci(0.9, "exact")
        assert interval.high <= 0.15 + 1e-9
        assert found.accepted >= fewest_accepted(0.15, 0.1)


@given(n=st.integers(1, 3000), share=st.floats(0, 1), rate=st.floats(0.001, 0.999))
def test_binomial_cdf_is_that_of_scipy(n, share, rate):
    k = int(share * n)
    wanted = scipy.stats.binom.cdf(k, n, rate)
    np.testing.assert_allclose(binomial_cdf(k, n, rate), wanted, rtol=1e-8, atol=1e-300)


@given(risk=st.floats(0.001, 0.9), delta=st.floats(0.001, 0.9))
def test_the_fewest_are_the_first_that_can_pass(risk, delta):
    fewest = fewest_accepted(risk, delta)
    assert binomial_cdf(0, fewest, risk) <= delta * (1 + 1e-9)
    assert fewest == 1 or binomial_cdf(0, fewest - 1, risk) > delta * (1 - 1e-9)


def test_too_few_examples_are_refused():
    with pytest.raises(ValueError, match=r"^max_risk: 0.05 at delta 0.05 needs 59 ex"):
        fit_threshold(np.linspace(0, 1, 58), np.ones(58, bool), 0.05, 0.05)


@pytest.mark.parametrize(
    ("risk", "delta", "name"),
    [(0.0, 0.1, "max_risk"), (1.0, 0.1, "max_risk"), (0.1, 1.5, "delta")],
)
def test_illegal_numbers(risk, delta, name):
    with pytest.raises(ValueError, match=rf"^{name}: .* is not in \(0, 1\)$"):
        fewest_accepted(risk, delta)
