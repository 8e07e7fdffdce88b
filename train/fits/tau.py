"""The choice of tau and prune on held-out training examples."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from ivon_jax.checks import AT_LEAST_ONE, DECAY, FINITE_POSITIVE
from ivon_jax.train.fits.base import SAMPLES, UNSET_SAMPLES, Fit, Fitted, Work
from ivon_jax.train.predict import score
from ivon_jax.train.predictors.samples import tempered
from ivon_jax.train.sources import Source

METRICS = ("nll", "ece", "accuracy")


@dataclasses.dataclass(frozen=True)
class Tau(Fit):
    """Chooses temperature and pruning of the posterior, on held-out examples.

    They are those of posterior samples, or of a Laplace fit's linearised predictions.

    Every tau goes with every prune. The best is that of lowest NLL or ECE, or highest
    accuracy; of equal ones that of tau nearest to 1 (as a ratio), then of least prune.

    Attributes:
        taus: temperatures: the posterior variance is divided by tau.
        prunes: shares of entries set to zero, lowest signal-to-noise first.
        by: metric to choose by.
        samples: posterior samples to average, where any are.
    """

    taus: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    prunes: tuple[float, ...] = (0.0,)
    by: Literal["nll", "ece", "accuracy"] = "nll"
    samples: Annotated[int | None, UNSET_SAMPLES] = None

    name: ClassVar = "tau"
    classes_only: ClassVar = True
    RULES: ClassVar = {
        "taus": FINITE_POSITIVE,
        "prunes": DECAY,
        "samples": AT_LEAST_ONE,
    }

    def __post_init__(self) -> None:
        """Checks each number, and that there is something to choose from."""
        super().__post_init__()
        for name in ("taus", "prunes"):
            if not getattr(self, name):
                raise ValueError(f"{name}: name at least one")

    @property
    def splits(self) -> tuple[str, ...]:
        """The held-out training examples."""
        return ("validation",)

    def _pairs(self, source: Source) -> list[Any]:
        base = tempered(source.predictors, self.samples or SAMPLES)
        return [
            dataclasses.replace(base, tau=tau, prune=prune)
            for prune in self.prunes
            for tau in self.taus
        ]

    def check(self, source: Source) -> None:
        """Checks that the task has classes, and the posterior a variance."""
        super().check(source)
        problem, posterior = source.problem, source.posterior
        if not posterior.spread:
            raise ValueError(f"taus: {source.method} has no posterior to temper")
        for pair in self._pairs(source):
            pair.split(posterior, problem.network.dropout)

    def fit(self, sources: Sequence[Source], work: Work) -> Fitted:
        """Scores every pair and chooses one.

        Raises:
            ValueError: a prediction is not finite.
        """
        (source,) = sources
        problem, pairs = source.problem, self._pairs(source)
        held_out = problem.splits["validation"]
        predictions = source.predict("validation", pairs, work.chunk_size)
        rows = {
            pair: score(problem, source.method, pair, predictions[pair], held_out)
            for pair in pairs
        }
        sign = -1 if self.by == "accuracy" else 1

        def rank(pair: Any) -> tuple[float, float, float]:
            return sign * rows[pair][self.by], abs(math.log(pair.tau)), pair.prune

        chosen = min(rows, key=rank)
        names = ("tau", "prune", *METRICS)
        curve = [{name: row[name] for name in names} for row in rows.values()]
        found = {"tau": chosen.tau, "prune": chosen.prune, "curve": curve}
        return Fitted(source.posterior, (chosen,), found)
