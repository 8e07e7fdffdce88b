"""Random predictions, and naive definitions in NumPy, for tests of metrics."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax import metrics

SHAPES = [(1, 2), (10, 3), (150, 7)]
SCALAR_METRICS = [
    metrics.accuracy,
    metrics.nll,
    metrics.brier,
    metrics.ece,
    metrics.adaptive_ece,
    metrics.mce,
    metrics.aurc,
]
PLAIN = ["accuracy", "nll", "brier", "entropy", "mutual_information", "aurc", "summary"]
BINNED = ["ece", "adaptive_ece", "mce", "reliability"]
# Compiled whole, the metrics start much sooner than op by op.
fast = SimpleNamespace(
    **{name: jax.jit(getattr(metrics, name)) for name in PLAIN},
    **{
        name: jax.jit(getattr(metrics, name), static_argnames="bins") for name in BINNED
    },
)
# Few shapes, so that the examples share compiled programs; the values are random.
cases = partial(
    given,
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from(SHAPES),
    scale=st.sampled_from([0.1, 1.0, 10.0]),
)
few = settings(max_examples=20, deadline=None)


def predictions(seed, shape, scale=1.0):
    """Random log-probabilities and labels that follow them about half of the time."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape) * scale
    random = rng.integers(shape[-1], size=shape[0])
    labels = np.where(rng.random(shape[0]) < 0.5, logits.argmax(-1), random)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
    return log_probs, jnp.asarray(labels, jnp.int32)


def log(probs):
    """Float32 logarithms rounded from float64, with log 0 = -inf."""
    with np.errstate(divide="ignore"):
        return jnp.asarray(np.log(np.asarray(probs, np.float64)), jnp.float32)


def binary(confidences):
    """Two-class log-probabilities of which class 0 has the given confidence."""
    confidences = np.asarray(confidences, np.float64)
    return log(np.stack([confidences, 1 - confidences], axis=1))


def float64(log_probs):
    """Probabilities for the references, normalised beyond float32's rounding."""
    probs = np.exp(np.asarray(log_probs, np.float64))
    return probs / probs.sum(-1, keepdims=True)


def numpy_top(log_probs, labels):
    log_probs = np.asarray(log_probs, np.float64)
    correct = log_probs.argmax(1) == np.asarray(labels)
    return log_probs.max(1), correct.astype(np.float64)


def numpy_gap(confidence, correct, groups):
    gaps = [
        len(group) * abs(correct[group].mean() - confidence[group].mean())
        for group in groups
        if len(group)
    ]
    return sum(gaps) / len(confidence)


def numpy_ece(confidence, correct, bins):
    """Right-closed bins; rounding makes k/bins * bins the integer k."""
    scaled = np.round(confidence * bins, 9)
    groups = [
        np.flatnonzero((scaled > lo) & (scaled <= lo + 1) | (scaled == 0) & (lo == 0))
        for lo in range(bins)
    ]
    assert sum(map(len, groups)) == len(confidence)
    return numpy_gap(confidence, correct, groups)


def numpy_adaptive_ece(log_confidence, correct, bins):
    shared = np.array(
        [correct[log_confidence == value].mean() for value in log_confidence]
    )
    order = sorted(range(len(correct)), key=lambda i: log_confidence[i])
    return numpy_gap(np.exp(log_confidence), shared, np.array_split(order, bins))


def numpy_aurc(confidence, correct):
    """The definition with distinct confidences: one subset per coverage, O(n^2)."""
    risks = []
    for threshold in confidence:
        covered = confidence >= threshold
        risks.append(1 - correct[covered].mean())
    return np.mean(risks)
