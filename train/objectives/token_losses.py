"""Log-probabilities of tokens, without the logits of the whole batch at once."""

import functools
import math
from collections.abc import Callable
from typing import Any

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

    The vocabulary's logits are computed for a block of tokens at a time. Their memory
    is that of a block, whatever the batch. The gradient of each log-probability by its
    hidden state is computed with the logits and kept for the backward pass, which
    computes them again only if what `unembed` reads is trained.

    Args:
        unembed: maps hidden states to logits in float32.
        hidden: the state from which each token is predicted.
        targets: the tokens.
        block_tokens: tokens of a block on a device, at least one of each row.

    Returns:
        For each token its log-probability, and the largest of the vocabulary, which
        has no gradient. They are equal where the token is the likeliest. There is no
        forward mode.
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

    states, ids = split(hidden), split(targets)
    logits, read = jax.closure_convert(unembed, states[0])
    found = _in_blocks(logits, read, states, ids)
    return jnp.swapaxes(found, 0, 1).reshape(rows, -1, 2)[:, :count]


def _block(
    unembed: Callable[..., Float[Array, "r w v"]],
    read: list[Array],
    states: Float[Array, "r w d"],
    ids: Int[Array, "r w"],
) -> Float[Array, "r w 2"]:
    """Computes the two log-probabilities of a block's tokens."""
    logits = unembed(states, *read)
    total = jax.nn.logsumexp(logits, axis=-1)
    # A sum, not a gather: it has no scatter as its gradient, and can be split along the
    # vocabulary.
    chosen = jnp.arange(logits.shape[-1])[None, None] == ids[..., None]
    target = jnp.sum(jnp.where(chosen, logits, 0), axis=-1)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1) - total)
    return jnp.stack([target - total, largest], axis=-1)


def _recomputed(unembed: Any, read: Any, states: Any, ids: Any) -> Array:
    """Computes the blocks one after another; their gradients compute them again."""

    @jax.checkpoint
    def block(part: tuple[Array, Array]) -> Array:
        return _block(unembed, read, *part)

    found: Array = jax.lax.map(block, (states, ids))
    return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _in_blocks(
    unembed: Callable[..., Float[Array, "r w v"]],
    read: list[Array],
    states: Float[Array, "n r w d"],
    ids: Int[Array, "n r w"],
) -> Float[Array, "n r w 2"]:
    return _recomputed(unembed, read, states, ids)


def _forward(unembed: Any, read: Any, states: Any, ids: Any) -> Any:
    """Computes the blocks, and each token's gradient by its hidden state."""
    trained = any(leaf.perturbed for leaf in read)
    values = [leaf.value for leaf in read]

    def block(part: tuple[Array, Array]) -> tuple[Array, Array]:
        found, pull = jax.vjp(lambda x: _block(unembed, values, x, part[1]), part[0])
        (slopes,) = pull(jnp.ones_like(found))
        return found, slopes

    inputs = (states.value, ids.value)
    found, slopes = jax.lax.map(block, inputs)
    return found, (slopes, (values, *inputs) if trained else None)


def _backward(unembed: Any, saved: Any, cotangent: Any) -> Any:
    """Scales the gradients; those of what is read are computed here."""
    slopes, inputs = saved
    own = slopes.astype(cotangent.dtype) * cotangent[..., :1]
    own = own.astype(slopes.dtype)
    if inputs is None:
        return None, own, None
    values, *parts = inputs
    _, pull = jax.vjp(lambda read: _recomputed(unembed, read, *parts), values)
    return *pull(cotangent), own, None


_in_blocks.defvjp(_forward, _backward, symbolic_zeros=True)


def _shards() -> int:
    """Returns the number of parts that the mesh splits a batch into."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
