"""What a predictor is."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax.kinds import Distribution

# outputs(params, dropout key or None)
Outputs = Callable[[PyTree, Any], Float[Array, "b c"]]


class Keys(NamedTuple):
    """Keys of a predictor's draws.

    Attributes:
        ensemble: the same for all batches, so that all examples see the same draws.
        batch: of one batch.
    """

    ensemble: Key[Array, ""]
    batch: Key[Array, ""]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A way to predict; subclasses are frozen dataclasses of its settings.

    Attributes:
        kind: what a results table calls it.
        shares_prefix: whether what all prompts begin with may be computed once for
            all examples of a batch.
    """

    kind: ClassVar[str]
    shares_prefix: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """Spells the settings, for the name of a file."""
        raise NotImplementedError

    @property
    def suffix(self) -> str:
        """Spells the settings, behind the method's name in a table."""
        raise NotImplementedError

    @property
    def passes(self) -> int:
        """Forward passes for every example."""
        return 1

    def split(
        self, posterior: Distribution, dropout: float
    ) -> tuple[Distribution, "Predictor"]:
        """Applies the settings that change the posterior.

        Args:
            posterior: of the trained parameters.
            dropout: rate that the model was trained with.

        Returns:
            What to draw from, and the predictor without these settings: one program
            serves all of them.

        Raises:
            ValueError: the posterior cannot be used so.
        """
        return posterior, self

    def draws(
        self,
        outputs: Outputs,
        posterior: Distribution,
        keys: Keys,
        chunk_size: int | None,
    ) -> Float[Array, "s b c"]:
        """Computes the outputs of every draw for a batch, inside jit.

        Args:
            outputs: of the model.
            posterior: from `split`.
            keys: of the draws.
            chunk_size: draws at a time; None for all.
        """
        raise NotImplementedError

    def finish(
        self, predictions: Float[np.ndarray, "s n c"]
    ) -> Float[np.ndarray, "_ n c"]:
        """Changes the predictions of all examples, on the host."""
        return predictions

    def starts(self, other: "Predictor") -> bool:
        """Whether its draws are the first ones of another predictor."""
        return False

    def fields(self) -> dict[str, Any]:
        """Returns the settings as they stand in a row of results."""
        return {"samples": 0, "tau": 1.0, "prune": 0.0} | vars(self)

    @classmethod
    def from_fields(cls, row: Mapping[str, Any]) -> "Predictor":
        """Rebuilds the predictor of a row of results."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})


def pruned(posterior: Distribution, prune: float) -> Distribution:
    """Prunes, if there is something to choose entries by.

    Raises:
        ValueError: there is not.
    """
    if prune and not posterior.spread:
        raise ValueError("prune: the method has no posterior to choose entries by")
    return posterior.prune(prune) if prune else posterior
