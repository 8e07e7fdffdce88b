"""The choice of entries to prune: those of lowest signal-to-noise ratio."""

import math
from decimal import Decimal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ivon_jax._tree import by_path, gathered, sharded_like
from ivon_jax.checks import RATIO, check

Leaves = dict[str, Float[Array, "..."]]


def lowest(
    mean: PyTree, precision: Leaves, ratio: float, scope: str = "global"
) -> dict[str, Bool[Array, "..."]]:
    """Marks the entries of lowest |m|/sqrt(v); see `ivon_jax.Posterior.prune`.

    Args:
        mean: the mean m.
        precision: 1/v by leaf path; other leaves have no ratio.
        ratio: share of the entries.
        scope: rank all entries together ("global"), or within each "matrix".

    Returns:
        True at those entries, by leaf path.

    Raises:
        ValueError: ratio or scope is illegal.
    """
    check("prune", ratio, RATIO)
    if scope not in ("global", "matrix"):
        raise ValueError(f"scope: {scope!r} is not 'global' or 'matrix'")
    leaves = by_path(mean)
    score = {
        name: gathered(signal_to_noise(jnp.asarray(leaves[name], leaf.dtype), leaf))
        for name, leaf in precision.items()
    }
    choose = _lowest_global if scope == "global" else _lowest_per_matrix
    drop = choose(score, ratio)
    return {name: sharded_like(drop[name], leaf) for name, leaf in precision.items()}


def signal_to_noise(mean: Array, precision: Array) -> Array:
    """Returns |m|/sigma, and 0 where m is."""
    return jnp.where(mean == 0, 0, jnp.abs(mean) * jnp.sqrt(precision))


def _count(ratio: float, size: int) -> int:
    """Returns floor(ratio * size) in decimals: 0.29 * 100 is 29, not 28."""
    return math.floor(Decimal(str(ratio)) * size)


def _lowest(score: Float[Array, " d"], ratio: float) -> Array:
    order = jnp.argsort(score, stable=True)
    rank = jnp.zeros(score.shape, int).at[order].set(jnp.arange(score.size))
    return rank < _count(ratio, score.size)


def _lowest_global(score: Leaves, ratio: float) -> dict[str, Array]:
    if not score:
        return {}
    drop = _lowest(jnp.concatenate([jnp.ravel(s) for s in score.values()]), ratio)
    ends = np.cumsum([s.size for s in score.values()])[:-1]
    parts = jnp.split(drop, ends)
    return {
        name: part.reshape(s.shape)
        for (name, s), part in zip(score.items(), parts, strict=True)
    }


def _lowest_per_matrix(score: Leaves, ratio: float) -> dict[str, Array]:
    def leaf(s: Array) -> Array:
        if not s.size:
            return jnp.zeros(s.shape, bool)
        matrices = s.reshape(-1, math.prod(s.shape[-2:]))
        drop = jax.vmap(lambda row: _lowest(row, ratio))(matrices)
        return drop.reshape(s.shape)

    return {name: leaf(s) for name, s in score.items()}
