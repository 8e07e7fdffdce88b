"""Predictions of new examples, as arrays and as rows of a file.

Shapes: s draws, n examples, c classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

# Digits of numbers in files: those of float32.
DIGITS = 7


class ClassResults(NamedTuple):
    """Predictions of classes.

    Attributes:
        classes: the label words in class order.
        probs: probability of each class, averaged over draws, and scaled by the
            temperature if there is one.
        draws: probability of each class by each draw, without temperature.
        entropy: entropy of `probs`, in nats.
        mutual_information: disagreement of `draws`, in nats: the entropy of their mean
            minus their mean entropy; 0 for a single draw. Without a temperature it is
            a part of `entropy`; with one, which only the average has, it may be larger.
        accepted: whether the confidence is above the abstention threshold; None without
            one.
        sets: the classes of each prediction set; None without conformal calibration.
    """

    classes: tuple[str, ...]
    probs: Float[np.ndarray, "n c"]
    draws: Float[np.ndarray, "s n c"]
    entropy: Float[np.ndarray, " n"]
    mutual_information: Float[np.ndarray, " n"]
    accepted: Bool[np.ndarray, " n"] | None = None
    sets: Bool[np.ndarray, "n c"] | None = None

    @classmethod
    def of(
        cls,
        classes: tuple[str, ...],
        log_probs: Float[np.ndarray, "n c"],
        draws: Float[np.ndarray, "s n c"],
    ) -> "ClassResults":
        """Computes the uncertainty of predictions.

        Args:
            classes: the label words.
            log_probs: log-probabilities of the prediction.
            draws: log-probabilities of each draw.
        """
        probs, members = _probs(log_probs), _probs(draws)
        spread = _entropy(members.mean(axis=0)) - _entropy(members).mean(axis=0)
        return cls(classes, probs, members, _entropy(probs), np.maximum(spread, 0.0))

    @property
    def indices(self) -> Int[np.ndarray, " n"]:
        """Index of the most probable class."""
        return self.probs.argmax(axis=1)

    @property
    def predictions(self) -> np.ndarray:
        """Label word of the most probable class."""
        return np.array(self.classes)[self.indices]

    @property
    def confidence(self) -> Float[np.ndarray, " n"]:
        """Probability of the most probable class."""
        return self.probs.max(axis=1)

    def rows(self, *, per_sample: bool = False) -> Iterator[dict[str, Any]]:
        """Yields each example's results, as plain JSON.

        Args:
            per_sample: whether to add the probabilities of each draw.
        """
        indices, confidence = self.indices, self.confidence
        for i, probs in enumerate(self.probs):
            row: dict[str, Any] = {
                "prediction": self.classes[indices[i]],
                "probabilities": dict(zip(self.classes, _plain(probs), strict=True)),
                "confidence": _digits(confidence[i]),
                "entropy": _digits(self.entropy[i]),
                "mutual_information": _digits(self.mutual_information[i]),
            }
            if self.accepted is not None:
                row["accepted"] = bool(self.accepted[i])
            if self.sets is not None:
                row["set"] = [self.classes[k] for k in np.flatnonzero(self.sets[i])]
            if per_sample:
                row["samples"] = [_plain(draw) for draw in self.draws[:, i]]
            yield row


class NumberResults(NamedTuple):
    """Predictions of numbers.

    Attributes:
        draws: the number of each draw.
    """

    draws: Float[np.ndarray, "s n"]

    @property
    def predictions(self) -> Float[np.ndarray, " n"]:
        """The mean over draws."""
        return self.draws.mean(axis=0)

    @property
    def standard_deviation(self) -> Float[np.ndarray, " n"]:
        """The draws' standard deviation, without the noise of the answers."""
        return self.draws.std(axis=0)

    def rows(self, *, per_sample: bool = False) -> Iterator[dict[str, Any]]:
        """Yields each example's results, as plain JSON; see `ClassResults.rows`."""
        means, deviations = self.predictions, self.standard_deviation
        for i in range(len(means)):
            row: dict[str, Any] = {
                "prediction": _digits(means[i]),
                "standard_deviation": _digits(deviations[i]),
            }
            if per_sample:
                row["samples"] = _plain(self.draws[:, i])
            yield row


Results = ClassResults | NumberResults
# What `rows` says, which fields of the input must not be called.
FIELDS = (
    *("prediction", "probabilities", "confidence", "entropy", "mutual_information"),
    *("accepted", "set", "samples", "standard_deviation"),
)


def _probs(log_probs: Float[np.ndarray, "*n c"]) -> Float[np.ndarray, "*n c"]:
    """Returns probabilities whose sum is 1 in float64, as scikit-learn demands."""
    probs = np.exp(log_probs, dtype=np.float64)
    return probs / probs.sum(axis=-1, keepdims=True)


def _entropy(probs: Float[np.ndarray, "*n c"]) -> Float[np.ndarray, "*n"]:
    logs = np.log(np.where(probs > 0, probs, 1.0))
    return -(probs * logs).sum(axis=-1)


def _digits(value: Any) -> float:
    return float(f"{float(value):.{DIGITS}g}")


def _plain(values: Sequence[float] | np.ndarray) -> list[float]:
    return [_digits(value) for value in values]
