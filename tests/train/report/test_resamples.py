"""Metrics of numbers and text on resamples."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm, pearsonr
from tiny_results import numbers, tokens

from ivon_jax.metrics import resampled_means
from ivon_jax.train.objectives.text import Text
from ivon_jax.train.report.intervals import bootstrap_error, with_resamples
from ivon_jax.train.report.resamples import gaussian_nll, resampled

RNG = np.random.default_rng(0)


def test_means_of_resamples_are_those_of_drawn_rows():
    """Of two examples a resample has 0, 1 or 2 times the second."""
    means = resampled_means(np.array([[0.0, 1.0], [1.0, 1.0]]), seed=0, resamples=4000)
    assert set(means[:, 0]) == {0.0, 0.5, 1.0}
    assert (means[:, 1] == 1).all()
    # Binomial shares, within five standard deviations.
    shares = [(means[:, 0] == value).mean() for value in (0, 0.5, 1)]
    np.testing.assert_allclose(shares, [0.25, 0.5, 0.25], atol=5 * 0.5 / 4000**0.5)


def some_numbers(draws=3, count=200):
    labels = RNG.normal(size=count).astype(np.float32)
    centre = labels + 0.5 * RNG.normal(size=count).astype(np.float32)
    return numbers(centre, draws), labels


def test_metrics_of_numbers():
    predictions, labels = some_numbers()
    (values,), found = resampled("number", [predictions], labels, seed=0)
    mean = predictions[..., 0].astype(float).mean(axis=0)
    assert values["mse"] == pytest.approx(np.square(mean - labels).mean())
    assert values["rmse"] == pytest.approx(values["mse"] ** 0.5)
    assert values["pearson"] == pytest.approx(pearsonr(mean, labels).statistic)
    assert {x.shape for x in found.values()} == {(2000, 1)}
    # The delta method's standard error of a root.
    error = np.square(mean - labels).std() / len(labels) ** 0.5 / (2 * values["rmse"])
    assert found["rmse"].std() == pytest.approx(error, rel=0.1)


def test_the_noise_is_the_likeliest_of_the_other_half():
    predictions, labels = some_numbers()
    draws = predictions[..., 0].astype(float)
    square, variance = np.square(draws.mean(axis=0) - labels), draws.var(axis=0)
    found = gaussian_nll(square, variance)

    def nll(noise, part):
        return -norm.logpdf(square[part] ** 0.5, 0, (variance[part] + noise) ** 0.5)

    even, odd = slice(0, None, 2), slice(1, None, 2)
    for part, other in ((even, odd), (odd, even)):
        best = minimize_scalar(
            lambda x, other=other: nll(np.exp(x), other).sum(),
            bounds=(-9, 3),
            method="bounded",
            options={"xatol": 1e-9},
        )
        np.testing.assert_allclose(found[part], nll(np.exp(best.x), part), rtol=1e-4)


def test_the_noise_of_a_point_is_its_mean_squared_error():
    square = np.array([1.0, 4.0, 1.0, 4.0])
    found = gaussian_nll(square, np.zeros(4))
    wanted = (np.log(2 * np.pi * np.array([4, 1, 4, 1])) + square / [4, 1, 4, 1]) / 2
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_numbers_that_are_all_alike(value):
    predictions = np.full((2, 6, 1), value, np.float32)
    (values,), _ = resampled("number", [predictions], np.zeros(6, np.float32), seed=0)
    assert values["rmse"] == value
    assert np.isfinite(values["density_nll"])
    assert np.isnan(values["pearson"])


def test_few_numbers_have_resamples_that_are_all_alike():
    """Of two examples half of the resamples have one of them twice."""
    predictions = np.float32([[[0.0], [1.0]]])
    labels = np.array([0.0, 2.0], np.float32)
    (values,), found = resampled("number", [predictions], labels, seed=0)
    assert values["pearson"] == pytest.approx(1)
    assert np.isnan(found["pearson"]).mean() == pytest.approx(0.5, abs=0.06)
    (row,) = with_resamples([values], found)
    assert row["errors"]["pearson"] == pytest.approx(0, abs=1e-9)
    assert np.isnan(bootstrap_error(np.full(3, np.nan)))


def test_metrics_of_text_are_those_of_the_objective():
    predictions, labels = tokens([3, 1, 4, 2], draws=5)
    (values,), found = resampled("text", [predictions], labels, seed=0)
    wanted = Text("completion", 100, False).score(predictions, labels)
    assert values == pytest.approx(wanted, rel=1e-6)
    # One example is drawn whole: its tokens are together.
    alone = predictions[:, :3], labels[:3]
    (values,), found = resampled("text", [alone[0]], alone[1], seed=0)
    np.testing.assert_allclose(found["nll"], values["nll"])
