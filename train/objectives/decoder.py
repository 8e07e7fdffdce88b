"""The hidden states of a decoder's batch."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivon_jax.train.data.batches import Batch
from ivon_jax.train.objectives.base import Bound


def hidden_states(
    model: Bound, batch: Batch, prefix: Int[Array, " p"] | None = None
) -> Float[Array, "r s d"]:
    """Computes hidden states at every position; no text of a row sees another.

    Args:
        model: the model.
        batch: the texts, without the prefix if one is given.
        prefix: common prefix of all texts, computed once for the batch.
    """
    past = None
    if prefix is not None and len(prefix):
        _, past = model(prefix[None], return_cache=True)
    ends = jnp.cumsum(batch.lengths, axis=1)
    segments = None
    if ends.shape[1] > 1:
        index = jnp.arange(batch.tokens.shape[1])[None, :, None]
        segments = jnp.sum(index >= ends[:, None], axis=2)
    hidden: Float[Array, "r s d"] = model(batch.tokens, past=past, segments=segments)
    return hidden
