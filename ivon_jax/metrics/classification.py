"""Metrics of predicted classes; see `ivon_jax.metrics` for the inputs."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ivon_jax.metrics._inputs import checked, exp, top_class, upcast
from ivon_jax.metrics.calibration import (
    adaptive_ece,
    augrc,
    aurc,
    coverage_at_risk,
    ece,
    mce,
)


def accuracy(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> Float[Array, ""]:
    """Returns the fraction of examples whose most probable class is the label.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalar in [0, 1].

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
        >>> print(f"{accuracy(log_probs, jnp.array([0, 1])):.2f}")
        0.50
    """
    _, correct = top_class(log_probs, labels)
    return correct.mean()


def nll(log_probs: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Returns the mean negative log-likelihood of the labels (the logarithmic score).

    Infinite if a label has probability 0; clipping would hide it.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalar in nats, in [0, inf].

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
        >>> print(f"{nll(log_probs, jnp.array([0, 1])):.4f}")
        0.6547

    References:
        Good, "Rational decisions", J. Royal Statistical Society B, 1952.
    """
    log_probs, labels = checked(log_probs, labels)
    return jnp.mean(-jnp.take_along_axis(log_probs, labels[:, None], axis=1))


def brier(log_probs: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Returns the squared distance between probabilities and one-hot labels.

    Summed over classes and averaged over examples, as in Brier's paper; some
    libraries halve it or divide it by the number of classes.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalar in [0, 2].

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
        >>> print(f"{brier(log_probs, jnp.array([0, 1])):.2f}")
        0.50

    References:
        Brier, "Verification of forecasts expressed in terms of probability",
        Monthly Weather Review, 1950.
    """
    log_probs, labels = checked(log_probs, labels)
    target = jax.nn.one_hot(labels, log_probs.shape[1], dtype=log_probs.dtype)
    return jnp.square(exp(log_probs) - target).sum(axis=1).mean()


def entropy(log_probs: Float[Array, "*n c"]) -> Float[Array, "*n"]:
    """Returns the entropy of each predictive distribution, with 0 log 0 = 0.

    Args:
        log_probs: log class probabilities, [..., c].

    Returns:
        Entropies in nats, [...], in [0, log c].

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [1.0, 0.0]]))
        >>> print(entropy(log_probs))
        [0.6931472 0.       ]

    References:
        Shannon, "A mathematical theory of communication", 1948.
    """
    log_probs = upcast(log_probs)
    probs = exp(log_probs)
    return jnp.sum(probs * jnp.where(probs > 0, -log_probs, 0.0), axis=-1)


def mutual_information(log_probs: Float[Array, "s n c"]) -> Float[Array, "n"]:
    """Returns the mutual information of label and posterior sample (BALD).

    The entropy of the samples' mean prediction minus their mean entropy: the part of
    the predictive entropy due to the samples' disagreement.

    Args:
        log_probs: log class probabilities of s posterior samples, [s, n, c].

    Returns:
        Mutual information per example in nats, [n], in [0, log min(s, c)].

    Example:
        >>> probs = jnp.array([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]])
        >>> print(mutual_information(jnp.log(probs)))
        [0.6931472 0.       ]

    References:
        Houlsby et al., "Bayesian active learning for classification and preference
        learning", 2011.
    """
    log_probs = upcast(log_probs)
    if log_probs.ndim != 3:
        raise ValueError(f"log_probs must be [s, n, c], got shape {log_probs.shape}")
    mean = jax.nn.logsumexp(log_probs, axis=0) - np.log(len(log_probs)).item()
    # Rounding could leave it just below zero.
    return jnp.maximum(entropy(mean) - entropy(log_probs).mean(axis=0), 0.0)


def matthews(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> Float[Array, ""]:
    """Returns Matthews' correlation of predictions and labels, for any classes.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalar in [-1, 1]; 0 if labels or predictions have only one class.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]))
        >>> print(f"{matthews(log_probs, jnp.array([0, 1, 1])):.2f}")
        0.50

    References:
        Gorodkin, "Comparing two K-category assignments by a K-category correlation
        coefficient", Computational Biology and Chemistry, 2004.
    """
    # The first is subtracted, so that a single class gives exact zeros.
    moved = (x - x[:1] for x in _one_hots(log_probs, labels))
    predicted, right = (x - x.mean(axis=0, keepdims=True) for x in moved)
    scale = jnp.sum(predicted * predicted) * jnp.sum(right * right)
    covariance = jnp.sum(predicted * right)
    return jnp.where(
        scale == 0, 0, covariance / jnp.sqrt(jnp.where(scale == 0, 1, scale))
    )


def f1(log_probs: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Returns F1 of class 1: the harmonic mean of its precision and recall.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalar in [0, 1]; 0 if neither labels nor predictions have the class.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]))
        >>> print(f"{f1(log_probs, jnp.array([0, 1, 1])):.2f}")
        0.67

    References:
        van Rijsbergen, "Information retrieval", 1979.
    """
    predicted, right = (one_hot[:, 1] for one_hot in _one_hots(log_probs, labels))
    there = jnp.sum(predicted + right)
    return 2 * jnp.sum(predicted * right) / jnp.where(there == 0, 1, there)


def summary(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> dict[str, Float[Array, ""]]:
    """Returns all metrics of a set of predictions.

    `ece`, `adaptive_ece` and `mce` have 10 bins, `ece15` has 15; `entropy` is the mean,
    and `coverage5` is `coverage_at_risk` of 5 %.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalars by name.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
        >>> values = summary(log_probs, jnp.array([0, 1]))
        >>> print(f"{values['accuracy']:.2f} {values['brier']:.2f}")
        0.50 0.50
    """
    return {
        "accuracy": accuracy(log_probs, labels),
        "ece": ece(log_probs, labels, bins=10),
        "ece15": ece(log_probs, labels, bins=15),
        "adaptive_ece": adaptive_ece(log_probs, labels, bins=10),
        "mce": mce(log_probs, labels, bins=10),
        "nll": nll(log_probs, labels),
        "brier": brier(log_probs, labels),
        "entropy": entropy(log_probs).mean(),
        "aurc": aurc(log_probs, labels),
        "augrc": augrc(log_probs, labels),
        "coverage5": coverage_at_risk(log_probs, labels, risk=0.05),
    }


def _one_hots(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """Returns predicted and right classes; NaN for an example with illegal values."""
    log_probs, labels = checked(log_probs, labels)
    wrong = jnp.isnan(log_probs).any(axis=1, keepdims=True)
    indices = (jnp.argmax(log_probs, axis=1), labels)
    classes, dtype = log_probs.shape[1], log_probs.dtype
    predicted, right = (jax.nn.one_hot(i, classes, dtype=dtype) for i in indices)
    return jnp.where(wrong, jnp.nan, predicted), jnp.where(wrong, jnp.nan, right)
