"""What `ivon-jax calibrate` fits and `ivon-jax predict` applies."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ivon_jax.checks import INSIDE, check
from ivon_jax.conformal import Conformal, Score, fewest_examples
from ivon_jax.ensemble import pool
from ivon_jax.errors import prefixed
from ivon_jax.selective import fewest_accepted, fit_threshold
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.registry import predictor_of
from ivon_jax.train.predictors.temperature import bound_note, scaled
from ivon_jax.train.runs.progress import say
from ivon_jax.train.runs.run import versions, write_json

CALIBRATION = "calibration.json"
# One in SHARE examples fits the temperature if others are needed for a guarantee,
# which holds for examples that have had no part in the probabilities.
SHARE = 5


@dataclasses.dataclass(frozen=True)
class Abstention:
    """A confidence above which at most `max_risk` of predictions are wrong.

    Attributes:
        max_risk: highest share of errors among accepted predictions.
        delta: probability that the guarantee fails.
        confidence: predictions of higher confidence are accepted.
        accepted: share of the calibration examples that is accepted.
        errors: share of those that is wrong.
    """

    max_risk: float
    delta: float
    confidence: float
    accepted: float
    errors: float


@dataclasses.dataclass(frozen=True)
class Targets:
    """What to calibrate.

    Attributes:
        temperature: whether to fit a temperature.
        score: see `Conformal`.
        alpha: share of prediction sets that may miss; None for no sets.
        max_risk: see `Abstention`; None for none.
        delta: see `Abstention`.
    """

    temperature: bool = True
    score: Score = "lac"
    alpha: float | None = None
    max_risk: float | None = None
    delta: float = 0.05

    @property
    def guarantees(self) -> bool:
        """Whether sets or a threshold are fitted."""
        return self.alpha is not None or self.max_risk is not None

    def check(self, count: int) -> None:
        """Checks that a file has enough examples, before the model is loaded.

        Args:
            count: number of examples in the file.

        Raises:
            ValueError: it has not, nothing is to be fitted, or a number is out of
                range.
        """
        if self.alpha is not None:
            check("conformal", self.alpha, INSIDE)
        if not (self.temperature or self.guarantees):
            raise ValueError("temperature: there is nothing else to calibrate")
        left, hint = count - self.parts(count), ""
        if self.guarantees and self.temperature:
            hint = f" of {count}; one in {SHARE} fits the temperature"
        needed = {}
        if self.alpha is not None:
            needed[f"conformal: {self.alpha}"] = fewest_examples(self.alpha)
        if self.max_risk is not None:
            fewest = fewest_accepted(self.max_risk, self.delta)
            needed[f"max_risk: {self.max_risk} at delta {self.delta}"] = fewest
        for name, fewest in needed.items():
            if left < fewest:
                raise ValueError(
                    f"{name} needs {fewest} examples or more, not {left}{hint}"
                )

    def parts(self, count: int) -> int:
        """Returns how many examples fit the temperature only."""
        return -(-count // SHARE) if self.guarantees and self.temperature else 0


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How predictions of one predictor are calibrated.

    Attributes:
        predictor: the predictor, with its temperature.
        conformal: rule of the prediction sets, if any.
        abstention: threshold of the confidence, if any.
        of: what the calibration is of: fingerprints and names, by name.
        examples: number of calibration examples.
    """

    predictor: Predictor
    conformal: Conformal | None
    abstention: Abstention | None
    of: Mapping[str, Any]
    examples: int

    @property
    def text(self) -> str:
        """The calibration, a line for each part."""
        lines = []
        if (temperature := self.predictor.fields().get("temperature")) is not None:
            lines.append(f"temperature {temperature:.4g}")
        if self.conformal:
            rule = self.conformal
            lines.append(
                f"prediction sets miss at most {rule.alpha:.4g} of the right classes:"
                f" {rule.score}, score at most {rule.quantile:.4g}"
            )
        if (part := self.abstention) is not None:
            lines.append(
                f"at most {part.max_risk:.4g} of what is accepted is wrong, but for a"
                f" chance of {part.delta:.4g}: confidence above {part.confidence:.4g},"
                f" {part.accepted:.1%} of the examples, {part.errors:.1%} of them wrong"
            )
        lines.append(f"on {self.examples} examples{self.predictor.suffix}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        row = {"predict": self.predictor.kind, **self.predictor.fields()}
        values = dataclasses.asdict(self) | {"predictor": row, "versions": versions()}
        write_json(path, values)

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Reads a file.

        Raises:
            ValueError: it is missing or damaged.
        """
        wrong = (ValueError, KeyError, TypeError, AttributeError, OSError)
        with prefixed(f"{path}: not a calibration", wrong):
            values = json.loads(path.read_text())
            values.pop("versions")
            values["predictor"] = predictor_of(values["predictor"])
            for name, kind in (("conformal", Conformal), ("abstention", Abstention)):
                if values[name] is not None:
                    values[name] = kind(**values[name])
            return cls(**values)

    def check(self, path: Path, of: Mapping[str, Any]) -> None:
        """Checks that predictions are those that were calibrated.

        Args:
            path: the file, for messages.
            of: what is predicted with, as in the attribute.

        Raises:
            ValueError: they are not.
        """
        for name, value in of.items():
            if self.of.get(name) != value:
                raise ValueError(
                    f"{path}: is for {name} {self.of.get(name)}, not {value};"
                    " calibrate again, or add --uncalibrated"
                )


def fit(
    targets: Targets,
    predictor: Predictor,
    draws: Float[np.ndarray, "s n c"],
    labels: Int[np.ndarray, " n"],
    noise: Float[np.ndarray, " n"],
    of: Mapping[str, Any],
) -> Calibration:
    """Calibrates a predictor, and prints a note if its temperature is at a bound.

    Args:
        targets: what to fit.
        predictor: the predictor.
        draws: its predictions of the calibration examples, not finished.
        labels: their right classes.
        noise: see `Conformal.fit`.
        of: see `Calibration`.

    Raises:
        ValueError: the examples are too few, or no threshold has the guarantee.
    """
    count = len(labels)
    targets.check(count)
    order = np.random.default_rng(0).permutation(count)
    first, rest = np.split(order, [targets.parts(count)])
    if targets.temperature:
        part = first if targets.guarantees else order
        predictor = scaled(predictor, predictor.finish(draws[:, part]), labels[part])
        if note := bound_note(predictor, len(part)):
            say(note)
    probs = np.exp(pool(predictor.finish(draws[:, rest])))
    right = labels[rest]
    conformal = abstention = None
    if targets.alpha is not None:
        conformal = Conformal.fit(
            targets.score, targets.alpha, probs, right, noise[rest]
        )
    if targets.max_risk is not None:
        abstention = _abstention(targets, probs, right)
    return Calibration(predictor, conformal, abstention, of, count)


def _lowest_risk(
    confidence: Float[np.ndarray, " n"],
    correct: Bool[np.ndarray, " n"],
    targets: Targets,
) -> float | None:
    """Returns the lowest risk, in thousandths, for which there is a threshold."""
    assert targets.max_risk is not None
    for risk in np.arange(np.floor(targets.max_risk * 1000) + 1, 1000) / 1000:
        if fit_threshold(confidence, correct, float(risk), targets.delta).accepted:
            return float(risk)
    return None


def _abstention(
    targets: Targets, probs: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]
) -> Abstention:
    assert targets.max_risk is not None
    correct = probs.argmax(axis=1) == labels
    confidence = probs.max(axis=1)
    found = fit_threshold(confidence, correct, targets.max_risk, targets.delta)
    if not found.accepted:
        lowest = _lowest_risk(confidence, correct, targets)
        least = (
            "" if lowest is None else f"; the lowest that is certain is {lowest:.3g}"
        )
        raise ValueError(
            f"max_risk: at no threshold is an error of at most {targets.max_risk}"
            f" certain at delta {targets.delta}, on {len(labels)} examples of which"
            f" {np.mean(~correct):.1%} are wrong{least}"
        )
    return Abstention(
        targets.max_risk,
        targets.delta,
        max(found.confidence, 0.0),  # JSON has no minus infinity
        found.accepted / len(labels),
        found.errors / found.accepted,
    )
