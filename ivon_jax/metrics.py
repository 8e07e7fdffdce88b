"""Accuracy, calibration and uncertainty of class predictions, as pure functions.

Every function reads natural-log class probabilities, `log_probs[n, c]` (normalised
over the last axis; -inf is a probability of 0), and most read `labels[n]` in
0..c-1. All of them work under `jax.jit` and `jax.vmap` (`bins` is static), and
compute in float32 at least, whatever the dtype given. An example's *confidence* is
its largest class probability; when classes tie, the first one is the prediction.

Values cannot raise errors under `jit`. Instead a NaN probability, probabilities that
do not sum to 1 (as of logits: apply `jax.nn.log_softmax` first), or a label outside
0..c-1, make every metric that reads them NaN: none is silently wrong.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Log-probabilities carry a rounding error: log(0.8) in float32 may exceed the true
# one. A confidence this close (relative) to a bin's edge is taken to lie on it.
_EDGE_TOLERANCE = 1e-6

# How far the log of an example's summed probabilities may be from 0: they may have
# been rounded to 16 bits, and where they still are, -20 is off by up to 0.06.
_SUM_TOLERANCE, _SUM_TOLERANCE_16_BITS = 1e-2, 0.1


class Reliability(NamedTuple):
    """A reliability diagram: what was promised and what came true, per bin.

    Attributes:
        confidence: mean confidence of the bin's examples, 0 if it has none.
        accuracy: fraction of the bin's examples predicted right, 0 if it has none.
        count: number of examples in the bin.
    """

    confidence: Float[Array, "bins"]
    accuracy: Float[Array, "bins"]
    count: Int[Array, "bins"]  # type: ignore[assignment]  # hides tuple.count


def accuracy(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> Float[Array, ""]:
    """Fraction of examples whose most probable class is the label.

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
    _, correct = _top_class(log_probs, labels)
    return correct.mean()


