"""Calibration and abstention of class predictions, with intervals.

Shapes: n examples, c classes. Everything is NumPy, as numbers of examples differ.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from ivon_jax.metrics.calibration import bin_of
from ivon_jax.train.report.intervals import normal, wilson

BINS = 10
# Shares of the examples, in per cent, that are left to others.
LEVELS = tuple(range(0, 100, 5))
# Points of a risk-coverage curve, at most.
POINTS = 100


class Bin(NamedTuple):
    """Examples of similar confidence.

    Attributes:
        size: number of examples.
        confidence: their mean confidence.
        accuracy: share of right ones.
        interval: Wilson's 95 % interval of the accuracy.
    """

    size: int
    confidence: float
    accuracy: float
    interval: tuple[float, float]


class Accepted(NamedTuple):
    """The examples that are answered, at one level of abstention.

    Attributes:
        threshold: the lowest confidence that is answered.
        size: number of examples answered.
        errors: number of wrong ones.
        accuracy: share of right ones, with its 95 % interval.
        ece: their calibration error, with its 95 % interval.
        nll: their mean negative log-likelihood, with its 95 % interval.
    """

    threshold: float
    size: int
    errors: int
    accuracy: tuple[float, float, float]
    ece: tuple[float, float, float]
    nll: tuple[float, float, float]


class Ranked(NamedTuple):
    """Predictions by falling confidence.

    Attributes:
        confidence: probability of the likeliest class.
        right: whether it is the right one.
        nll: negative log-probability of the right class.
        bin: index of the confidence's bin.
    """

    confidence: Float[np.ndarray, " n"]
    right: Bool[np.ndarray, " n"]
    nll: Float[np.ndarray, " n"]
    bin: Int[np.ndarray, " n"]

    @classmethod
    def of(
        cls, log_probs: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
    ) -> "Ranked":
        """Sorts predictions.

        Args:
            log_probs: log-probabilities of the classes.
            labels: the right classes.
        """
        largest = log_probs.max(axis=1)
        order = np.argsort(-largest, kind="stable")
        index = np.asarray(bin_of(jnp.asarray(largest), BINS))
        own = np.take_along_axis(log_probs, labels[:, None].astype(int), axis=1)[:, 0]
        right = log_probs.argmax(axis=1) == labels
        return cls(
            np.exp(largest.astype(np.float64))[order],
            right[order],
            -own.astype(np.float64)[order],
            index.astype(np.int64)[order],
        )

    def bins(self) -> list[Bin]:
        """Returns the bins of a reliability diagram, those without examples too."""
        found = []
        for index in range(BINS):
            inside = self.bin == index
            count = int(inside.sum())
            right = int(self.right[inside].sum())
            mean = float(self.confidence[inside].mean()) if count else 0.0
            share = right / count if count else 0.0
            found.append(Bin(count, mean, share, wilson(right, count)))
        return found

    def accepted(self, level: float) -> Accepted:
        """Leaves the least confident examples out.

        Examples as confident as the last one that is answered are answered too.

        Args:
            level: share of the examples to leave out, in per cent; below 100.
        """
        total = len(self.right)
        # Decimal levels: 95 % of 40 are 38.
        kept = max(total - math.floor(level * total / 100 + 1e-9), 1)
        threshold = float(self.confidence[kept - 1])
        count = int((self.confidence >= threshold).sum())
        right, nll = self.right[:count], self.nll[:count]
        return Accepted(
            threshold,
            count,
            int((~right).sum()),
            (float(right.mean()), *wilson(int(right.sum()), count)),
            self._ece(count),
            normal("nll", float(nll.mean()), float(nll.std() / math.sqrt(count))),
        )

    def _ece(self, count: int) -> tuple[float, float, float]:
        """Returns the ECE of the first examples.

        Its standard error is that of the mean of the gaps, with the signs of their
        bins, which are taken as known.
        """
        gap = self.right[:count] - self.confidence[:count]
        index = self.bin[:count]
        sums = np.bincount(index, gap, BINS)
        signed = np.sign(sums)[index] * gap
        value = float(np.abs(sums).sum() / count)
        return normal("ece", value, float(signed.std() / math.sqrt(count)))

    def curve(self) -> list[tuple[float, float, float, float]]:
        """Returns points of the risk-coverage curve.

        Each is the coverage of a threshold, the share of errors above it, and Wilson's
        95 % interval of that. Thresholds do not part examples of equal confidence.
        """
        ends = np.append(self.confidence[1:] < self.confidence[:-1], True)
        counts = np.flatnonzero(ends) + 1
        if len(counts) > POINTS:
            places = np.linspace(0, len(counts) - 1, POINTS).round().astype(int)
            counts = counts[places]
        errors = np.cumsum(~self.right)
        total = len(self.right)
        return [
            (int(k) / total, int(e) / int(k), *wilson(int(e), int(k)))
            for k, e in zip(counts, errors[counts - 1], strict=True)
        ]
