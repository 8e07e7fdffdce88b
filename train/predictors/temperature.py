"""Temperature scaling (Guo et al., 2017) of another predictor's probabilities.

If the classes are separated perfectly, no temperature is best; the result is then mixed
with the uniform distribution (Berta et al., 2025, arXiv 2501.19195).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.checks import DECAY, FINITE_POSITIVE, check
from ivon_jax.ensemble import pool
from ivon_jax.kinds import Distribution
from ivon_jax.train.predictors.base import Predictor

# Bound of |log(1/T)| in the search, and the number of bisections.
LOG_BOUND, HALVINGS = 16.0, 40


@dataclasses.dataclass(frozen=True)
class Scaled(Predictor):
    """Divides the averaged log-probabilities by a temperature.

    Attributes:
        of: the predictor that is scaled.
        temperature: T; above 1 it lowers confidence.
        uniform: weight of the uniform distribution in the result.
    """

    of: Predictor
    temperature: float
    uniform: float = 0.0

    kind: ClassVar = "temperature"
    classes_only: ClassVar = True

    def __post_init__(self) -> None:
        """Checks each field."""
        check("temperature", self.temperature, FINITE_POSITIVE)
        check("uniform", self.uniform, DECAY)

    @property
    def name(self) -> str:
        """The settings as part of a file's name."""
        return f"{self.of.name}-scaled"

    @property
    def suffix(self) -> str:
        """The settings as shown after the method's name in a table."""
        return f"{self.of.suffix}, T {self.temperature:.3g}"

    @property
    def passes(self) -> int:
        """Those of the other predictor."""
        return self.of.passes

    def backward_passes(self, classes: int) -> int:
        """Returns those of the other predictor."""
        return self.of.backward_passes(classes)

    @property
    def base(self) -> Predictor:
        """The predictor whose draws are scaled."""
        return self.of.base

    def split(
        self, posterior: Distribution, dropout: float
    ) -> tuple[Distribution, Predictor]:
        """Applies the settings of the other predictor."""
        return self.of.split(posterior, dropout)

    def finish(
        self, predictions: Float[np.ndarray, "s n c"]
    ) -> Float[np.ndarray, "1 n c"]:
        """Averages, then scales and mixes, in float64."""
        pooled = _finite(pool(self.of.finish(predictions)))
        scaled = _log_softmax(pooled / self.temperature)
        if self.uniform:
            share = math.log(self.uniform / scaled.shape[1])
            scaled = np.logaddexp(math.log1p(-self.uniform) + scaled, share)
        return scaled[None].astype(predictions.dtype)

    def fields(self) -> dict[str, Any]:
        """Returns the settings as fields of a row of results."""
        own = vars(self) | {"of": self.of.kind}
        return self.of.fields() | own

    @classmethod
    def from_fields(cls, row: Mapping[str, Any]) -> "Scaled":
        """Rebuilds the predictor of a row whose ``of`` is already a predictor."""
        return cls(row["of"], row["temperature"], row["uniform"])


def fit_temperature(
    log_probs: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> float:
    """Finds the temperature of lowest NLL, by bisection of its convex derivative.

    With beta = 1/T and p = softmax(beta l) the derivative of the mean NLL is
    mean(E_p[l] - l_y), which increases with beta.

    Args:
        log_probs: log-probabilities of the classes, averaged over samples.
        labels: the right classes.

    Returns:
        T. If the classes are separated perfectly, or worse than by chance, it is the
        bound of the search, exp(-16) or exp(16); see `bound`.

    Raises:
        ValueError: there are fewer than two examples.

    Example:
        >>> log_probs = np.log([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
        >>> T = fit_temperature(log_probs, np.array([0, 0, 1]))
        >>> print(f"{0.9 ** (1 / T) / (0.9 ** (1 / T) + 0.1 ** (1 / T)):.3f}")
        0.667
    """
    if len(labels) < 2:
        raise ValueError(f"temperature: {len(labels)} examples are too few to fit it")
    logits = _finite(log_probs)
    right = logits[np.arange(len(labels)), labels]

    def slope(beta: float) -> float:
        probs = np.exp(_log_softmax(beta * logits))
        return float(np.mean((probs * logits).sum(axis=1) - right))

    low, high = -LOG_BOUND, LOG_BOUND
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def bound(temperature: float) -> int:
    """Returns the bound of the search at which `fit_temperature` ended, if any.

    Returns:
        -1 at the low end, 1 at the high one, else 0.
    """
    return math.trunc(round(math.log(temperature) / LOG_BOUND, 6))


def bound_note(predictor: "Scaled", count: int) -> str:
    """Says that a temperature is at a bound of the search, and why.

    Args:
        predictor: the fitted predictor.
        count: number of examples that it was fitted on.

    Returns:
        A line; empty if the temperature is inside the bounds.
    """
    if not (side := bound(predictor.temperature)):
        return ""
    why = "all correct" if side < 0 else "worse than chance"
    mixed = f", mixed with 1/{count + 1} of the uniform distribution"
    return (
        f"temperature of {predictor.of.name}: predictions of the {count} held-out"
        f" examples are {why}, so that none is best; T is the bound"
        f" {predictor.temperature:.3g}{mixed if predictor.uniform else ''}"
    )


def scaled(
    of: Predictor,
    predictions: Float[np.ndarray, "s n c"],
    labels: Int[np.ndarray, " n"],
) -> "Scaled":
    """Fits the temperature of a predictor.

    Args:
        of: the predictor.
        predictions: its log-probabilities of examples that are not reported on.
        labels: their right classes.

    Returns:
        The scaled predictor; if the classes are separated perfectly, with weight
        1/(n+1) on the uniform distribution.

    Raises:
        ValueError: there are fewer than two examples.
    """
    temperature = fit_temperature(pool(predictions), labels)
    uniform = 1 / (len(labels) + 1) if bound(temperature) < 0 else 0.0
    return Scaled(of, temperature, uniform)


def _finite(log_probs: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    """Converts log-probabilities to float64 and clips minus infinity."""
    return np.maximum(np.asarray(log_probs, np.float64), -1e4)


def _log_softmax(logits: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "n c"]:
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
