"""Types, transformations and illegal inputs, for every metric."""

from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from metric_cases import (
    SCALAR_METRICS,
    cases,
    fast,
    few,
    float64,
    numpy_adaptive_ece,
    numpy_aurc,
    numpy_ece,
    numpy_top,
    predictions,
)

from ivon_jax import metrics


def test_one_impossible_label_spoils_only_the_nll():
    log_probs, labels = predictions(0, (20, 3))
    log_probs = log_probs.at[0].set(jnp.array([-jnp.inf, 0.0, -jnp.inf]))
    values = fast.summary(log_probs, labels.at[0].set(0))
    assert values.pop("nll") == jnp.inf
    assert all(jnp.isfinite(value) for value in values.values()), values


@pytest.mark.parametrize("label", [-100, -1, 3])
def test_a_label_out_of_range_makes_every_metric_nan(label):
    log_probs, labels = predictions(0, (8, 3))
    values = fast.summary(log_probs, labels.at[2].set(label))
    assert jnp.isfinite(values.pop("entropy"))
    assert all(jnp.isnan(value) for value in values.values()), values


@pytest.mark.parametrize("classes", [np.s_[:], 0, 2])
def test_a_nan_probability_makes_every_metric_nan(classes):
    log_probs, labels = predictions(0, (8, 3))
    values = fast.summary(log_probs.at[2, classes].set(jnp.nan), labels)
    assert all(jnp.isnan(value) for value in values.values()), values
    samples = jnp.stack([log_probs, log_probs.at[2, classes].set(jnp.nan)])
    information = jnp.isnan(fast.mutual_information(samples))
    np.testing.assert_array_equal(information, np.arange(8) == 2)


NO_LOG_PROBS = {
    "logits": [2.0, -1.0, 0.5],
    "probabilities": [0.5, 0.25, 0.25],
    "negative logits": [-5.0, -3.0, -4.0],
    "base 10": [-0.30103, -0.60206, -0.60206],
    "negated": [0.69315, 1.38629, 1.38629],
    "all impossible": [-np.inf, -np.inf, -np.inf],
    "infinite": [np.inf, -np.inf, -np.inf],
    "off by 2 %": np.log([0.5, 0.25, 0.27]),
}


@pytest.mark.parametrize("row", NO_LOG_PROBS.values(), ids=NO_LOG_PROBS.keys())
def test_no_log_probabilities_make_every_metric_nan(row):
    log_probs, labels = predictions(0, (8, 3))
    wrong = log_probs.at[2].set(jnp.asarray(row, jnp.float32))
    values = jax.jit(fast.summary)(wrong, labels)
    values |= {f.__name__: f(wrong, labels) for f in (metrics.matthews, metrics.f1)}
    assert all(jnp.isnan(value) for value in values.values()), values
    assert jnp.isnan(fast.reliability(wrong, labels).confidence).any()
    entropies = jnp.isnan(fast.entropy(wrong))
    information = jnp.isnan(fast.mutual_information(jnp.stack([log_probs, wrong])))
    for found in (entropies, information):
        np.testing.assert_array_equal(found, np.arange(8) == 2)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("classes", [1, 2, 1000])
def test_rounded_log_probabilities_are_taken(dtype, classes):
    """A softmax computed and kept in 16 bits does not sum to 1 exactly."""
    logits = 5 * jax.random.normal(jax.random.key(classes), (200, classes))
    log_probs = jax.nn.log_softmax(logits.astype(dtype))
    values = fast.summary(log_probs, jnp.zeros(200, jnp.int32))
    assert all(jnp.isfinite(value) for value in values.values()), values


@pytest.mark.parametrize("bins", [0, -3])
@pytest.mark.parametrize(
    "metric", [metrics.reliability, metrics.ece, metrics.adaptive_ece, metrics.mce]
)
def test_too_few_bins_are_an_error(metric, bins):
    with pytest.raises(ValueError, match=rf"^bins: {bins} is not >= 1$"):
        metric(*predictions(0, (4, 2)), bins=bins)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
@pytest.mark.parametrize("metric", [*SCALAR_METRICS, metrics.reliability])
def test_empty_input_is_an_error(metric, shape):
    with pytest.raises(ValueError, match=r"^log_probs must not be empty.*$"):
        metric(jnp.zeros(shape), jnp.zeros(shape[0], jnp.int32))


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3)])
def test_empty_samples_are_an_error(shape):
    with pytest.raises(ValueError, match="log_probs must not be empty"):
        metrics.mutual_information(jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(1,), (3,), (4, 1)])
@pytest.mark.parametrize("metric", SCALAR_METRICS)
def test_shapes_that_would_broadcast_are_an_error(metric, shape):
    """Also without the run-time type checks that only the tests install."""
    labels = jnp.zeros(shape, jnp.int32)
    with pytest.raises(jaxtyping.TypeCheckError):
        metric(jnp.zeros((4, 2)), labels)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match="log_probs must be"):
            metric(jnp.zeros((4, 2)), labels)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    ("dtype", "label_dtype"), [(jnp.float16, jnp.int8), (jnp.bfloat16, jnp.int32)]
)
def test_16_bit_inputs_are_computed_in_float32(dtype, label_dtype):
    log_probs, labels = predictions(3, (100, 5), 2.0)
    log_probs, labels = log_probs.astype(dtype), labels.astype(label_dtype)
    actual = fast.summary(log_probs, labels)
    expected = fast.summary(log_probs.astype(jnp.float32), labels)
    assert {value.dtype for value in actual.values()} == {jnp.dtype("float32")}
    close = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, actual, expected)
    stacked = jnp.stack([log_probs, log_probs[::-1]])
    close(
        fast.mutual_information(stacked),
        fast.mutual_information(stacked.astype(jnp.float32)),
        atol=1e-6,
    )


