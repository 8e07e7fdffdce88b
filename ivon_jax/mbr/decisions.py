"""Minimum Bayes risk decoding: the output of highest expected utility."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from ivon_jax.mbr.utilities import Utility


def utility_matrix(
    candidates: Sequence[str], references: Sequence[str], utility: Utility
) -> Float[np.ndarray, "n m"]:
    """Scores every candidate against every reference; equal texts are scored once.

    Args:
        candidates: texts to choose from.
        references: texts that may be right, usually the same.
        utility: see `ivon_jax.mbr.utilities`.

    Returns:
        A row for each candidate.
    """
    rows, columns = (list(dict.fromkeys(texts)) for texts in (candidates, references))
    scores = utility(rows, columns)
    row = {text: i for i, text in enumerate(rows)}
    column = {text: i for i, text in enumerate(columns)}
    return scores[
        np.ix_([row[text] for text in candidates], [column[t] for t in references])
    ]


def expected_utility(
    utilities: Float[np.ndarray, "n m"],
    models: Sequence[int] | None = None,
    how: Literal["pooled", "per-model"] = "pooled",
    weights: Sequence[float] | None = None,
) -> Float[np.ndarray, " n"]:
    """Averages utilities over references (Daheim et al. 2025, arXiv:2503.05318).

    Pooled, all references count alike (their Eq. 9). Per model, the mean over each
    model's references is averaged over models (Eq. 10). The two differ only if models
    have different numbers of references, or unequal sums of weights.

    Args:
        utilities: of each candidate against each reference.
        models: the model of each reference; needed per model.
        how: the average to take.
        weights: of each reference, not negative, as its probability.

    Returns:
        The expected utility of each candidate.

    Raises:
        ValueError: models or weights do not fit, or no weight is positive.

    Example:
        >>> expected_utility(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])).round(2)
        array([0.33, 0.67])
        >>> by_model = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
        >>> expected_utility(by_model, [0, 1, 1], "per-model").tolist()
        [0.5, 0.5]
    """
    count = utilities.shape[1]
    given = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    if given.shape != (count,) or not (given >= 0).all() or not given.sum() > 0:
        raise ValueError(f"weights: are not {count} numbers >= 0, one above 0")
    if how == "per-model":
        if models is None or len(models) != count:
            raise ValueError(f"models: are not {count}, one for each reference")
        _, model = np.unique(np.asarray(models), return_inverse=True)
        totals = np.bincount(model, weights=given)[model]
        given = np.divide(given, totals, out=np.zeros(count), where=totals > 0)
    return utilities @ given / given.sum()


def best(scores: Float[np.ndarray, " n"]) -> int:
    """Returns the index of the highest score; of tied ones the first.

    Args:
        scores: see `expected_utility`.
    """
    return int(np.argmax(scores))
