"""Metrics of regression, as pure functions.

Every function takes predictions [n] and targets [n], and works under `jax.jit` and
`jax.vmap`, in at least float32. A value that is not finite makes it NaN.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def mse(predictions: Float[Array, "n"], targets: Float[Array, "n"]) -> Float[Array, ""]:
    """Returns the mean squared error.

    Args:
        predictions: predicted numbers, [n].
        targets: true numbers, [n].

    Returns:
        Scalar in [0, inf).

    Example:
        >>> float(mse(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
        2.0
    """
    return jnp.mean(jnp.square(_upcast(predictions) - _upcast(targets)))


def pearson(
    predictions: Float[Array, "n"], targets: Float[Array, "n"]
) -> Float[Array, ""]:
    """Returns Pearson's correlation.

    Args:
        predictions: predicted numbers, [n].
        targets: true numbers, [n].

    Returns:
        Scalar in [-1, 1]; NaN if either is constant.

    Example:
        >>> x = jnp.array([1.0, 2.0, 4.0])
        >>> print(f"{pearson(x, 3 - x):.2f}")
        -1.00
    """
    x, y = _centred(predictions), _centred(targets)
    x, y = x / jnp.linalg.norm(x), y / jnp.linalg.norm(y)
    return jnp.clip(jnp.sum(x * y), -1, 1)


def spearman(
    predictions: Float[Array, "n"], targets: Float[Array, "n"]
) -> Float[Array, ""]:
    """Returns Spearman's rank correlation; equal values share their mean rank.

    Args:
        predictions: predicted numbers, [n].
        targets: true numbers, [n].

    Returns:
        Scalar in [-1, 1]; NaN if either is constant.

    Example:
        >>> x = jnp.array([1.0, 2.0, 4.0])
        >>> print(f"{spearman(x, jnp.exp(x)):.2f}")
        1.00
    """
    return pearson(_ranks(predictions), _ranks(targets))


def summary(
    predictions: Float[Array, "n"], targets: Float[Array, "n"]
) -> dict[str, Float[Array, ""]]:
    """Returns all metrics of a set of predictions.

    Args:
        predictions: predicted numbers, [n].
        targets: true numbers, [n].

    Returns:
        Scalars by name.
    """
    return {
        "pearson": pearson(predictions, targets),
        "spearman": spearman(predictions, targets),
        "mse": mse(predictions, targets),
    }


def _upcast(values: Float[Array, "n"]) -> Float[Array, "n"]:
    values = jnp.asarray(values)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must be [n], not empty, got shape {values.shape}")
    # NumPy's promotion, because JAX's refuses 16 with 32 bits in strict mode.
    return values.astype(np.promote_types(values.dtype, np.float32))


def _centred(values: Float[Array, "n"]) -> Float[Array, "n"]:
    # The first is subtracted, so that equal values give exact zeros.
    values = _upcast(values)
    values = values - values[0]
    return values - values.mean()


def _ranks(values: Float[Array, "n"]) -> Float[Array, "n"]:
    values = _upcast(values)
    ordered = jnp.sort(values)
    below = jnp.searchsorted(ordered, values, side="left")
    up_to = jnp.searchsorted(ordered, values, side="right")
    ranks = (below + up_to).astype(values.dtype) / 2
    return jnp.where(jnp.isfinite(values), ranks, jnp.nan)
