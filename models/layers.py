"""The parts of a Llama-like decoder, in Flax Linen, named as HF names them."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, Bool, Float, Int

from ivon_jax.models.config import LlamaConfig

# Cosines and sines; r is the batch size, or 1 if all sequences agree.
Rotation = tuple[Float[Array, "r s 1 half"], Float[Array, "r s 1 half"]]


class RMSNorm(nn.Module):
    """Division by the root mean square over the last axis, then a learnt scale."""

    epsilon: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Normalise in float32, whatever the model computes in."""
        scale = self.param(
            "scale", nn.initializers.ones, x.shape[-1:], self.param_dtype
        )
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        # Rounded before the scale, in the order HF's classes do it.
        y, scale = y.astype(self.dtype), scale.astype(self.dtype)
        return y * jnp.expand_dims(scale, range(x.ndim - 1))


def frequencies(config: LlamaConfig) -> np.ndarray:
    """Angles per position of the rotary embedding, float32 `(head_dim / 2,)`."""
    half = np.arange(0, config.head_dim, 2) / config.head_dim
    freqs = config.rope_theta**-half
    if (rope := config.rope_scaling) is not None:
        turns = rope.original_max_position_embeddings * freqs / (2 * math.pi)
        span = rope.high_freq_factor - rope.low_freq_factor
        keep = np.clip((turns - rope.low_freq_factor) / span, 0, 1)
        freqs = freqs * (keep + (1 - keep) / rope.factor)
    return freqs.astype(np.float32)


def rotation(config: LlamaConfig, positions: Int[Array, "r s"]) -> Rotation:
    """Cosines and sines, float32, that `rotate` turns the heads with."""
    freqs = jnp.asarray(frequencies(config))
    angles = positions[:, :, None, None].astype(jnp.float32) * freqs[None, None, None]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: Float[Array, "b s n h"], by: Rotation) -> Float[Array, "b s n h"]:
    """Turn the pairs (i, i + half) of every head by the angles of its position."""
    cos, sin = by
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


class _Projecting(nn.Module):
    """What attention and MLP share: the settings, and plain Dense projections."""

    config: LlamaConfig
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def dense(self, features: int, use_bias: bool) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )


class Attention(_Projecting):
    """Causal self-attention with grouped keys and values and rotary positions."""

    def setup(self) -> None:
        """Make the four projections."""
        c = self.config
        queries = c.num_attention_heads * c.head_dim
        keys = c.num_key_value_heads * c.head_dim
        self.q_proj = self.dense(queries, c.qkv_bias)
        self.k_proj = self.dense(keys, c.qkv_bias)
        self.v_proj = self.dense(keys, c.qkv_bias)
        self.o_proj = self.dense(c.hidden_size, c.o_bias)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        past: tuple[Float[Array, "p t k h"], Float[Array, "p t k h"]] | None,
        turn: Rotation,
        mask: Bool[Array, "m 1 s u"] | None,
    ) -> tuple[
        Float[Array, "b s d"], tuple[Float[Array, "b u k h"], Float[Array, "b u k h"]]
    ]:
        """Attend to the past and to `x`; also return the keys and values of both."""
        heads = (*x.shape[:2], -1, self.config.head_dim)
        query = rotate(self.q_proj(x).reshape(heads), turn)
        key = rotate(self.k_proj(x).reshape(heads), turn)
        value = self.v_proj(x).reshape(heads)
        if past is not None:
            key, value = _prepend(past[0], key), _prepend(past[1], value)
        # JAX's function mixes 16 and 32 bits, which strict promotion would refuse.
        with jax.numpy_dtype_promotion("standard"):
            out = jax.nn.dot_product_attention(
                query, key, value, mask=mask, is_causal=mask is None
            )
        return self.o_proj(out.reshape(*x.shape[:2], -1)), (key, value)


class MLP(_Projecting):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def setup(self) -> None:
        """Make the three projections."""
        c = self.config
        self.gate_proj = self.dense(c.intermediate_size, c.mlp_bias)
        self.up_proj = self.dense(c.intermediate_size, c.mlp_bias)
        self.down_proj = self.dense(c.hidden_size, c.mlp_bias)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Apply the layer at every position."""
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


def _prepend(
    past: Float[Array, "p t k h"], new: Float[Array, "b s k h"]
) -> Float[Array, "b u k h"]:
    shared = jnp.broadcast_to(past.astype(new.dtype), (len(new), *past.shape[1:]))
    return jnp.concatenate([shared, new], axis=1)
