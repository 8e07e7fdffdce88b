"""The random streams of a run, all from one seed."""

from typing import NamedTuple

import jax
from jaxtyping import Array, Key


class Streams(NamedTuple):
    """Independent keys of one run."""

    adapters: Key[Array, ""]
    noise: Key[Array, ""]
    dropout: Key[Array, ""]
    ensemble: Key[Array, ""]

    @classmethod
    def from_seed(cls, seed: int) -> "Streams":
        """Folds the index of each stream into the seed's key."""
        key = jax.random.key(seed)
        return cls(*(jax.random.fold_in(key, i) for i in range(len(cls._fields))))
