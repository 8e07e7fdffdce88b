"""Calibration of class probabilities; see `ivon_jax.metrics` for the inputs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.metrics._inputs import exp, top_class

# Log-probabilities have rounding errors: log(0.8) in float32 may be too large. A
# confidence this close (relative) to a bin's edge counts as on it.
_EDGE_TOLERANCE = 1e-6


class Reliability(NamedTuple):
    """A reliability diagram: confidence and accuracy per bin.

    Attributes:
        confidence: mean confidence of the bin's examples, 0 if it has none.
        accuracy: fraction of the bin's examples predicted right, 0 if it has none.
        count: number of examples in the bin.
    """

    confidence: Float[Array, "bins"]
    accuracy: Float[Array, "bins"]
    count: Int[Array, "bins"]  # type: ignore[assignment]  # hides tuple.count


def reliability(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"], bins: int = 10
) -> Reliability:
    """Returns confidence and accuracy in bins of equal width: a reliability diagram.

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
    check("bins", bins, AT_LEAST_ONE)
    log_confidence, correct = top_class(log_probs, labels)
    index = bin_of(log_confidence, bins)
    return _binned(exp(log_confidence), correct, index, bins)


def bin_of(log_confidence: Float[Array, "n"], bins: int) -> Int[Array, "n"]:
    """Returns the index of each confidence's bin, of those of `reliability`."""
    # Inner edges only, so that nothing can fall outside the first and last bins.
    edges = np.log(np.arange(1, bins) / bins) + _EDGE_TOLERANCE
    return jnp.searchsorted(jnp.asarray(edges, log_confidence.dtype), log_confidence)


def ece(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"], bins: int = 10
) -> Float[Array, ""]:
    """Returns the expected calibration error: mean |accuracy - confidence| over bins.

    Bins have equal width and are weighted by their number of examples (the L1 form).
    As in `reliability` they are right-closed, (lo, hi]. torchmetrics' are left-closed,
    with a separate bin for a confidence of exactly 1; off the edges the two agree.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].
        bins: number of bins, at least 1. Values for different `bins` are not
            comparable.

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


def mce(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"], bins: int = 10
) -> Float[Array, ""]:
    """Returns the maximum calibration error: the largest |accuracy - confidence|.

    Over the bins of `reliability`. A bin of few examples counts as much as any other,
    so the value is noisy.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].
        bins: number of bins, at least 1.

    Returns:
        Scalar in [0, 1].

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
        >>> print(f"{mce(log_probs, jnp.array([0, 1])):.2f}")
        0.70

    References:
        Naeini, Cooper and Hauskrecht, "Obtaining well calibrated probabilities using
        Bayesian binning", AAAI 2015.
    """
    found = reliability(log_probs, labels, bins)  # an empty bin has no gap
    return jnp.max(jnp.abs(found.accuracy - found.confidence))


def adaptive_ece(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"], bins: int = 10
) -> Float[Array, ""]:
    """Returns the expected calibration error over bins of equal mass.

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
    check("bins", bins, AT_LEAST_ONE)
    log_confidence, correct = _sorted_top_class(log_probs, labels)
    smaller, larger_bins = divmod(len(correct), bins)
    sizes = smaller + (np.arange(bins) < larger_bins)
    index = jnp.asarray(np.repeat(np.arange(bins), sizes), jnp.int32)
    return _calibration_gap(_binned(exp(log_confidence), correct, index, bins))


def aurc(log_probs: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Returns the area under the risk-coverage curve: the ranking of errors.

    The selective risk at coverage k/n is the error rate of the k most confident
    examples; the area is its mean over k = 1..n. For examples of equal confidence the
    risk is its expectation over their orders.

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


def augrc(log_probs: Float[Array, "n c"], labels: Int[Array, "n"]) -> Float[Array, ""]:
    """Returns the area under the generalised risk-coverage curve.

    The generalised risk at coverage k/n is the number of errors among the k most
    confident examples, divided by n rather than k: the share of silent errors of a
    system that abstains. The area is its mean over k = 1..n, with ties as in `aurc`.
    Unlike `aurc` it does not weight the few most confident examples most.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].

    Returns:
        Scalar in [0, 1]; lower is better.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
        >>> print(f"{augrc(log_probs, jnp.array([0, 1])):.2f}")
        0.25

    References:
        Traub et al., "Overcoming common flaws in the evaluation of selective
        classification systems", NeurIPS 2024.
    """
    _, correct = _sorted_top_class(log_probs, labels)
    errors = 1 - correct[::-1]
    return jnp.mean(jnp.cumsum(errors) / len(errors))


def coverage_at_risk(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"], risk: float = 0.05
) -> Float[Array, ""]:
    """Returns the largest coverage whose selective risk is at most `risk`.

    A threshold on the confidence accepts all examples of one confidence or none. The
    number describes these examples; `ivon_jax.selective.fit_threshold` finds a
    threshold that holds for others.

    Args:
        log_probs: log class probabilities, [n, c].
        labels: class indices, [n].
        risk: highest share of errors among accepted examples.

    Returns:
        Scalar in [0, 1]; 0 if no threshold has so low a risk.

    Example:
        >>> log_probs = jnp.log(jnp.array([[0.9, 0.1], [0.7, 0.3]]))
        >>> print(coverage_at_risk(log_probs, jnp.array([0, 1])))
        0.5

    References:
        Geifman and El-Yaniv, "Selective classification for deep neural networks",
        NeurIPS 2017.
    """
    log_confidence, correct = _sorted_top_class(log_probs, labels)
    total = len(correct)
    # Whole at the end of a tie, over which correctness is averaged.
    errors = jnp.round(jnp.cumsum(1 - correct[::-1]))
    covered = jnp.arange(1, total + 1, dtype=errors.dtype)
    descending = log_confidence[::-1]
    ends = jnp.pad(descending[1:] < descending[:-1], (0, 1), constant_values=True)
    # The tolerance is for 0.05 * 20, which is 1.
    legal = ends & (errors <= risk * covered * (1 + 1e-6))
    best = jnp.max(jnp.where(legal, covered, 0)) / total
    return jnp.where(jnp.isnan(errors[-1]), jnp.nan, best)


def _sorted_top_class(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Returns `top_class` by increasing confidence, correctness averaged over ties."""
    # Logarithms distinguish confidences that would both round to 1.
    log_confidence, correct = top_class(log_probs, labels)
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
    """Returns means of `confidence` and `correct` over the examples of each `index`."""
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