def test_float64_inputs_are_computed_in_float64():
    with jax.enable_x64(True):
        logits = np.random.default_rng(0).normal(size=(50, 4))
        log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float64))
        labels = jnp.asarray(np.arange(50) % 4)
        values = fast.summary(log_probs, labels)
        top = numpy_top(log_probs, labels)
        expected = {
            "ece": numpy_ece(np.exp(top[0]), top[1], 10),
            "ece15": numpy_ece(np.exp(top[0]), top[1], 15),
            "adaptive_ece": numpy_adaptive_ece(*top, 10),
            "nll": sklearn.metrics.log_loss(labels, np.exp(np.asarray(log_probs))),
            "entropy": scipy.stats.entropy(float64(log_probs), axis=-1).mean(),
            "aurc": numpy_aurc(*top),
        }
        for name, value in expected.items():
            np.testing.assert_allclose(values[name], value, rtol=1e-12, err_msg=name)


def test_many_examples_do_not_lose_precision():
    log_probs, labels = predictions(0, (300_000, 2))
    probs, (log_confidence, correct) = float64(log_probs), numpy_top(log_probs, labels)
    values = fast.summary(log_probs, labels)
    expected = {
        "accuracy": correct.mean(),
        "ece": numpy_ece(np.exp(log_confidence), correct, 10),
        "nll": sklearn.metrics.log_loss(labels, probs),
        "entropy": scipy.stats.entropy(probs, axis=-1).mean(),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, rtol=2e-5, err_msg=name)


def test_summary_holds_each_metric():
    log_probs, labels = predictions(5, (60, 3))
    assert metrics.summary(log_probs, labels) == {
        "accuracy": metrics.accuracy(log_probs, labels),
        "ece": metrics.ece(log_probs, labels, 10),
        "ece15": metrics.ece(log_probs, labels, 15),
        "adaptive_ece": metrics.adaptive_ece(log_probs, labels, 10),
        "mce": metrics.mce(log_probs, labels, 10),
        "nll": metrics.nll(log_probs, labels),
        "brier": metrics.brier(log_probs, labels),
        "entropy": metrics.entropy(log_probs).mean(),
        "aurc": metrics.aurc(log_probs, labels),
        "augrc": metrics.augrc(log_probs, labels),
        "coverage5": metrics.coverage_at_risk(log_probs, labels, risk=0.05),
    }


def test_jit_and_vmap_change_nothing():
    batches = [predictions(seed, (33, 4), 2.0) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    mapped = jax.jit(jax.vmap(metrics.summary))(*stacked)
    diagrams = jax.vmap(partial(metrics.reliability, bins=7))(*stacked)
    for i, batch in enumerate(batches):
        close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
        expected = metrics.summary(*batch)
        jax.tree.map(close, jax.jit(metrics.summary)(*batch), expected)
        jax.tree.map(close, {name: x[i] for name, x in mapped.items()}, expected)
        expected = metrics.reliability(*batch, bins=7)
        jax.tree.map(close, jax.tree.map(lambda x, i=i: x[i], diagrams), expected)
    log_probs = stacked[0]
    information = metrics.mutual_information(log_probs)
    close(jax.jit(metrics.mutual_information)(log_probs), information)
    # One example at a time is the same as all of them at once.
    single = jax.vmap(lambda x: metrics.mutual_information(x[:, None])[0], 1)
    close(single(log_probs), information)


@pytest.mark.parametrize("bins", [10, 15])
def test_bins_can_be_a_static_argument(bins):
    batch = predictions(0, (40, 3))
    for metric in [metrics.ece, metrics.adaptive_ece]:
        jitted = jax.jit(metric, static_argnames="bins")(*batch, bins=bins)
        np.testing.assert_allclose(jitted, metric(*batch, bins), atol=1e-6)


@cases()
@few
def test_order_of_examples_does_not_matter(seed, shape, scale):
    log_probs, labels = predictions(seed, shape, scale)
    # Every second example repeats another's prediction, so there are ties.
    log_probs = jnp.concatenate([log_probs, log_probs])
    labels = jnp.concatenate([labels, (labels + 1) % shape[1]])
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = fast.summary(log_probs[order], labels[order])
    for name, value in fast.summary(log_probs, labels).items():
        np.testing.assert_allclose(
            shuffled[name], value, rtol=1e-5, atol=2e-6, err_msg=name
        )


@cases()
@few
def test_bounds(seed, shape, scale):
    values = fast.summary(*predictions(seed, shape, scale))
    upper = dict.fromkeys(["accuracy", "ece", "ece15", "adaptive_ece", "aurc"], 1.0)
    upper |= {
        "mce": 1.0,
        "augrc": 1.0,
        "coverage5": 1.0,
        "brier": 2.0,
        "nll": np.inf,
        "entropy": np.log(shape[1]),
    }
    assert values.keys() == upper.keys()
    for name, value in values.items():
        assert 0 <= value <= upper[name] + 1e-6, name
