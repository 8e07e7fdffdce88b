"""Temperature scaling (Guo et al., 2017), fitted on held-out training examples."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar

from ivon_jax.train.fits.base import Fit, Fitted, Work
from ivon_jax.train.options import unset
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predict import score
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.temperature import Scaled, bound_note, scaled
from ivon_jax.train.predictors.wanted import Wanted
from ivon_jax.train.runs.progress import say
from ivon_jax.train.sources import Source

ALL_MEMBERS = unset("INT", "10, or all members of a set; in a comparison, as its runs")


@dataclasses.dataclass(frozen=True)
class Temperature(Fit):
    """Scales the predictions at the mean and over samples, each by its temperature.

    By default, the predictors that a fitted run is for are scaled.

    Attributes:
        samples: posterior samples to average.
        tau: temperature of the samples: the posterior variance is divided by it.
        prune: share of entries set to zero, lowest signal-to-noise first.
    """

    samples: Annotated[int | None, ALL_MEMBERS] = None
    tau: float = 1.0
    prune: float = 0.0

    name: ClassVar = "temperature"

    def __post_init__(self) -> None:
        """Checks each number."""
        self._wanted.check()

    @property
    def splits(self) -> tuple[str, ...]:
        """The held-out training examples."""
        return ("validation",)

    @property
    def _wanted(self) -> Wanted:
        return Wanted(self.samples, self.tau, self.prune)

    def check(self, source: Source) -> None:
        """Checks that the task has classes, and that there are examples enough."""
        _check(source)

    def fit(self, sources: Sequence[Source], work: Work) -> Fitted:
        """Fits the temperature of each predictor."""
        (source,) = sources
        posterior = source.posterior
        found = self._wanted.predictors(posterior, source.predictors)
        fitted = on_held_out(source, found, work.chunk_size)
        numbers = {p.of.name: p.temperature for p in fitted}
        return Fitted(posterior, fitted, {"temperature": numbers})


def on_held_out(
    source: Source, predictors: Sequence[Predictor], chunk_size: int = 1
) -> list[Scaled]:
    """Fits the temperatures of predictors on a run's held-out training examples.

    Args:
        source: the run; its problem has the split "validation".
        predictors: the predictors; of one that is scaled, that which it scales.
        chunk_size: draws at a time.

    Returns:
        The scaled predictors.

    Raises:
        ValueError: the task has no classes, a prediction is not finite, or there
            are fewer than two examples.
    """
    _check(source)
    problem, held_out = source.problem, source.problem.splits["validation"]
    predictions = source.predict(
        "validation", [predictor.base for predictor in predictors], chunk_size
    )
    fitted = []
    for predictor, values in predictions.items():
        score(problem, source.method, predictor, values, held_out)  # all are finite
        fitted.append(scaled(predictor, values, held_out.labels))
    on_first_process(lambda: _report_bounds(fitted, len(held_out)))
    return fitted


def _check(source: Source) -> None:
    """Checks that temperatures can be fitted on a run's held-out examples."""
    problem = source.problem
    if problem.objective.answer != "class":
        kind = problem.objective.answer
        raise ValueError(f"temperature: only for classes, the task asks for a {kind}")
    if (count := len(problem.splits["validation"])) < 2:
        raise ValueError(f"temperature: {count} examples are too few to fit it")


def _report_bounds(fitted: Sequence[Scaled], count: int) -> None:
    """Prints a note if a fit ended at a bound, where no temperature is best."""
    for predictor in fitted:
        if note := bound_note(predictor, count):
            say(note)
