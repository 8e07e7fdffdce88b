"""Predictions averaged over posterior samples."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from jaxtyping import Array, Float

from ivon_jax.checks import AT_LEAST_ONE, DECAY, FINITE_POSITIVE, check
from ivon_jax.ensemble import ensemble_outputs
from ivon_jax.kinds import Distribution
from ivon_jax.train.predictors.base import Keys, Outputs, Predictor, pruned


@dataclasses.dataclass(frozen=True)
class Samples(Predictor):
    """Averages over posterior samples.

    Attributes:
        samples: number of samples.
        tau: temperature: the variance is divided by it.
        prune: share of entries set to zero, lowest signal-to-noise first.
    """

    samples: int = 10
    tau: float = 1.0
    prune: float = 0.0

    kind: ClassVar = "samples"

    def __post_init__(self) -> None:
        """Checks each field."""
        check("samples", self.samples, AT_LEAST_ONE)
        # Infinity is not JSON, and is the same as `Mean`.
        check("tau", self.tau, FINITE_POSITIVE)
        check("prune", self.prune, DECAY)

    @property
    def name(self) -> str:
        """The settings as part of a file's name.

        >>> Samples(10, tau=2.0, prune=0.25).name
        '10-tau2.0-prune0.25'
        """
        tau = f"-tau{self.tau}" if self.tau != 1 else ""
        prune = f"-prune{self.prune}" if self.prune else ""
        return f"{self.samples}{tau}{prune}"

    @property
    def suffix(self) -> str:
        """The settings as shown after the method's name in a table."""
        return f", {self.samples} samples, tau {self.tau:g}, prune {self.prune:g}"

    @property
    def passes(self) -> int:
        """One for each sample."""
        return self.samples

    def split(
        self, posterior: Distribution, dropout: float
    ) -> tuple[Distribution, "Samples"]:
        """Prunes and tempers."""
        if posterior.size is not None and self.samples > posterior.size:
            raise ValueError(
                f"samples: {self.samples} is not <= {posterior.size}, the number of"
                " members of the posterior"
            )
        return pruned(posterior, self.prune).temper(self.tau), Samples(self.samples)

    def draws(
        self,
        outputs: Outputs,
        posterior: Distribution,
        keys: Keys,
        chunk_size: int | None,
    ) -> Float[Array, "s b c"]:
        """Computes the outputs of every sample; all batches share the samples."""
        return ensemble_outputs(
            lambda params: outputs(params, None),
            posterior,
            keys.ensemble,
            self.samples,
            chunk_size,
        )

    def starts(self, other: Predictor) -> bool:
        """Returns whether the other averages over these samples and more."""
        return (
            isinstance(other, Samples)
            and self.samples <= other.samples
            and dataclasses.replace(other, samples=self.samples) == self
        )


def tempered(own: Sequence[Predictor], samples: int) -> Any:
    """Returns what a run's temperature and pruning are varied of.

    Args:
        own: the run's own predictors.
        samples: posterior samples to average, where it averages any.

    Returns:
        A predictor with the fields ``tau`` and ``prune``: the last own one that has
        them and averages no samples, as of a Laplace fit; else `Samples`.
    """
    for predictor in reversed(own):
        base = predictor.base
        if {"tau", "prune"} <= vars(base).keys() and not isinstance(base, Samples):
            return base
    return Samples(samples)
