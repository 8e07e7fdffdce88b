"""The interface of predictors."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax.kinds import Distribution
from ivon_jax.train.data.batches import Batch

Row = dict[str, Any]  # of a table of results


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The model's outputs for a batch, as a function of its parameters.

    Attributes:
        forward: maps parameters, a batch, and a dropout key or None to outputs.
        batch: the batch.
    """

    forward: Callable[[PyTree, Batch, Any], Float[Array, "b c"]]
    batch: Batch

    def __call__(
        self, params: PyTree, dropout: Key[Array, ""] | None = None
    ) -> Float[Array, "b c"]:
        """Computes the outputs of all texts."""
        return self.forward(params, self.batch, dropout)

    def map_rows(
        self, fn: Callable[[Callable[[PyTree], Float[Array, " c"]]], PyTree], size: int
    ) -> PyTree:
        """Applies a function to the outputs of each row by itself, without dropout.

        A row must hold one text: `packs` is False.

        Args:
            fn: takes a function from parameters to a row's outputs.
            size: maximal number of rows at a time.

        Returns:
            The results, stacked.
        """

        def one(row: Batch) -> PyTree:
            single = jax.tree.map(lambda leaf: leaf[None], row)
            return fn(lambda params: self.forward(params, single, None)[0])

        count = len(self.batch.lengths)
        size = next(n for n in range(min(size, count), 0, -1) if count % n == 0)

        # Strided, so that rows that are split over devices stay split in each part.
        def split(leaf: Array) -> Array:
            whole = leaf.reshape(size, count // size, *leaf.shape[1:])
            return jnp.swapaxes(whole, 0, 1)

        def join(leaf: Array) -> Array:
            return jnp.swapaxes(leaf, 0, 1).reshape(count, *leaf.shape[2:])

        parts = jax.tree.map(split, self.batch)
        return jax.tree.map(join, jax.lax.map(jax.vmap(one), parts))


class Keys(NamedTuple):
    """Keys of a predictor's draws.

    Attributes:
        ensemble: key shared by all batches, so that all examples see the same draws.
        batch: key of one batch.
    """

    ensemble: Key[Array, ""]
    batch: Key[Array, ""]


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A way to predict; subclasses are frozen dataclasses of its settings.

    Attributes:
        kind: its name in a row of results.
        classes_only: whether it predicts classes only.
        packs: whether a row of a batch may hold several texts.
        shares: whether it may also compute their common prefix once.
    """

    kind: ClassVar[str]
    classes_only: ClassVar[bool] = False
    packs: ClassVar[bool] = True
    shares: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The settings as part of a file's name."""
        raise NotImplementedError

    @property
    def suffix(self) -> str:
        """The settings as shown after the method's name in a table."""
        raise NotImplementedError

    @property
    def passes(self) -> int:
        """Number of forward passes of every example."""
        return 1

    def backward_passes(self, classes: int) -> int:
        """Returns the number of backward passes of every example."""
        return 0

    @property
    def base(self) -> "Predictor":
        """The predictor whose draws it uses: itself, unless it only scales another."""
        return self

    def split(
        self, posterior: Distribution, dropout: float
    ) -> tuple[Distribution, "Predictor"]:
        """Applies the settings that change the posterior.

        Args:
            posterior: posterior of the trained parameters.
            dropout: dropout rate of training.

        Returns:
            The posterior to draw from, and the predictor without these settings, so
            that all of them share one program.

        Raises:
            ValueError: the predictor cannot use the posterior.
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
            outputs: the model's outputs as a function of parameters and dropout key.
            posterior: posterior from `split`.
            keys: keys of the draws.
            chunk_size: draws at a time; None for all.
        """
        raise NotImplementedError

    def finish(
        self, predictions: Float[np.ndarray, "s n c"]
    ) -> Float[np.ndarray, "_ n c"]:
        """Post-processes the predictions of all examples, on the host."""
        return predictions

    def starts(self, other: "Predictor") -> bool:
        """Returns whether its draws are the first ones of another predictor."""
        return False

    def suits(self, posterior: Distribution) -> bool:
        """Returns whether it can use a posterior, of a run without dropout."""
        try:
            self.split(posterior, 0.0)
        except ValueError:
            return False
        return True

    def fields(self) -> dict[str, Any]:
        """Returns the settings as fields of a row of results."""
        return {"samples": 0, "tau": 1.0, "prune": 0.0} | vars(self)

    def row(self, method: str) -> Row:
        """Returns a method's row of results without the metrics."""
        return {"method": method, "predict": self.kind, **self.fields()}

    @classmethod
    def from_fields(cls, row: Mapping[str, Any]) -> "Predictor":
        """Rebuilds the predictor of a row of results."""
        return cls(**{field.name: row[field.name] for field in dataclasses.fields(cls)})


def pruned(posterior: Distribution, prune: float) -> Distribution:
    """Prunes a posterior.

    Args:
        posterior: what is pruned.
        prune: share of entries set to zero; 0 changes nothing.

    Raises:
        ValueError: it is a point, which has no signal-to-noise ratios.
    """
    if prune and not posterior.spread:
        raise ValueError("prune: the method has no posterior to choose entries by")
    return posterior.prune(prune) if prune else posterior
