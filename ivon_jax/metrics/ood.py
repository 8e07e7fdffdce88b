"""Detection of examples of another distribution by a score, such as the entropy.

A score is higher for what looks foreign. Foreign examples are the positive class; of
tied scores each order counts alike. All functions work under `jax.jit` and `jax.vmap`;
a NaN among the scores makes them NaN.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def auroc(own: Float[Array, "n"], foreign: Float[Array, "m"]) -> Float[Array, ""]:
    """Returns the probability that a foreign example has the higher score.

    Ties count one half: this is the area under the ROC curve, and the Mann-Whitney
    statistic divided by n m.

    Args:
        own: scores of examples of the training distribution.
        foreign: scores of examples of another distribution.

    Returns:
        Scalar in [0, 1]; 0.5 by chance.

    Example:
        >>> print(auroc(jnp.array([0.1, 0.2]), jnp.array([0.2, 0.3])))
        0.875

    References:
        Hanley and McNeil, "The meaning and use of the area under a receiver operating
        characteristic (ROC) curve", Radiology 1982.
    """
    own, foreign = _float32(own), _float32(foreign)
    order = jnp.sort(own)
    below, upto = (jnp.searchsorted(order, foreign, side) for side in ("left", "right"))
    share = (below + upto).astype(jnp.float32) / (2 * len(own))
    return _or_nan(jnp.mean(share), own, foreign)


def aupr(own: Float[Array, "n"], foreign: Float[Array, "m"]) -> Float[Array, ""]:
    """Returns the average precision of finding the foreign examples.

    It is the mean, over foreign examples, of the share of foreign ones among all whose
    score is at least theirs: the area under the precision-recall curve as a step
    function. By chance it is m / (n + m), so values of other mixtures do not compare.

    Args:
        own: scores of examples of the training distribution.
        foreign: scores of examples of another distribution.

    Returns:
        Scalar in [0, 1].

    Example:
        >>> print(f"{aupr(jnp.array([0.1, 0.2]), jnp.array([0.2, 0.3])):.3f}")
        0.833

    References:
        Davis and Goadrich, "The relationship between precision-recall and ROC curves",
        ICML 2006.
    """
    own, foreign = _float32(own), _float32(foreign)
    hits = len(foreign) - jnp.searchsorted(jnp.sort(foreign), foreign)
    false = len(own) - jnp.searchsorted(jnp.sort(own), foreign)
    share = hits.astype(jnp.float32) / (hits + false).astype(jnp.float32)
    return _or_nan(jnp.mean(share), own, foreign)


def fpr95(own: Float[Array, "n"], foreign: Float[Array, "m"]) -> Float[Array, ""]:
    """Returns the share of own examples rejected where 95 % of foreign ones are.

    The threshold is the largest score at or above which lie at least 95 % of the
    foreign examples.

    Args:
        own: scores of examples of the training distribution.
        foreign: scores of examples of another distribution.

    Returns:
        Scalar in [0, 1]; lower is better.

    Example:
        >>> print(fpr95(jnp.array([0.1, 0.2]), jnp.array([0.2, 0.3])))
        0.5

    References:
        Hendrycks and Gimpel, "A baseline for detecting misclassified and
        out-of-distribution examples in neural networks", ICLR 2017.
    """
    own, foreign = _float32(own), _float32(foreign)
    kept = math.ceil(0.95 * len(foreign) - 1e-9)
    threshold = jnp.sort(foreign)[len(foreign) - kept]
    share = jnp.mean((own >= threshold).astype(jnp.float32))
    return _or_nan(share, own, foreign)


def _float32(scores: Float[Array, "n"]) -> Float[Array, "n"]:
    """Upcasts 16-bit scores, and refuses an empty set of them."""
    scores = jnp.asarray(scores, jnp.float32)
    if not scores.size:
        raise ValueError("scores must not be empty")
    return scores


def _or_nan(value: Float[Array, ""], *scores: Float[Array, "_"]) -> Float[Array, ""]:
    bad = jnp.stack([jnp.isnan(part).any() for part in scores]).any()
    return jnp.where(bad, jnp.nan, value)
