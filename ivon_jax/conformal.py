"""Prediction sets by split conformal prediction, in float64 on the host.

Shapes: n examples, c classes. A set contains the right class with probability at least
1 - alpha, over calibration and new examples that are exchangeable; not for each input
by itself. Every set holds the most probable class, so none is empty.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from ivon_jax.checks import INSIDE, NOT_NEGATIVE, check

Score = Literal["lac", "aps", "raps"]


def fewest_examples(alpha: float) -> int:
    """Returns the size of the smallest calibration set that excludes any class.

    Args:
        alpha: share of sets that may miss the right class.

    Raises:
        ValueError: alpha is not in (0, 1).

    Example:
        >>> fewest_examples(0.05)
        19
    """
    check("alpha", alpha, INSIDE)
    # The tolerance is for 1 / 0.05, which must be 20 and not a little more.
    return math.ceil(1 / alpha - 1e-9) - 1


@dataclasses.dataclass(frozen=True)
class Conformal:
    """A calibrated rule that classes belong to a set.

    Attributes:
        score: "lac", one minus the probability (Sadinle et al., 2019); "aps", the
            probability of all classes above, and a random part of the class's own
            (Romano et al., 2020); "raps", that and a penalty on the rank, for smaller
            sets (Angelopoulos et al., 2021).
        alpha: share of sets that may miss the right class.
        quantile: largest score of a class of the set; infinite if there were too few
            calibration examples, so that sets hold every class.
        penalty: raps: what each rank beyond `free` adds to the score.
        free: raps: number of ranks without penalty.
    """

    score: Score
    alpha: float
    quantile: float
    penalty: float = 0.1
    free: int = 1

    def __post_init__(self) -> None:
        """Checks the fields."""
        check("alpha", self.alpha, INSIDE)
        check("penalty", self.penalty, NOT_NEGATIVE)
        check("free", self.free, NOT_NEGATIVE)

    @classmethod
    def fit(
        cls,
        score: Score,
        alpha: float,
        probs: Float[np.ndarray, "n c"],
        labels: Int[np.ndarray, " n"],
        noise: Float[np.ndarray, " n"] | None = None,
    ) -> "Conformal":
        """Takes the quantile of the right classes' scores.

        It is the k-th smallest of n scores, k = ceil((n + 1)(1 - alpha)), which is what
        makes the guarantee exact for any n (Vovk et al., 2005).

        Args:
            score: see `Conformal`.
            alpha: see `Conformal`.
            probs: probabilities of calibration examples, which neither training nor the
                choice of a temperature has seen.
            labels: their right classes.
            noise: uniform random numbers in [0, 1) for aps and raps, independent of
                everything; None for 1, whose sets are larger and not random.

        Raises:
            ValueError: alpha is not in (0, 1).

        Example:
            >>> probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6]])
            >>> rule = Conformal.fit("lac", 0.5, probs, np.array([0, 0, 0]))
            >>> print(f"{rule.quantile:.1f}", rule.sets(np.array([[0.7, 0.3]])))
            0.2 [[ True False]]
        """
        rule = cls(score, alpha, math.inf)
        scores = np.sort(rule.scores(probs, noise)[np.arange(len(labels)), labels])
        # ceil((n + 1)(1 - alpha)), without its rounding error.
        rank = len(scores) + 1 - math.floor(alpha * (len(scores) + 1) + 1e-9)
        quantile = float(scores[rank - 1]) if rank <= len(scores) else math.inf
        return dataclasses.replace(rule, quantile=quantile)

    def sets(
        self,
        probs: Float[np.ndarray, "n c"],
        noise: Float[np.ndarray, " n"] | None = None,
    ) -> Bool[np.ndarray, "n c"]:
        """Returns which classes belong to each example's set.

        Args:
            probs: probabilities of the classes.
            noise: as in `fit`; new numbers, and given if `fit` had them.
        """
        inside = self.scores(probs, noise) <= self.quantile
        inside[np.arange(len(probs)), probs.argmax(axis=1)] = True
        return inside

    def scores(
        self,
        probs: Float[np.ndarray, "n c"],
        noise: Float[np.ndarray, " n"] | None = None,
    ) -> Float[np.ndarray, "n c"]:
        """Computes the score of every class: how badly it conforms."""
        probs = np.asarray(probs, np.float64)
        if self.score == "lac":
            return 1 - probs
        order = np.argsort(-probs, axis=1, kind="stable")
        ranked = np.take_along_axis(probs, order, axis=1)
        own = np.ones(len(probs)) if noise is None else noise
        above = np.cumsum(ranked, axis=1) - ranked
        scores = above + own[:, None] * ranked
        if self.score == "raps":
            ranks = np.arange(1, probs.shape[1] + 1)
            scores += self.penalty * np.maximum(ranks - self.free, 0)[None]
        back = np.argsort(order, axis=1)
        return np.take_along_axis(scores, back, axis=1)
