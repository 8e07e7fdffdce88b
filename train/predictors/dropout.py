"""MC dropout: predictions averaged over dropout masks (Gal and Ghahramani, 2016)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.kinds import Distribution
from ivon_jax.train.predictors.base import Keys, Outputs, Predictor


@dataclasses.dataclass(frozen=True)
class Dropout(Predictor):
    """Averages over passes at the mean with the training's dropout on.

    Every pass has a mask for each example and position of a batch.

    Attributes:
        samples: number of passes.
    """

    samples: int = 10

    kind: ClassVar = "dropout"
    shares: ClassVar = False  # a common prefix would have one mask for all examples

    def __post_init__(self) -> None:
        """Checks each field."""
        check("dropout_samples", self.samples, AT_LEAST_ONE)

    @property
    def name(self) -> str:
        """The settings as part of a file's name.

        >>> Dropout(10).name
        'dropout10'
        """
        return f"dropout{self.samples}"

    @property
    def suffix(self) -> str:
        """The settings as shown after the method's name in a table."""
        return f", {self.samples} dropout masks"

    @property
    def passes(self) -> int:
        """One for each mask."""
        return self.samples

    def split(
        self, posterior: Distribution, dropout: float
    ) -> tuple[Distribution, "Dropout"]:
        """Refuses a model without dropout, and one of several members."""
        if not dropout:
            raise ValueError("dropout_samples: the run was trained with dropout 0")
        if posterior.has_members:
            raise ValueError(
                "dropout_samples: the run has several members, not one mean"
            )
        return posterior, self

    def draws(
        self,
        outputs: Outputs,
        posterior: Distribution,
        keys: Keys,
        chunk_size: int | None,
    ) -> Float[Array, "s b c"]:
        """Computes the outputs of every mask."""

        def one(index: Int[Array, ""]) -> Float[Array, "b c"]:
            return outputs(posterior.mean, jax.random.fold_in(keys.batch, index))

        indices, size = jnp.arange(self.samples), chunk_size or self.samples
        return jax.lax.map(one, indices, batch_size=min(size, self.samples))
