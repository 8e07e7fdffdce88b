"""Log-probabilities of tokens, without the logits of the whole batch at once."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivon_jax.train.pod.sharding import BATCH_AXES

# Tokens of a device in a block. Each block reads the output matrix again: with fewer, a
# large vocabulary's product waits for that.
BLOCK_TOKENS = 512


def token_log_probs(
    unembed: Callable[[Float[Array, "r w d"]], Float[Array, "r w v"]],
    hidden: Float[Array, "r q d"],
    targets: Int[Array, "r q"],
    block_tokens: int = BLOCK_TOKENS,
) -> Float[Array, "r q 2"]:
    """Computes the log-probabilities of target tokens, and of the likeliest ones.

    The vocabulary's logits are computed for a block of tokens at a time, and again in
    the backward pass. Their memory is that of a block, whatever the batch; the price
    is one more product with the output matrix for each token.

    Args:
        unembed: maps hidden states to logits in float32.
        hidden: the state from which each token is predicted.
        targets: the tokens.
        block_tokens: tokens of a block on a device, at least one of each row.

    Returns:
        For each token its log-probability, and the largest of the vocabulary, which
        has no gradient. They are equal where the token is the likeliest.
    """
    rows, count, _ = hidden.shape
    columns = max(1, block_tokens // -(-rows // _shards()))
    blocks = -(-count // columns)
    columns = -(-count // blocks)

    def split(values: Array) -> Array:
        padding = [(0, 0), (0, blocks * columns - count)]
        padding += [(0, 0)] * (values.ndim - 2)
        parts = jnp.pad(values, padding).reshape(
            rows, blocks, columns, *values.shape[2:]
        )
        return jnp.swapaxes(parts, 0, 1)

    @jax.checkpoint
    def block(part: tuple[Array, Array]) -> Float[Array, "r w 2"]:
        states, ids = part
        logits = unembed(states)
        total = jax.nn.logsumexp(logits, axis=-1)
        # A sum, not a gather: it has no scatter as its gradient, and can be split
        # along the vocabulary.
        chosen = jnp.arange(logits.shape[-1])[None, None] == ids[..., None]
        target = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
        largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1) - total)
        return jnp.stack([target - total, largest], axis=-1)

    found = jax.lax.map(block, (split(hidden), split(targets)))
    return jnp.swapaxes(found, 0, 1).reshape(rows, -1, 2)[:, :count]


def _shards() -> int:
    """Returns the number of parts that the mesh splits a batch into."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
