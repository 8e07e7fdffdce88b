"""Predictions averaged over posterior samples."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.kinds import Distribution


def ensemble_outputs(
    outputs_fn: Callable[[PyTree], Float[Array, "n c"]],
    posterior: Distribution,
    key: Key[Array, ""],
    samples: int,
    chunk_size: int | None = None,
) -> Float[Array, "s n c"]:
    """Returns the outputs of posterior samples.

    Args:
        outputs_fn: maps parameters to outputs.
        posterior: the posterior to sample from.
        key: the ensemble's key; sample i is the same for any `samples`.
        samples: number of samples s.
        chunk_size: number of samples at a time: None is one `vmap`, 1 is a loop, values
            in between trade memory for speed.

    Returns:
        The outputs, at least float32. For regression their mean over samples is the
        prediction.

    Raises:
        ValueError: `samples` or `chunk_size` is below 1.
    """
    check("samples", samples, AT_LEAST_ONE)
    check("chunk_size", samples if chunk_size is None else chunk_size, AT_LEAST_ONE)

    def one(index: Array) -> Float[Array, "n c"]:
        outputs = outputs_fn(posterior.draw(key, index))
        return outputs.astype(np.promote_types(outputs.dtype, np.float32))

    indices = jnp.arange(samples)
    if chunk_size is None or chunk_size >= samples:
        return jax.vmap(one)(indices)
    return jax.lax.map(one, indices, batch_size=chunk_size)


def ensemble_log_probs(
    logits_fn: Callable[[PyTree], Float[Array, "n c"]],
    posterior: Distribution,
    key: Key[Array, ""],
    samples: int,
    chunk_size: int | None = None,
) -> Float[Array, "s n c"]:
    """Returns the class log-probabilities of posterior samples; see `ensemble_outputs`.

    Example:
        >>> from ivon_jax import Posterior
        >>> posterior = Posterior({"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, {})
        >>> logits_fn = lambda params: jnp.outer(jnp.ones(5), params["w"])
        >>> log_probs = ensemble_log_probs(logits_fn, posterior, jax.random.key(0), 3)
        >>> average(log_probs).shape
        (5, 2)
    """
    outputs = ensemble_outputs(logits_fn, posterior, key, samples, chunk_size)
    return jax.nn.log_softmax(outputs)


def average(log_probs: Float[Array, "s n c"]) -> Float[Array, "n c"]:
    """Averages probabilities over samples, in log space to avoid underflow.

    Args:
        log_probs: log-probabilities of each sample.

    Returns:
        The log of the mean probability.

    Example:
        >>> log_probs = jnp.log(jnp.array([[[0.9, 0.1]], [[0.5, 0.5]]]))
        >>> print(f"{jnp.exp(average(log_probs))[0, 0]:.2f}")
        0.70
    """
    return jax.nn.logsumexp(log_probs, axis=0) - jnp.log(log_probs.shape[0])


def pool(log_probs: Float[np.ndarray, "s n *c"]) -> Float[np.ndarray, "n *c"]:
    """Averages probabilities over samples in float64, by NumPy; see `average`.

    Example:
        >>> print(f"{np.exp(pool(np.log([[0.9], [0.5]])))[0]:.2f}")
        0.70
    """
    wide = np.asarray(log_probs, np.float64)
    found: np.ndarray = np.logaddexp.reduce(wide, axis=0) - math.log(len(wide))
    return found
