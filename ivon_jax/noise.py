"""Gaussian noise as a function of only key, sample index and leaf path.

So a leaf's noise is the same in the whole tree and in a masked part of it, in any tree
order and, as JAX's generators are partitionable, under any sharding. The optimizer can
redraw it from the key instead of storing it.
"""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key


def standard_normal(
    key: Key[Array, ""],
    name: str,
    like: Float[Array, "..."],
    index: int | Int[Array, ""],
) -> Float[Array, "..."]:
    """Draws the standard normal noise of one leaf.

    Args:
        key: the step's (or the ensemble's) key.
        name: the leaf's path name, see `ivon_jax._tree.path_name`.
        like: an array of the same shape and dtype.
        index: index of the Monte-Carlo sample.

    Returns:
        Noise of the shape and dtype of `like`.
    """
    leaf_key = jax.random.fold_in(
        jax.random.fold_in(key, index), np.uint32(zlib.crc32(name.encode()))
    )
    return jax.random.normal(leaf_key, like.shape, like.dtype)


def gaussian(
    key: Key[Array, ""],
    precision: dict[str, Float[Array, "..."]],
    index: int | Int[Array, ""],
) -> dict[str, Float[Array, "..."]]:
    """Draws noise of a diagonal Gaussian, zero where the precision is infinite."""
    # Not rsqrt, an approximation that CPUs round differently in vectors of 16 and in
    # the remainder of a shard; division and square root are exactly rounded everywhere.
    return {
        name: standard_normal(key, name, leaf, index) * jnp.sqrt(1 / leaf)
        for name, leaf in precision.items()
    }
