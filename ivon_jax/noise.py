"""Gaussian noise that depends on nothing but key, sample index and leaf path.

Because a leaf's noise does not depend on its neighbours, it is the same whether
the optimizer sees the whole tree or a masked part of it, in any tree order, and,
since JAX's counter-based generators are partitionable, under any sharding. The
optimizer can therefore redraw it from the key instead of storing it.
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
        like: an array of the wanted shape and dtype.
        index: which Monte-Carlo sample.

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
    """Draws the noise of a diagonal Gaussian around zero.

    Args:
        key: the step's (or the ensemble's) key.
        precision: inverse variances by leaf path; infinite ones give zero.
        index: which Monte-Carlo sample.

    Returns:
        Noise of each leaf's shape and dtype.
    """
    # Not rsqrt, an approximation that CPUs round differently in vectors of 16 than in
    # the remainder of a shard; division and square root are exactly rounded anywhere.
    return {
        name: standard_normal(key, name, leaf, index) * jnp.sqrt(1 / leaf)
        for name, leaf in precision.items()
    }
