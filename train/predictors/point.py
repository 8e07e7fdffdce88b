"""Predictions at another point than the mean."""

import dataclasses
from typing import ClassVar

from ivon_jax.kinds import Distribution
from ivon_jax.points import Points
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.mean import Mean


@dataclasses.dataclass(frozen=True)
class Point(Predictor):
    """Predicts with a point that a posterior of points has beside the mean.

    Attributes:
        point: its name.
    """

    point: str

    kind: ClassVar = "point"

    @property
    def name(self) -> str:
        """The settings as part of a file's name.

        >>> Point("last").name
        'last'
        """
        return self.point

    @property
    def suffix(self) -> str:
        """The settings as shown after the method's name in a table."""
        return f", {self.point}"

    def split(
        self, posterior: Distribution, dropout: float
    ) -> tuple[Distribution, Mean]:
        """Chooses the point."""
        if not isinstance(posterior, Points):
            raise ValueError(f"point: the posterior has no point {self.point!r}")
        return posterior.at(self.point), Mean()


def others(posterior: Distribution) -> tuple[Point, ...]:
    """Returns the predictors at all points that a posterior has beside its mean."""
    found = posterior.others if isinstance(posterior, Points) else ()
    return tuple(Point(name) for name in sorted(found))
