"""Rotary position embeddings."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ivon_jax.models.llama_config import LlamaConfig
from ivon_jax.models.rope_config import DynamicRope, LinearRope, Llama3Rope, YarnRope

# Cosines and sines; r is the batch size, or 1 if all sequences agree.
Rotation = tuple[Float[Array, "r s 1 half"], Float[Array, "r s 1 half"]]


def rotation(config: LlamaConfig, positions: Int[Array, "r s"]) -> Rotation:
    """Returns cosines and sines for `rotate`, float32."""
    freqs = _frequencies(config, positions)
    angles = positions[:, :, None, None].astype(jnp.float32) * freqs[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if isinstance(config.rope_scaling, YarnRope):
        return config.rope_scaling.scale * cos, config.rope_scaling.scale * sin
    return cos, sin


def rotate(x: Float[Array, "b s n h"], rope: Rotation) -> Float[Array, "b s n h"]:
    """Rotates the pairs (i, i + half) of every head by the angles of its position."""
    cos, sin = rope
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def _frequencies(
    config: LlamaConfig, positions: Int[Array, "r s"]
) -> Float[Array, " half"]:
    """Returns the angle per position of every pair."""
    half = np.arange(0, config.head_dim, 2) / config.head_dim
    freqs = config.rope_theta**-half
    match config.rope_scaling:
        case LinearRope(factor):
            freqs = freqs / factor
        case DynamicRope() as rope:
            return _dynamic(config, rope, half, positions)
        case Llama3Rope() as rope:
            freqs = stretched(freqs, rope)
        case YarnRope() as rope:
            keep = 1 - _yarn_ramp(config, rope)
            freqs = freqs * (keep + (1 - keep) / rope.factor)
    return jnp.asarray(freqs, jnp.float32)


def stretched(
    freqs: Float[np.ndarray, " half"], rope: Llama3Rope
) -> Float[np.ndarray, " half"]:
    """Stretches frequencies as Llama 3.1 does: low ones in full, high ones not."""
    turns = rope.original_max_position_embeddings * freqs / (2 * math.pi)
    span = rope.high_freq_factor - rope.low_freq_factor
    keep = np.clip((turns - rope.low_freq_factor) / span, 0, 1)
    return freqs * (keep + (1 - keep) / rope.factor)


def _dynamic(
    config: LlamaConfig,
    rope: DynamicRope,
    half: np.ndarray,
    positions: Int[Array, "r s"],
) -> Float[Array, " half"]:
    limit, dim = config.max_position_embeddings, config.head_dim
    length = jnp.maximum(jnp.max(positions) + 1, limit).astype(jnp.float32)
    growth = rope.factor * length / limit - (rope.factor - 1)
    base = config.rope_theta * growth ** (dim / (dim - 2))
    return jnp.exp(-jnp.asarray(half, jnp.float32) * jnp.log(base))


def _yarn_ramp(config: LlamaConfig, rope: YarnRope) -> np.ndarray:
    """Returns a ramp from 0, for fast pairs, to 1, for slow ones."""
    dim, original = config.head_dim, rope.original_max_position_embeddings

    def pair_with(turns: float) -> float:
        turn = math.log(original / (turns * 2 * math.pi))
        return dim * turn / (2 * math.log(config.rope_theta))

    low, high = pair_with(rope.beta_fast), pair_with(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001  # transformers' guard against a step
    return np.clip((np.arange(dim // 2) - low) / width, 0, 1)
