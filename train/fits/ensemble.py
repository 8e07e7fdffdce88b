"""Ensembles of finished runs and adapters (Lakshminarayanan et al., 2017)."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import jax

from ivon_jax.checks import AT_LEAST_ONE
from ivon_jax.kinds import Distribution
from ivon_jax.mixture import Mixture
from ivon_jax.particles import Particles
from ivon_jax.posterior import Posterior
from ivon_jax.train.fits.base import Fit, Fitted, Work
from ivon_jax.train.options import unset
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.sources import Source

ROUND = unset("INT", "all members; of posteriors, 10 rounded up to as many of each")


@dataclasses.dataclass(frozen=True)
class Ensemble(Fit):
    """Averages the probabilities of runs and adapters of one base, rank and task.

    Never the adapters themselves, whose ranks have no common order.

    Attributes:
        members: what a run contributes: its posterior mean, or draws of its posterior,
            as MultiSWAG does.
        samples: members, or draws, to average.
    """

    members: Literal["mean", "posterior"] = "mean"
    samples: Annotated[int | None, ROUND] = None

    name: ClassVar = "ensemble"
    several: ClassVar = True
    RULES: ClassVar = {"samples": AT_LEAST_ONE}

    def fit(self, sources: Sequence[Source], work: Work) -> Fitted:
        """Collects the members.

        Raises:
            ValueError: there are fewer than two, one is named twice, or none has a
                posterior to draw from.
        """
        if len({source.path for source in sources} - {None}) < len(sources):
            raise ValueError("directories: one is named twice")
        members = [
            member
            for source in sources
            for member in _members(source.posterior, whole=self.members == "posterior")
        ]
        if len(members) < 2:
            raise ValueError("directories: an ensemble needs two members at least")
        posterior: Distribution
        if any(member.spread for member in members):
            posterior = Mixture.of(members)
            samples = -(-10 // len(members)) * len(members)
        elif self.members == "posterior":
            raise ValueError("members: none has a posterior to draw from; use mean")
        else:
            posterior = Particles.of([member.mean for member in members])
            samples = len(members)
        predictor = Samples(self.samples or samples)
        predictor.split(posterior, dropout=0.0)  # refuses more than there are members
        return Fitted(posterior, (predictor,), {"members": len(members)})


def _members(posterior: Distribution, *, whole: bool) -> list[Distribution]:
    """Returns a run's posterior as members; one of several members as each of them."""
    if isinstance(posterior, Mixture):
        return [x for part in posterior.parts for x in _members(part, whole=whole)]
    if posterior.size is not None:
        key = jax.random.key(0)  # not used: all of them are drawn
        drawn = [posterior.draw(key, index) for index in range(posterior.size)]
        return [Posterior.point(params) for params in drawn]
    return [posterior if whole else Posterior.point(posterior.mean)]
