"""Metrics against scikit-learn, SciPy and naive NumPy definitions."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import assume
from hypothesis import strategies as st
from metric_cases import (
    SHAPES,
    binary,
    cases,
    fast,
    few,
    float64,
    log,
    numpy_aurc,
    numpy_top,
    predictions,
)


@cases()
@few
def test_accuracy_equals_scikit_learn(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    expected = sklearn.metrics.accuracy_score(labels, log_probs.argmax(1))
    np.testing.assert_allclose(fast.accuracy(log_probs, labels), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_nll_equals_scikit_learn(shape):
    # Moderate logits: scikit-learn clips probabilities below float64's epsilon.
    for seed in range(5):
        log_probs, labels = predictions(seed, shape)
        expected = sklearn.metrics.log_loss(
            labels, float64(log_probs), labels=np.arange(shape[1])
        )
        np.testing.assert_allclose(fast.nll(log_probs, labels), expected, rtol=1e-5)


@cases()
@few
def test_nll_equals_its_definition(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    rows = np.asarray(log_probs, np.float64)
    expected = -np.mean([row[y] for row, y in zip(rows, labels, strict=True)])
    np.testing.assert_allclose(fast.nll(log_probs, labels), expected, rtol=1e-6)


@cases()
@few
def test_brier_equals_its_definition(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    one_hot = np.eye(shape[1])[np.asarray(labels)]
    expected = ((float64(log_probs) - one_hot) ** 2).sum() / shape[0]
    np.testing.assert_allclose(fast.brier(log_probs, labels), expected, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_brier_equals_scikit_learn(shape):
    brier_score_loss = sklearn.metrics.brier_score_loss
    if "scale_by_half" not in inspect.signature(brier_score_loss).parameters:
        pytest.skip("this scikit-learn has no multiclass Brier score")
    log_probs, labels = predictions(0, shape)
    expected = brier_score_loss(
        labels, float64(log_probs), labels=np.arange(shape[1]), scale_by_half=False
    )
    np.testing.assert_allclose(fast.brier(log_probs, labels), expected, atol=1e-6)


@cases()
@few
def test_entropy_equals_scipy(seed, shape, scale):
    log_probs, _ = predictions(seed, shape, scale)
    expected = scipy.stats.entropy(float64(log_probs), axis=-1)
    np.testing.assert_allclose(fast.entropy(log_probs), expected, atol=2e-6)


@cases()
@few
def test_aurc_equals_the_definition(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    # Spread the confidences that are equal in float32: the definition has no ties.
    log_probs -= 2e-5 * jnp.arange(shape[0], dtype=jnp.float32)[:, None]
    confidence, correct = numpy_top(log_probs, labels)
    assume(len(np.unique(confidence)) == shape[0])
    expected = numpy_aurc(confidence, correct)
    np.testing.assert_allclose(fast.aurc(log_probs, labels), expected, atol=1e-6)


def test_aurc_of_ties_is_the_mean_over_their_orders():
    confidence, correct = [0.9, 0.7, 0.7, 0.7, 0.6, 0.6], [1, 1, 0, 1, 0, 1]
    areas = []
    for order in itertools.permutations(range(6)):
        if all(confidence[i] >= confidence[j] for i, j in itertools.pairwise(order)):
            errors = 1 - np.array(correct)[list(order)]
            areas.append(np.mean(np.cumsum(errors) / np.arange(1, 7)))
    actual = fast.aurc(binary(confidence), 1 - jnp.array(correct))
    np.testing.assert_allclose(actual, np.mean(areas), rtol=1e-6)


def test_aurc_is_best_when_errors_are_least_confident():
    log_probs = binary([0.95, 0.9, 0.8, 0.6])
    best = fast.aurc(log_probs, jnp.array([0, 0, 0, 1]))
    worst = fast.aurc(log_probs, jnp.array([1, 0, 0, 0]))
    np.testing.assert_allclose(best, 1 / 16, rtol=1e-6)
    np.testing.assert_allclose(worst, (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, rtol=1e-6)


def test_aurc_tells_confidences_apart_that_round_to_one():
    log_probs = jnp.array([[-1e-9, -20.0], [-2e-9, -20.0]], jnp.float32)
    assert fast.aurc(log_probs, jnp.array([0, 1])) == 0.25
    assert fast.aurc(log_probs, jnp.array([1, 0])) == 0.75


@pytest.mark.parametrize("samples", [1, 2, 5])
def test_disjoint_certain_samples_have_mutual_information_log_s(samples):
    log_probs = log(np.eye(samples, 6))[:, None, :]
    actual = fast.mutual_information(log_probs)
    np.testing.assert_allclose(actual, [np.log(samples)], atol=1e-6)


@cases()
@few
def test_identical_samples_have_no_mutual_information(seed, shape, scale):
    log_probs, _ = predictions(seed, shape, scale)
    actual = fast.mutual_information(jnp.stack([log_probs] * 3))
    np.testing.assert_allclose(actual, 0, atol=1e-6)
    assert (actual >= 0).all()


@cases(samples=st.sampled_from([2, 5]))
@few
def test_mutual_information_is_the_mean_divergence_from_the_mean(
    seed, shape, scale, samples
):
    rng = np.random.default_rng(seed)
    logits = jnp.asarray(rng.normal(size=(samples, *shape)) * scale, jnp.float32)
    actual = fast.mutual_information(jax.nn.log_softmax(logits))
    probs = float64(logits)
    expected = scipy.stats.entropy(probs, probs.mean(0)[None], axis=-1).mean(0)
    np.testing.assert_allclose(actual, expected, atol=3e-6)
    assert (actual >= 0).all()
    assert (actual <= np.log(min(samples, shape[1])) + 1e-6).all()


def test_all_ties():
    """Equal confidences: the order is arbitrary and the bins do not matter."""
    log_probs, labels = binary([0.75] * 8), jnp.array([0, 1, 1, 0, 1, 1, 1, 1])
    for error in [fast.ece, fast.adaptive_ece]:
        for bins in [1, 3, 20]:
            np.testing.assert_allclose(error(log_probs, labels, bins), 0.5, rtol=1e-6)
    np.testing.assert_allclose(fast.aurc(log_probs, labels), 0.75, rtol=1e-6)


def test_tied_classes_predict_the_first():
    log_probs = jnp.log(jnp.array([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]]))
    assert fast.accuracy(log_probs, jnp.array([0, 1])) == 1
    assert fast.accuracy(log_probs, jnp.array([1, 2])) == 0


@pytest.mark.parametrize("n", [1, 4])
def test_certain_and_right(n):
    labels = jnp.arange(n, dtype=jnp.int32) % 3
    values = fast.summary(log(np.eye(3)[labels]), labels)
    assert values.pop("accuracy") == values.pop("coverage5") == 1
    assert all(value == 0 for value in values.values()), values


@pytest.mark.parametrize("n", [1, 4])
def test_certain_and_wrong(n):
    labels = jnp.arange(n, dtype=jnp.int32) % 3
    values = fast.summary(log(np.eye(3)[(labels + 1) % 3]), labels)
    assert values.pop("nll") == jnp.inf
    expected = dict.fromkeys(["ece", "ece15", "adaptive_ece", "aurc"], 1.0)
    expected |= {"mce": 1.0, "accuracy": 0.0, "brier": 2.0, "entropy": 0.0}
    assert values == expected | {"augrc": (n + 1) / (2 * n), "coverage5": 0.0}
