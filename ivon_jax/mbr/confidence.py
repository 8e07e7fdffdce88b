"""Uncertainty of votes: calibration, and entropy within and between models."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.metrics.calibration import bin_of


class Entropy(NamedTuple):
    """Entropy of answers, in nats.

    Attributes:
        total: of the average over models of their answers' frequencies.
        within: average over models of the entropy of each.
        between: mutual information of model and answer, the rest: doubt about which
            model is right, which one model alone does not show.
    """

    total: float
    within: float
    between: float


def answer_entropy(
    answers: Sequence[Hashable | None], models: Sequence[int] | None = None
) -> Entropy:
    """Computes the semantic entropy of answers, equal ones being of one meaning.

    It is the discrete one of Farquhar et al. (2024, doi 10.1038/s41586-024-07421-0).
    All parts are biased for few outputs: compare them at equal numbers only.

    Args:
        answers: parsed answers; those that are None are left out.
        models: the model of each; None for one model.

    Returns:
        The entropy and its parts; NaN if there are no answers.

    Example:
        >>> sure_but_opposed = answer_entropy(["7", "7", "8", "8"], [0, 0, 1, 1])
        >>> round(sure_but_opposed.between, 3), abs(sure_but_opposed.within)
        (0.693, 0.0)
    """
    of = [0] * len(answers) if models is None else models
    counts: dict[int, Counter[Hashable]] = {}
    for answer, model in zip(answers, of, strict=True):
        if answer is not None:
            counts.setdefault(model, Counter())[answer] += 1
    if not counts:
        return Entropy(np.nan, np.nan, np.nan)
    known = {answer: i for i, answer in enumerate(set().union(*counts.values()))}
    shares = np.zeros((len(counts), len(known)))
    for row, counter in zip(shares, counts.values(), strict=True):
        for answer, count in counter.items():
            row[known[answer]] = count / counter.total()
    total, within = _entropy(shares.mean(axis=0)), np.mean(list(map(_entropy, shares)))
    return Entropy(total, float(within), max(total - float(within), 0.0))


def confidence_scores(
    confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], bins: int = 15
) -> dict[str, float]:
    """Scores confidences, as the shares of votes, by whether the decisions are right.

    Args:
        confidence: of each decision, from 0 to 1.
        correct: whether it is right.
        bins: number of bins of equal width of the calibration error, right-closed as
            those of `ivon_jax.metrics.ece`. Shares of few votes take few values, so
            that some bins stay empty.

    Returns:
        ``accuracy``; ``ece``, the expected calibration error; ``brier``, the mean
        squared difference; ``auroc``, the probability that a right decision has more
        confidence than a wrong one (NaN if all are alike); and ``aurc``, the error
        averaged over the shares of most confident decisions, tied ones in any order.

    Raises:
        ValueError: there are no decisions, or a confidence is out of range.
    """
    check("bins", bins, AT_LEAST_ONE)
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if not sure.size or not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError("confidence: is not one or more numbers in [0, 1]")
    index = confidence_bin(sure, bins)
    gaps = np.bincount(index, weights=sure - right, minlength=bins)
    higher = (sure[:, None] > sure) + (sure[:, None] == sure) / 2
    pairs = right[:, None] * (1 - right)
    risks = risk_coverage(sure, right > 0)
    return {
        "accuracy": float(right.mean()),
        "ece": float(np.abs(gaps).sum() / sure.size),
        "brier": float(((sure - right) ** 2).mean()),
        "auroc": float((higher * pairs).sum() / pairs.sum()) if pairs.any() else np.nan,
        "aurc": float(risks.mean()),
    }


def confidence_bin(
    confidence: Float[np.ndarray, " n"], bins: int
) -> Int[np.ndarray, " n"]:
    """Returns the bin of each confidence, of those of `confidence_scores`.

    Args:
        confidence: of each decision.
        bins: number of bins.
    """
    logs = jnp.log(jnp.asarray(confidence, jnp.float32))
    return np.asarray(bin_of(logs, bins))


def risk_coverage(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Returns the error of the k most confident decisions, for k from 1 to n.

    Tied ones are taken in any order: an error among them counts in shares. The mean is
    ``aurc`` of `confidence_scores`.

    Args:
        confidence: of each decision.
        right: whether it is right.

    Example:
        >>> found = risk_coverage(np.array([0.5, 0.9, 0.5]), np.array([0, 1, 1], bool))
        >>> found.round(3).tolist()
        [0.0, 0.25, 0.333]
    """
    values, group, count = np.unique(
        -confidence, return_inverse=True, return_counts=True
    )
    wrong = np.bincount(group, weights=~right, minlength=len(values)) / count
    risks: np.ndarray = np.cumsum(wrong[np.sort(group)]) / np.arange(1, len(right) + 1)
    return risks


def _entropy(shares: Float[np.ndarray, " c"]) -> float:
    positive = shares[shares > 0]
    return float(-(positive * np.log(positive)).sum())
