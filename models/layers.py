"""Layers in Flax Linen with HF's names: those of a Llama, and shared ones."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from ivon_jax.models.attention import Causal, Kernel, attention, dot_product
from ivon_jax.models.kv_cache import LayerPast, attend
from ivon_jax.models.llama_config import LlamaConfig
from ivon_jax.models.packed import Packed, packed_attention
from ivon_jax.models.quantized import promote
from ivon_jax.models.rotary import Rotation, rotate


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis, with a learnt scale."""

    epsilon: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Normalises in float32, whatever the model's dtype."""
        scale = self.param(
            "scale", nn.initializers.ones, x.shape[-1:], self.param_dtype
        )
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.epsilon)
        # Rounded before the scale, in the order HF's classes do it.
        y, scale = y.astype(self.dtype), scale.astype(self.dtype)
        return y * jnp.expand_dims(scale, range(x.ndim - 1))


class LayerNorm(nn.Module):
    """Layer normalisation over the last axis, with a learnt scale and bias."""

    features: int
    epsilon: float
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Makes scale and bias."""
        shape = (self.features,)
        self.scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        self.bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)

    def __call__(self, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
        """Normalises in float32, whatever the model's dtype."""
        return layer_norm(x, self.scale, self.bias, self.epsilon).astype(self.dtype)


def layer_norm(
    x: Float[Array, "*n d"],
    scale: Float[Array, " d"],
    bias: Float[Array, " d"],
    epsilon: float,
) -> Float[Array, "*n d"]:
    """Normalises the last axis in float32.

    Args:
        x: the input.
        scale: multiplies the normalised input.
        bias: added to the product.
        epsilon: added to the variance.

    Returns:
        The result in float32.
    """
    y = x.astype(jnp.float32)
    y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + epsilon)
    scale, bias = (
        jnp.expand_dims(value.astype(jnp.float32), range(x.ndim - 1))
        for value in (scale, bias)
    )
    return y * scale + bias


# HF's names.
ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": nn.gelu,
    "gelu_pytorch_tanh": nn.gelu,
    "relu": nn.relu,
    "sigmoid": nn.sigmoid,
    "silu": nn.silu,
    "swish": nn.silu,
    "tanh": jnp.tanh,
}


def split_batch(x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    """Keeps hidden states split by rows under flax's logical axis rules.

    Otherwise the compiler may split them as it splits the kernels, and sum all of them
    after every product.
    """
    return nn.with_logical_constraint(
        x, ("batch", None, None), fallback=nn.spmd.RulesFallback.NO_CONSTRAINT
    )


class ProjectionModule(nn.Module):
    """A module that makes its projections, embeddings and norms by its settings."""

    config: Any
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def linear(self, features: int, use_bias: bool = True) -> nn.Dense:
        """Makes a linear layer, whose kernel may be quantised."""
        return nn.Dense(
            features,
            use_bias=use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            promote_dtype=promote,
        )

    def embedding(self, count: int, features: int) -> nn.Embed:
        """Makes a table of embeddings."""
        return nn.Embed(count, features, dtype=self.dtype, param_dtype=self.param_dtype)

    def layer_norm(self, features: int, epsilon: float) -> LayerNorm:
        """Makes a layer normalisation."""
        return LayerNorm(features, epsilon, self.dtype, self.param_dtype)


class Texts(NamedTuple):
    """Tokens that attend to those before them in their text.

    Attributes:
        packed: where the texts are; None for one in each row.
        causal: the layer's window, if it has one.
    """

    packed: Packed | None
    causal: Causal


class Attention(ProjectionModule):
    """Causal self-attention with grouped keys and values and rotary positions."""

    config: LlamaConfig
    kernel: Kernel = Kernel()

    def setup(self) -> None:
        """Makes the four projections and, if used, the norms of queries and keys."""
        c = self.config
        queries = c.num_attention_heads * c.head_dim
        keys = c.num_key_value_heads * c.head_dim
        self.q_proj = self.linear(queries, c.qkv_bias)
        self.k_proj = self.linear(keys, c.qkv_bias)
        self.v_proj = self.linear(keys, c.qkv_bias)
        self.o_proj = self.linear(c.hidden_size, c.o_bias)
        if c.qk_norm:
            dtypes = (self.dtype, self.param_dtype)
            self.q_norm = RMSNorm(c.rms_norm_eps, *dtypes)
            self.k_norm = RMSNorm(c.rms_norm_eps, *dtypes)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        past: tuple[Float[Array, "p t k h"], Float[Array, "p t k h"]]
        | LayerPast
        | None,
        rope: Rotation,
        mask: Bool[Array, "m 1 s u"] | Texts,
    ) -> tuple[
        Float[Array, "b s d"], tuple[Float[Array, "b c k h"], Float[Array, "b c k h"]]
    ]:
        """Attends to the past and to `x`; also returns the keys and values of both.

        After a `LayerPast` they are those of `x`.
        """
        heads = (*x.shape[:2], -1, self.config.head_dim)
        query, key, value = (
            project(x).reshape(heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query = checkpoint_name(rotate(query, rope), "query")
        key = checkpoint_name(rotate(key, rope), "key")
        value = checkpoint_name(value, "value")
        cache = (key, value)
        if past is not None and not isinstance(past, LayerPast):
            cache = _prepend(past[0], key), _prepend(past[1], value)
        if isinstance(past, LayerPast):
            assert not isinstance(mask, Texts)
            out = attend(query, key, value, past, mask)
        elif not isinstance(mask, Texts):
            out = dot_product(query, *cache, mask)
        elif mask.packed is None:
            out = attention(query, *cache, mask.causal, self.kernel)
        else:
            texts = (mask.packed, mask.causal)
            out = packed_attention(query, *cache, *texts, self.kernel)
        return self.o_proj(out.reshape(*x.shape[:2], -1)), cache


class MLP(ProjectionModule):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    config: LlamaConfig

    def setup(self) -> None:
        """Makes the three projections."""
        c = self.config
        self.gate_proj = self.linear(c.intermediate_size, c.mlp_bias)
        self.up_proj = self.linear(c.intermediate_size, c.mlp_bias)
        self.down_proj = self.linear(c.hidden_size, c.mlp_bias)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        """Applies the layer at every position."""
        gate = checkpoint_name(self.gate_proj(x), "gate")
        return self.down_proj(nn.silu(gate) * checkpoint_name(self.up_proj(x), "up"))


def _prepend(
    past: Float[Array, "p t k h"], new: Float[Array, "b s k h"]
) -> Float[Array, "b u k h"]:
    shared = jnp.broadcast_to(past.astype(new.dtype), (len(new), *past.shape[1:]))
    return jnp.concatenate([shared, new], axis=1)
