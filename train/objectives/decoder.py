"""The hidden states of a decoder's batch."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivon_jax.train.data.batches import Batch
from ivon_jax.train.objectives.base import Bound


def states_at(
    model: Bound,
    batch: Batch,
    reads: Int[Array, "b q"],
    prefix: Int[Array, " p"] | None = None,
) -> Float[Array, "b q d"]:
    """Computes hidden states of chosen tokens; no text of a row sees another.

    Args:
        model: the model.
        batch: the texts, without the prefix if one is given.
        reads: positions of the tokens in their rows.
        prefix: common prefix of all texts, computed once for each row.
    """
    tokens: Any = batch.tokens
    start = 0
    if prefix is not None and len(prefix):
        start = len(prefix)
        shared = jnp.broadcast_to(prefix[None], (len(tokens), start))
        tokens = jnp.concatenate([shared, tokens], axis=1)
    states: Float[Array, "b q d"] = model(
        tokens, packed=batch.packed, reads=start + reads
    )
    return states
