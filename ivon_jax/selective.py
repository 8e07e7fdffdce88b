"""Abstention below a confidence threshold, with a guaranteed error rate."""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from ivon_jax.checks import INSIDE, check

# Shares of the calibration examples that are tried as accepted, in this order. At a
# tenth of some hundred examples an error or two do not end the search.
COVERAGES = tuple(percent / 100 for percent in range(10, 101))


class Threshold(NamedTuple):
    """A confidence above which predictions are accepted.

    Attributes:
        confidence: predictions of higher confidence are accepted; infinite if no
            threshold has the guarantee.
        accepted: number of calibration examples that it accepts.
        errors: number of wrong ones among them.
    """

    confidence: float
    accepted: int
    errors: int


def fewest_accepted(max_risk: float, delta: float) -> int:
    """Returns the smallest number of examples that proves a risk, all being right.

    Args:
        max_risk: highest share of errors.
        delta: probability that the proof is wrong.

    Raises:
        ValueError: a number is not in (0, 1).

    Example:
        >>> fewest_accepted(0.05, 0.05)
        59
    """
    check("max_risk", max_risk, INSIDE)
    check("delta", delta, INSIDE)
    return math.ceil(math.log(delta) / math.log1p(-max_risk))


def fit_threshold(
    confidence: Float[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    max_risk: float,
    delta: float,
) -> Threshold:
    """Chooses the lowest confidence above which errors are provably rare.

    Of new predictions above it at most `max_risk` are wrong, with probability at least
    1 - delta over the calibration examples. Accepted shares of 10, 11, ... 100 % are
    tested in this order, each by whether the Clopper-Pearson upper bound of the error
    at level delta is at most `max_risk`, until the first fails; as they are tested in
    a fixed order, none needs a correction for the others. Examples must be exchangeable
    with new ones, and the risk must not return below `max_risk` once a falling
    threshold has taken it above.

    Args:
        confidence: confidences of calibration examples, not seen in training.
        correct: whether each is predicted right.
        max_risk: highest share of errors among accepted predictions.
        delta: probability that the guarantee fails.

    Returns:
        The last threshold that passed.

    Raises:
        ValueError: a number is not in (0, 1), or the examples are fewer than
            `fewest_accepted`.

    Example:
        >>> confidence = np.linspace(0.5, 1, 200)
        >>> found = fit_threshold(confidence, confidence > 0.75, 0.1, 0.05)
        >>> found.accepted, found.errors
        (104, 4)

    References:
        Angelopoulos et al., "Learn then test: calibrating predictive algorithms to
        achieve risk control", 2021.
        Clopper and Pearson, "The use of confidence or fiducial limits illustrated in
        the case of the binomial", Biometrika 1934.
    """
    fewest, total = fewest_accepted(max_risk, delta), len(confidence)
    if total < fewest:
        raise ValueError(
            f"max_risk: {max_risk} at delta {delta} needs {fewest} examples or more,"
            f" not {total}"
        )
    order = np.argsort(-confidence, kind="stable")
    # Threshold k is the confidence of the first example that is not accepted.
    thresholds = np.append(confidence[order], -math.inf)
    wrong = np.append(0, np.cumsum(~correct[order]))
    best = Threshold(math.inf, 0, 0)
    for share in COVERAGES:
        threshold = thresholds[math.ceil(share * total - 1e-9)]
        accepted = int(np.count_nonzero(confidence > threshold))
        if accepted < fewest:
            continue
        errors = int(wrong[accepted])
        if binomial_cdf(errors, accepted, max_risk) > delta:
            break
        best = Threshold(float(threshold), accepted, errors)
    return best


def binomial_cdf(successes: int, trials: int, rate: float) -> float:
    """Returns the binomial probability of at most `successes` successes.

    It is at most delta if and only if the Clopper-Pearson upper bound of the rate at
    level delta is at most `rate`.

    Args:
        successes: number of successes.
        trials: number of independent trials.
        rate: probability of a success, in (0, 1).

    Example:
        >>> print(f"{binomial_cdf(1, 3, 0.5):.2f}")
        0.50
    """
    if successes >= trials:
        return 1.0
    k = np.arange(1, successes + 1)
    # log of C(n, k) r^k (1 - r)^(n - k), by its ratios to the term before.
    ratios = np.log((trials + 1 - k) / k) + math.log(rate) - math.log1p(-rate)
    terms = np.append(0.0, np.cumsum(ratios)) + trials * math.log1p(-rate)
    return float(min(np.exp(np.logaddexp.reduce(terms)), 1.0))
