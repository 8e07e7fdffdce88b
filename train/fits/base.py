"""The interface of fits: options, and one function of finished runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from ivon_jax.checks import Rule, check
from ivon_jax.kinds import Distribution
from ivon_jax.train.fits.partial import Partial
from ivon_jax.train.options import unset
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.sources import Source

# Posterior samples that fits average by default, and the option's annotation.
SAMPLES = 10
UNSET_SAMPLES = unset("INT", f"{SAMPLES}; in a comparison, as its runs")


class Fitted(NamedTuple):
    """The result of a fit.

    Attributes:
        posterior: posterior of the same parameters as those of the sources.
        predictors: the ways to predict that the fit is for; ``ivon-jax evaluate`` uses
            them beside the mean.
        numbers: what was found, by name: JSON values.
    """

    posterior: Distribution
    predictors: Sequence[Predictor]
    numbers: Mapping[str, Any]


class Work(NamedTuple):
    """How a fit is computed; no result depends on it.

    Attributes:
        chunk_size: draws of predictions at a time.
        partial: keeps what an unfinished fit has computed.
    """

    chunk_size: int
    partial: Partial


@dataclasses.dataclass(frozen=True)
class Fit:
    """A way to make a run of finished ones; subclasses are its options.

    Attributes:
        name: value of ``--method``.
        several: whether it takes more than one source.
        classes_only: whether the task must ask for a class.
        one_mean: whether the run must have one mean, not several members.
    """

    name: ClassVar[str]
    several: ClassVar[bool] = False
    classes_only: ClassVar[bool] = False
    one_mean: ClassVar[bool] = False
    RULES: ClassVar[Mapping[str, Rule]] = {}

    def __post_init__(self) -> None:
        """Checks each number."""
        for name, rule in self.RULES.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None:  # unset
                    check(name, one, rule)

    @property
    def splits(self) -> tuple[str, ...]:
        """The examples of the first source that it reads.

        Among ``train`` and ``validation``, the training examples that were held out.
        """
        return ()

    def averaging(self, samples: int) -> "Fit":
        """Returns the fit with a number of samples, where its options leave it open.

        Args:
            samples: value for the field ``samples``, if the fit has one that is None.
        """
        own: Any = self
        if getattr(own, "samples", samples) is None:
            return dataclasses.replace(own, samples=samples)
        return self

    def check(self, source: Source) -> None:
        """Checks that a source has what the fit needs, before anything is computed.

        A comparison checks so before it trains: the posterior's arrays then have
        shapes, but no values.

        Raises:
            ValueError: it lacks something.
        """
        answer = source.problem.objective.answer
        if self.classes_only and answer != "class":
            raise ValueError(
                f"{self.name}: only for classes, the task asks for a {answer}"
            )
        if self.one_mean and source.posterior.has_members:
            raise ValueError(f"{self.name}: the run has several members, not one mean")

    def fit(self, sources: Sequence[Source], work: Work) -> Fitted:
        """Fits.

        Args:
            sources: the runs or adapters, with one model in common, checked. The
                problem's splits are those that the fit asks for.
            work: how to compute.

        Raises:
            ValueError: there is no result.
        """
        raise NotImplementedError
