"""The predictors that an evaluation asks for."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp

from ivon_jax.kinds import Distribution
from ivon_jax.posterior import Posterior
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.predictors.linearised import Linearised
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.point import others
from ivon_jax.train.predictors.samples import Samples


class Wanted(NamedTuple):
    """The predictors to evaluate, as options of the command line.

    Attributes:
        samples: posterior samples to average; None for 10, or for all there are.
        tau: temperature of the samples.
        prune: share of entries set to zero.
        dropout_samples: dropout masks to average; 0 for none.
        temperature: whether to scale each predictor too, by a temperature fitted on
            the held-out training examples.
        linearised: the predictor of the linearised model, if it is wanted.
    """

    samples: int | None = None
    tau: float = 1.0
    prune: float = 0.0
    dropout_samples: int = 0
    temperature: bool = False
    linearised: Linearised | None = None

    def predictors(
        self, posterior: Distribution, own: Sequence[Predictor] = ()
    ) -> list[Predictor]:
        """Returns the predictors without temperature scaling, which must be fitted.

        The mean, unless it is that of several members; samples and other points, as far
        as the posterior has them; then those that options add.

        Args:
            posterior: the posterior.
            own: those that a fitted run is for; they take the place of samples and
                points unless an option changes the samples.

        Raises:
            ValueError: a number is out of range, or tau is given for a point.

        Example:
            >>> from ivon_jax import Posterior
            >>> Wanted().predictors(Posterior.point({}), [Samples(2)])
            [Mean(prune=0.0), Samples(samples=2, tau=1.0, prune=0.0)]
        """
        size = posterior.size or 10
        sampled = Samples(
            size if self.samples is None else self.samples, self.tau, self.prune
        )
        if self.tau != 1 and not posterior.spread:
            raise ValueError("tau: the method has no posterior to temper")
        found: list[Predictor] = [] if posterior.has_members else [Mean(self.prune)]
        if own and (self.samples, self.tau, self.prune) == (None, 1.0, 0.0):
            found += own
        else:
            found += [*others(posterior), *[sampled] * posterior.spread]
        if self.dropout_samples:
            found.append(Dropout(self.dropout_samples))
        if self.linearised:
            found.append(self.linearised)
        return list(dict.fromkeys(found))

    def check(self) -> None:
        """Checks the numbers.

        Raises:
            ValueError: one is out of range.
        """
        gaussian = Posterior({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, {})
        self.predictors(gaussian)
