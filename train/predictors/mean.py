"""Predictions at the posterior mean."""

import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float

from ivon_jax.checks import DECAY, check
from ivon_jax.kinds import Distribution
from ivon_jax.train.predictors.base import Keys, Outputs, Predictor, pruned


@dataclasses.dataclass(frozen=True)
class Mean(Predictor):
    """Predicts with the posterior mean.

    Attributes:
        prune: share of entries set to zero, lowest signal-to-noise first.
    """

    prune: float = 0.0

    kind: ClassVar = "mean"

    def __post_init__(self) -> None:
        """Checks each field."""
        check("prune", self.prune, DECAY)

    @property
    def name(self) -> str:
        """The settings as part of a file's name.

        >>> Mean(0.25).name
        'mean-prune0.25'
        """
        return "mean" + (f"-prune{self.prune}" if self.prune else "")

    @property
    def suffix(self) -> str:
        """The settings as shown after the method's name in a table."""
        return "@mean" + (f", prune {self.prune:g}" if self.prune else "")

    def split(
        self, posterior: Distribution, dropout: float
    ) -> tuple[Distribution, "Mean"]:
        """Prunes.

        Raises:
            ValueError: the posterior has several members, whose average is no model.
        """
        if posterior.has_members and posterior.spread:
            raise ValueError(
                "mean: several members have none; average over samples (--samples, of"
                " text --models)"
            )
        return pruned(posterior, self.prune), Mean()

    def draws(
        self,
        outputs: Outputs,
        posterior: Distribution,
        keys: Keys,
        chunk_size: int | None,
    ) -> Float[Array, "1 b c"]:
        """Computes the outputs at the mean."""
        return outputs(posterior.mean, None)[None]
