"""The bootstrap over examples; see `ivon_jax.metrics` for the inputs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.metrics._inputs import exp, top_class
from ivon_jax.metrics.calibration import bin_of
from ivon_jax.metrics.classification import brier, nll

Metric = Callable[[Float[Array, "n c"], Int[Array, "n"]], Float[Array, ""]]

# Draws of an example at a time, which bounds the memory.
_DRAWS = 2**21


def bootstrap(
    log_probs: Float[Array, "m n c"],
    labels: Int[Array, "n"],
    *,
    seed: int,
    resamples: int = 2000,
    bins: int = 10,
) -> dict[str, Float[np.ndarray, "r m"]]:
    """Recomputes metrics on resamples of the examples, drawn with replacement.

    All predictions are scored on the same resamples, so that differences between two
    of them are paired: what makes an example hard for both cancels. Quantiles over the
    resamples are an interval. The ECE of a resample is on average above that of the
    examples, because its bins are noisier; between predictions most of that cancels.

    A resample's metric is a mean over examples, or for ECE a sum of absolute means over
    bins, so all resamples are one matrix product: counts times terms.

    Args:
        log_probs: log class probabilities of m predictions, [m, n, c].
        labels: class indices, [n].
        seed: seed of the resamples, which depend on it and n only.
        resamples: number of resamples.
        bins: number of bins of the ECE.

    Returns:
        ``accuracy``, ``nll``, ``brier`` and ``ece``, each [resamples, m].

    Example:
        >>> probs = jnp.array([[[0.9, 0.1], [0.7, 0.3]], [[0.6, 0.4], [0.6, 0.4]]])
        >>> found = bootstrap(jnp.log(probs), jnp.array([0, 1]), seed=0)["nll"]
        >>> low, high = np.quantile(found[:, 0] - found[:, 1], [0.025, 0.975])
        >>> print(f"[{low:.2f}, {high:.2f}]")
        [-0.41, 0.29]

    References:
        Efron and Tibshirani, "An introduction to the bootstrap", 1993, chapter 13.
    """
    check("resamples", resamples, AT_LEAST_ONE)
    check("bins", bins, AT_LEAST_ONE)
    right = jnp.asarray(labels)
    terms = jax.vmap(lambda one: _terms(one, right, bins))(jnp.asarray(log_probs))
    columns = np.asarray(terms, np.float64).swapaxes(0, 1)
    means = resampled_means(columns, seed=seed, resamples=resamples)
    found = {name: means[..., i] for i, name in enumerate(("accuracy", "nll", "brier"))}
    return found | {"ece": np.abs(means[..., 3:]).sum(axis=-1)}


def resampled_means(
    columns: Float[np.ndarray, "n *k"], *, seed: int, resamples: int = 2000
) -> Float[np.ndarray, "r *k"]:
    """Returns means over examples on resamples, drawn with replacement.

    Functions of several means, as ratios or correlations, are resampled so too.

    Args:
        columns: terms of each example, [n, ...]; some may be inf.
        seed: seed of the resamples, which depend on it and n only.
        resamples: number of resamples.

    Returns:
        The means, [resamples, ...].

    Example:
        >>> means = resampled_means(np.arange(9.0), seed=0)
        >>> bool(abs(means.std() / np.sqrt(60 / 9 / 9) - 1) < 0.05)  # sigma / sqrt(n)
        True
    """
    n, flat = len(columns), columns.reshape(len(columns), -1)
    rng, size = np.random.default_rng(seed), max(1, _DRAWS // n)
    sizes = [min(size, resamples - done) for done in range(0, resamples, size)]
    infinite = np.isposinf(flat)
    finite, any_infinite = np.where(infinite, 0.0, flat), infinite.any()
    parts = []
    for size in sizes:
        counts = _counts(rng, size, n)
        part = counts @ finite / n
        if any_infinite:  # 0 * inf is NaN
            part = np.where(counts @ infinite > 0, np.inf, part)
        parts.append(part)
    means = np.concatenate(parts)
    return means.reshape(resamples, *columns.shape[1:])


def _terms(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"], bins: int
) -> Float[Array, "n k"]:
    """Returns each example's part of accuracy, NLL, Brier, and of the bins' gaps."""
    log_confidence, correct = top_class(log_probs, labels)
    gap = correct - exp(log_confidence)
    index = bin_of(log_confidence, bins)
    gaps = jax.nn.one_hot(index, bins, dtype=gap.dtype) * gap[:, None]

    def each(metric: Metric) -> Float[Array, "n"]:
        return jax.vmap(lambda p, y: metric(p[None], y[None]))(log_probs, labels)

    return jnp.column_stack([correct, each(nll), each(brier), gaps])


def _counts(rng: np.random.Generator, size: int, n: int) -> Float[np.ndarray, "size n"]:
    """Draws how often each example occurs in each of `size` resamples."""
    drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
    counts = np.bincount(drawn.ravel(), minlength=size * n)
    return counts.reshape(size, n).astype(np.float64)