def nll(log_probs: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Mean negative log-likelihood of the labels (the logarithmic score).

    Infinite as soon as one label was given a probability of exactly 0: that is the
    score's value, and clipping would hide it.

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
    log_probs, labels = _checked(log_probs, labels)
    return jnp.mean(-jnp.take_along_axis(log_probs, labels[:, None], axis=1))


def brier(log_probs: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Squared distance between probabilities and one-hot label.

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
    log_probs, labels = _checked(log_probs, labels)
    target = jax.nn.one_hot(labels, log_probs.shape[1], dtype=log_probs.dtype)
    return jnp.square(_exp(log_probs) - target).sum(axis=1).mean()


def reliability(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"], bins: int = 10
) -> Reliability:
    """Confidence and accuracy in bins of equal width: a reliability diagram.

    Bin i of 0..bins-1 holds the confidences in (i/bins, (i+1)/bins]: each is closed
    on the right. A confidence within a relative 1e-6 of an edge counts as on it.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].
        bins: number of bins, at least 1.

    Returns:
        Mean confidence, accuracy and number of examples per bin, each [bins].

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]))
        >>> diagram = reliability(log_probs, jnp.array([0, 1, 1]), bins=4)
        >>> print(diagram.count, diagram.accuracy)
        [0 0 2 1] [0.  0.  0.5 1. ]

    References:
        DeGroot and Fienberg, "The comparison and evaluation of forecasters", 1983.
    """
    _check_bins(bins)
    log_confidence, correct = _top_class(log_probs, labels)
    # Inner edges only, so that nothing can fall outside the first and last bins.
    edges = np.log(np.arange(1, bins) / bins) + _EDGE_TOLERANCE
    index = jnp.searchsorted(jnp.asarray(edges, log_confidence.dtype), log_confidence)
    return _binned(_exp(log_confidence), correct, index, bins)


def ece(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"], bins: int = 10
) -> Float[Array, ""]:
    """Expected calibration error: mean |accuracy - confidence| over bins.

    Bins have equal width and weigh by their number of examples (the L1 form). They
    are those of `reliability`: right-closed (lo, hi]. torchmetrics' are left-closed
    instead, with a bin of its own for a confidence of exactly 1; off the edges the two
    agree.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].
        bins: number of bins, at least 1. Values for different `bins` do not compare.

    Returns:
        Scalar in [0, 1].

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
        >>> print(f"{ece(log_probs, jnp.array([0, 1])):.2f}")
        0.40

    References:
        Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using
        Bayesian binning", AAAI 2015.
        Guo et al., "On calibration of modern neural networks", ICML 2017.
    """
    return _calibration_gap(reliability(log_probs, labels, bins))


def adaptive_ece(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"], bins: int = 10
) -> Float[Array, ""]:
    """Expected calibration error over bins of equal mass.

    Examples are sorted by increasing confidence and cut as `numpy.array_split` does:
    the first n % bins bins hold one example more than the others, and if n < bins
    the last ones are empty. An example's correctness is averaged over all examples
    of the same confidence, so a cut through a tie does not depend on their order.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].
        bins: number of bins, at least 1.

    Returns:
        Scalar in [0, 1].

    Example:
        >>> probs = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
        >>> print(f"{adaptive_ece(jnp.log(probs), jnp.array([0, 0, 1]), bins=2):.2f}")
        0.20

    References:
        Nguyen and O'Connor, "Posterior calibration and exploratory analysis for
        natural language processing models", EMNLP 2015.
        Nixon et al., "Measuring calibration in deep learning", CVPR workshops 2019.
    """
    _check_bins(bins)
    log_confidence, correct = _sorted_top_class(log_probs, labels)
    smaller, larger_bins = divmod(len(correct), bins)
    sizes = smaller + (np.arange(bins) < larger_bins)
    index = jnp.asarray(np.repeat(np.arange(bins), sizes), jnp.int32)
    return _calibration_gap(_binned(_exp(log_confidence), correct, index, bins))


def entropy(log_probs: Float[Array, "*n c"]) -> Float[Array, "*n"]:
    """Entropy of each predictive distribution, with 0 log 0 = 0.

    Args:
        log_probs: log class probabilities, [..., c]: any leading axes.

    Returns:
        Entropies in nats, [...], in [0, log c].

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.5], [1.0, 0.0]]))
        >>> print(entropy(log_probs))
        [0.6931472 0.       ]

    References:
        Shannon, "A mathematical theory of communication", 1948.
    """
    log_probs = _upcast(log_probs)
    probs = _exp(log_probs)
    return jnp.sum(probs * jnp.where(probs > 0, -log_probs, 0.0), axis=-1)


def mutual_information(log_probs: Float[Array, "s n c"]) -> Float[Array, "n"]:
    """Information a label would give about which posterior sample is right (BALD).

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
    log_probs = _upcast(log_probs)
    if log_probs.ndim != 3:
        raise ValueError(f"log_probs must be [s, n, c], got shape {log_probs.shape}")
    mean = jax.nn.logsumexp(log_probs, axis=0) - np.log(len(log_probs)).item()
    # Rounding alone could leave it just below zero.
    return jnp.maximum(entropy(mean) - entropy(log_probs).mean(axis=0), 0.0)


def aurc(log_probs: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Area under the risk-coverage curve: how well confidence ranks the errors.

    The selective risk at coverage k/n is the error rate of the k most confident
    examples; the area is its mean over k = 1..n. Examples of equal confidence come
    in no particular order: the risk is its expectation over their random orders.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalar in [0, 1]; lower is better.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
        >>> print(f"{aurc(log_probs, jnp.array([0, 1])):.2f}")
        0.25

    References:
        El-Yaniv and Wiener, "On the foundations of noise-free selective
        classification", JMLR 2010.
        Geifman, Uziel and El-Yaniv, "Bias-reduced uncertainty estimation for deep
        neural classifiers", ICLR 2019.
    """
    _, correct = _sorted_top_class(log_probs, labels)
    errors = 1 - correct[::-1]
    covered = jnp.arange(1, len(errors) + 1, dtype=errors.dtype)
    return jnp.mean(jnp.cumsum(errors) / covered)


def matthews(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> Float[Array, ""]:
    """Matthews' correlation of predicted classes with labels, for any number of them.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalar in [-1, 1]; 0 if there is one class only, among labels or predictions.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]]))
        >>> print(f"{matthews(log_probs, jnp.array([0, 1, 1])):.2f}")
        0.50

    References:
        Gorodkin, "Comparing two K-category assignments by a K-category correlation
        coefficient", Computational Biology and Chemistry, 2004.
    """
    # Less the first, so that a single class becomes zeros exactly.
    moved = (x - x[:1] for x in _one_hots(log_probs, labels))
    predicted, right = (x - x.mean(axis=0, keepdims=True) for x in moved)
    scale = jnp.sum(predicted * predicted) * jnp.sum(right * right)
    covariance = jnp.sum(predicted * right)
    return jnp.where(
        scale == 0, 0, covariance / jnp.sqrt(jnp.where(scale == 0, 1, scale))
    )


def f1(log_probs: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """F1 of class 1: the harmonic mean of its precision and recall.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalar in [0, 1]; 0 if the class occurs neither in labels nor predictions.

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
    """All metrics of one set of predictions.

    The calibration error comes with the literature's two usual numbers of bins, 10
    (`ece`) and 15 (`ece15`); `adaptive_ece` has 10, and `entropy` is the mean.

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
        "nll": nll(log_probs, labels),
        "brier": brier(log_probs, labels),
        "entropy": entropy(log_probs).mean(),
        "aurc": aurc(log_probs, labels),
    }


def _check_bins(bins: int) -> None:
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")


def _upcast(log_probs: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Upcasts, and turns what are no log-probabilities into NaN."""
    log_probs = jnp.asarray(log_probs)
    if 0 in log_probs.shape:
        raise ValueError(f"log_probs must not be empty, got shape {log_probs.shape}")
    # NumPy's promotion, because JAX's refuses 16 with 32 bits in strict mode.
    given = log_probs.dtype.itemsize
    log_probs = log_probs.astype(np.promote_types(log_probs.dtype, np.float32))
    off = jnp.abs(jax.nn.logsumexp(log_probs, axis=-1, keepdims=True))
    right = off <= (_SUM_TOLERANCE if given > 2 else _SUM_TOLERANCE_16_BITS)
    return jnp.where(right, log_probs, jnp.nan)


def _checked(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> tuple[Float[Array, "n c"], Int[Array, "n"]]:
    """Upcasts, refuses wrong shapes and turns examples with wrong values into NaN."""
    log_probs, labels = _upcast(log_probs), jnp.asarray(labels)
    if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1]:
        raise ValueError(
            "log_probs must be [n, c] and labels [n], "
            f"got shapes {log_probs.shape} and {labels.shape}"
        )
    labels, classes = labels.astype(jnp.int32), log_probs.shape[1]
    wrong = (labels < 0) | (labels >= classes) | jnp.isnan(log_probs).any(axis=1)
    return jnp.where(wrong[:, None], jnp.nan, log_probs), labels


def _exp(log_probs: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exponential that keeps NaN: fused by jax 0.12 on CPUs, `jnp.exp` may not."""
    return jnp.where(jnp.isnan(log_probs), jnp.nan, jnp.exp(log_probs))


def _top_class(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Log-confidence of each prediction, and 1 where it is right, else 0."""
    log_probs, labels = _checked(log_probs, labels)
    log_confidence = log_probs.max(axis=1)
    predictions = jnp.argmax(log_probs, axis=1).astype(labels.dtype)
    correct = (predictions == labels).astype(log_probs.dtype)
    return log_confidence, jnp.where(jnp.isnan(log_confidence), jnp.nan, correct)


def _one_hots(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> tuple[Float[Array, "n c"], Float[Array, "n c"]]:
    """Predicted and right classes; NaN for an example with wrong values."""
    log_probs, labels = _checked(log_probs, labels)
    wrong = jnp.isnan(log_probs).any(axis=1, keepdims=True)
    kinds = (jnp.argmax(log_probs, axis=1), labels)
    classes, dtype = log_probs.shape[1], log_probs.dtype
    predicted, right = (jax.nn.one_hot(k, classes, dtype=dtype) for k in kinds)
    return jnp.where(wrong, jnp.nan, predicted), jnp.where(wrong, jnp.nan, right)


def _sorted_top_class(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """`_top_class` by increasing confidence, correctness averaged over ties."""
    # Logarithms still tell confidences apart that would both round to 1.
    log_confidence, correct = _top_class(log_probs, labels)
    order = jnp.argsort(log_confidence)
    log_confidence, correct = log_confidence[order], correct[order]
    tie = jnp.cumsum(jnp.pad(log_confidence[1:] > log_confidence[:-1], (1, 0)))
    averages = _binned(log_confidence, correct, tie, len(tie)).accuracy
    return log_confidence, averages[tie]


def _binned(
    confidence: Float[Array, "n"],
    correct: Float[Array, "n"],
    index: Int[Array, "n"],
    bins: int,
) -> Reliability:
    """Means of `confidence` and `correct` over the examples of each `index`."""
    count = jax.ops.segment_sum(jnp.ones_like(index), index, bins)
    size = jnp.maximum(count, 1).astype(confidence.dtype)
    return Reliability(
        confidence=jax.ops.segment_sum(confidence, index, bins) / size,
        accuracy=jax.ops.segment_sum(correct, index, bins) / size,
        count=count,
    )


def _calibration_gap(bins: Reliability) -> Float[Array, ""]:
    count = bins.count.astype(bins.confidence.dtype)
    return jnp.sum(count * jnp.abs(bins.accuracy - bins.confidence)) / count.sum()
