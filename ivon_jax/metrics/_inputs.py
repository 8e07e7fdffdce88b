"""Inputs of class metrics: checked, upcast, NaN where illegal."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

# Tolerance of the log of an example's summed probabilities: they may have been rounded
# to 16 bits, and if they still are, -20 is off by up to 0.06.
SUM_TOLERANCE, SUM_TOLERANCE_16_BITS = 1e-2, 0.1


def upcast(log_probs: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """Upcasts, and replaces illegal log-probabilities by NaN."""
    log_probs = jnp.asarray(log_probs)
    if 0 in log_probs.shape:
        raise ValueError(f"log_probs must not be empty, got shape {log_probs.shape}")
    # NumPy's promotion, because JAX's refuses 16 with 32 bits in strict mode.
    given = log_probs.dtype.itemsize
    log_probs = log_probs.astype(np.promote_types(log_probs.dtype, np.float32))
    off = jnp.abs(jax.nn.logsumexp(log_probs, axis=-1, keepdims=True))
    right = off <= (SUM_TOLERANCE if given > 2 else SUM_TOLERANCE_16_BITS)
    return jnp.where(right, log_probs, jnp.nan)


def checked(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> tuple[Float[Array, "n c"], Int[Array, "n"]]:
    """Upcasts, refuses wrong shapes, and makes examples with illegal values NaN."""
    log_probs, labels = upcast(log_probs), jnp.asarray(labels)
    if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1]:
        raise ValueError(
            "log_probs must be [n, c] and labels [n], "
            f"got shapes {log_probs.shape} and {labels.shape}"
        )
    labels, classes = labels.astype(jnp.int32), log_probs.shape[1]
    wrong = (labels < 0) | (labels >= classes) | jnp.isnan(log_probs).any(axis=1)
    return jnp.where(wrong[:, None], jnp.nan, log_probs), labels


def exp(log_probs: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the exponential, keeping NaN: `jnp.exp`, fused on CPUs, may not."""
    return jnp.where(jnp.isnan(log_probs), jnp.nan, jnp.exp(log_probs))


def top_class(
    log_probs: Float[Array, "n c"], labels: Int[Array, "n"]
) -> tuple[Float[Array, "n"], Float[Array, "n"]]:
    """Returns the log-confidence of each prediction, and 1 if it is right, else 0."""
    log_probs, labels = checked(log_probs, labels)
    log_confidence = log_probs.max(axis=1)
    predictions = jnp.argmax(log_probs, axis=1).astype(labels.dtype)
    correct = (predictions == labels).astype(log_probs.dtype)
    return log_confidence, jnp.where(jnp.isnan(log_confidence), jnp.nan, correct)
