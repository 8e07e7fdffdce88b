"""Calibration errors against torchmetrics and naive NumPy definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    numpy_adaptive_ece,
    numpy_ece,
    numpy_top,
    predictions,
)


@pytest.mark.parametrize(("bins", "scale"), [(1, 1.0), (10, 0.3), (15, 3.0)])
@pytest.mark.parametrize("shape", SHAPES)
def test_ece_equals_torchmetrics(shape, bins, scale):
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics")
    peer = torchmetrics.classification.MulticlassCalibrationError(
        num_classes=shape[1], n_bins=bins, norm="l1"
    )
    for seed in range(3):
        log_probs, labels = predictions(seed, shape, scale)
        expected = peer(
            torch.tensor(float64(log_probs)), torch.tensor(np.asarray(labels)).long()
        )
        np.testing.assert_allclose(
            fast.ece(log_probs, labels, bins), expected, atol=2e-6
        )


@pytest.mark.parametrize("bins", [1, 10, 15])
@pytest.mark.parametrize("shape", SHAPES)
def test_mce_equals_torchmetrics(shape, bins):
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics")
    peer = torchmetrics.classification.MulticlassCalibrationError(
        num_classes=shape[1], n_bins=bins, norm="max"
    )
    for seed in range(3):
        log_probs, labels = predictions(seed, shape)
        expected = peer(
            torch.tensor(float64(log_probs)), torch.tensor(np.asarray(labels)).long()
        )
        np.testing.assert_allclose(
            fast.mce(log_probs, labels, bins), expected, atol=2e-6
        )


def test_torchmetrics_puts_certainty_in_its_own_bin():
    torch = pytest.importorskip("torch")
    torchmetrics = pytest.importorskip("torchmetrics")
    peer = torchmetrics.classification.MulticlassCalibrationError(
        num_classes=2, n_bins=10, norm="l1"
    )
    log_probs, labels = binary([1.0, 0.95]), jnp.array([1, 0])
    theirs = peer(torch.tensor(float64(log_probs)), torch.tensor([1, 0]))
    np.testing.assert_allclose(theirs, (1.0 + 0.05) / 2, rtol=1e-6)
    np.testing.assert_allclose(fast.ece(log_probs, labels), 0.975 - 0.5, rtol=1e-6)


@cases(bins=st.sampled_from([1, 2, 10, 15]))
@few
def test_ece_equals_the_definition(seed, shape, scale, bins):
    log_probs, labels = predictions(seed, shape, scale)
    log_confidence, correct = numpy_top(log_probs, labels)
    confidence = np.exp(log_confidence)
    # On an edge float32 decides; the edges have tests of their own.
    edges = np.arange(1, bins) / bins
    assume((np.abs(confidence[:, None] - edges) > 1e-5).all())
    expected = numpy_ece(confidence, correct, bins)
    np.testing.assert_allclose(fast.ece(log_probs, labels, bins), expected, atol=2e-6)


@cases(bins=st.sampled_from([1, 3, 10, 300]))
@few
def test_adaptive_ece_equals_the_definition(seed, shape, scale, bins):
    log_probs, labels = predictions(seed, shape, scale)
    expected = numpy_adaptive_ece(*numpy_top(log_probs, labels), bins)
    np.testing.assert_allclose(
        fast.adaptive_ece(log_probs, labels, bins), expected, atol=2e-6
    )


@pytest.mark.parametrize(("n", "bins"), [(12, 5), (10, 10), (9, 4), (5, 8)])
def test_adaptive_ece_with_ties_equals_the_definition(n, bins):
    rng = np.random.default_rng(n)
    log_probs = binary(rng.choice([0.55, 0.7, 0.95], size=n))
    labels = jnp.asarray(rng.integers(2, size=n), jnp.int32)
    expected = numpy_adaptive_ece(*numpy_top(log_probs, labels), bins)
    np.testing.assert_allclose(
        fast.adaptive_ece(log_probs, labels, bins), expected, atol=1e-6
    )


@pytest.mark.parametrize("bins", [2, 5, 7, 10, 15, 20, 100])
def test_confidences_on_an_edge_belong_to_the_bin_below(bins):
    # The top class of enough classes can have any confidence from 1/bins to 1.
    tops = np.arange(1, bins + 1) / bins
    others = np.repeat((1 - tops[:, None]) / (8 * bins), 8 * bins, axis=1)
    labels = jnp.zeros(bins, jnp.int32)
    for rounded in [tops, tops.astype(np.float32)]:
        probs = np.concatenate([rounded[:, None], others], axis=1)
        diagram = fast.reliability(log(probs), labels, bins)
        np.testing.assert_array_equal(diagram.count, 1)
        np.testing.assert_allclose(diagram.confidence, tops, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 4, 5, 7, 10])
def test_tied_classes_are_on_the_edge_however_computed(classes):
    """A uniform prediction out of log_softmax belongs to the bin below 1/c."""
    for offset in np.random.default_rng(0).normal(size=20) * 10:
        logits = jnp.full((1, classes), offset, jnp.float32)
        for log_probs in [
            jax.nn.log_softmax(logits),
            jnp.log(jax.nn.softmax(logits)),
            jax.nn.log_softmax(logits) + jnp.float32(2e-7),
        ]:
            diagram = fast.reliability(log_probs, jnp.array([0]), bins=classes)
            assert diagram.count[0] == 1


@pytest.mark.parametrize("bins", [10, 15, 20])
def test_ece_on_and_beside_edges_equals_the_float64_reference(bins):
    edges = np.arange(bins // 2 + 1, bins + 1) / bins
    confidence = np.concatenate([edges, edges - 1e-4, edges[:-1] + 1e-4, [0.5]])
    labels = np.random.default_rng(bins).integers(2, size=len(confidence))
    expected = numpy_ece(confidence, 1.0 - labels, bins)
    actual = fast.ece(binary(confidence), jnp.asarray(labels, jnp.int32), bins)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_empty_bins_are_zero():
    diagram = fast.reliability(binary([0.95, 0.93]), jnp.array([0, 1]))
    np.testing.assert_array_equal(diagram.count, [0] * 9 + [2])
    np.testing.assert_allclose(diagram.accuracy, [0] * 9 + [0.5])
    np.testing.assert_allclose(diagram.confidence, [0] * 9 + [0.94], rtol=1e-6)


def test_fewer_examples_than_bins():
    """Each example has a bin of its own."""
    log_probs, labels = binary([0.9, 0.8, 0.6]), jnp.array([0, 1, 0])
    for error in [fast.ece, fast.adaptive_ece]:
        np.testing.assert_allclose(
            error(log_probs, labels, 50), (0.1 + 0.8 + 0.4) / 3, rtol=1e-6
        )


@cases()
@few
def test_reliability_accounts_for_every_example(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    confidence, correct, count = fast.reliability(log_probs, labels, bins=10)
    assert count.sum() == shape[0]
    for means, values in [
        (correct, numpy_top(log_probs, labels)[1]),
        (confidence, np.exp(numpy_top(log_probs, labels)[0])),
    ]:
        total = (np.asarray(means) * np.asarray(count)).sum()
        np.testing.assert_allclose(total, values.sum(), rtol=1e-5)
