"""Llama and its relatives (SmolLM2, Mistral, Qwen): one decoder with switches.

The parameter tree has HF's names (`layers/self_attn/q_proj/kernel`, ...), with all
layers stacked on a leading axis unless `scan_layers` is off. Every projection is a
plain `nn.Dense`, so adapters can be added by interception; the scan over layers carries
their collection, `lora`.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from ivon_jax.models.attention import Causal, Kernel
from ivon_jax.models.kv_cache import KVCache, LayerPast, Past
from ivon_jax.models.layers import MLP, Attention, RMSNorm, Texts, split_batch
from ivon_jax.models.llama_config import LlamaConfig
from ivon_jax.models.packed import Packed
from ivon_jax.models.rotary import Rotation, rotation
from ivon_jax.models.stack import Remat, Stack, stack
from ivon_jax.token_draws import numbered


class Visible(NamedTuple):
    """Which keys each token may attend to, where padding or a cache decides.

    Attributes:
        all: in layers without a window; m is the batch size, or 1.
        near: in layers with a sliding window; None if there are none.
    """

    all: Bool[Array, "m 1 s u"]
    near: Bool[Array, "m 1 s u"] | None


class Block(nn.Module):
    """One decoder layer."""

    config: LlamaConfig
    keep_cache: bool
    attention: Kernel
    dtype: Dtype
    param_dtype: Dtype

    def setup(self) -> None:
        """Makes the sublayers under HF's names."""
        dtypes = (self.dtype, self.param_dtype)
        epsilon = self.config.rms_norm_eps
        self.input_layernorm = RMSNorm(epsilon, *dtypes)
        self.self_attn = Attention(self.config, *dtypes, self.attention)
        self.post_attention_layernorm = RMSNorm(epsilon, *dtypes)
        self.mlp = MLP(self.config, *dtypes)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        past: KVCache | LayerPast | None,
        windowed: Bool[Array, ""] | None,
        rope: Rotation,
        visible: Visible | Packed | None,
    ) -> tuple[Float[Array, "b s d"], KVCache | None]:
        """Applies the layer; `past` and the returned cache lack the layer axis."""
        attended, cache = self.self_attn(
            self.input_layernorm(x), past, rope, self._mask(visible, windowed)
        )
        x = checkpoint_name(split_batch(x + attended), "residual")
        x = split_batch(x + self.mlp(self.post_attention_layernorm(x)))
        return x, KVCache(*cache) if self.keep_cache else None

    def _mask(
        self, visible: Visible | Packed | None, windowed: Bool[Array, ""] | None
    ) -> Bool[Array, "m 1 s u"] | Texts:
        """Returns what this layer's tokens may attend to."""
        if not isinstance(visible, Visible):
            return Texts(visible, Causal(self.config.sliding_window, windowed))
        if windowed is None:
            return visible.all if visible.near is None else visible.near
        return jnp.where(windowed, visible.near, visible.all)  # type: ignore[arg-type]


class Unembedding(nn.Module):
    """The output matrix, if untied: `kernel` of shape (hidden, vocabulary)."""

    config: LlamaConfig
    param_dtype: Dtype

    def setup(self) -> None:
        """Makes the matrix."""
        shape = (self.config.hidden_size, self.config.vocab_size)
        init = nn.initializers.lecun_normal()
        self.kernel = self.param("kernel", init, shape, self.param_dtype)


class Llama(nn.Module):
    """The decoder without its loss: tokens to hidden states, hidden states to logits.

    Attributes:
        config: sizes and switches.
        scan_layers: compile one layer and loop over stacked parameters; otherwise
            the layers are `layers_0`, `layers_1`, ...
        remat: recomputation in the backward pass, to save memory: `"none"`, `"full"`
            for whole layers, `"dots"` for all but matrix products, `"names"` for all
            but what `stack.NAMES` lists, `"offload"` for the same with those of
            `stack.WIDE` in the host's memory.
        attention: what computes attention, where neither padding nor a cache is masked.
        dtype: of the computation; norms, softmax and logits use float32.
        param_dtype: of the parameters that `init` makes.

    Example:
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=24,
        ...     num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2, head_dim=4,
        ... )
        >>> model, tokens = Llama(config), jnp.array([[1, 2, 3]])
        >>> variables = model.init(jax.random.key(0), tokens)
        >>> hidden = model.apply(variables, tokens)
        >>> answers = jnp.array([7, 9])
        >>> last = hidden[:, -1]
        >>> model.apply(variables, last, answers, method="unembed").shape
        (1, 2)
    """

    config: LlamaConfig
    scan_layers: bool = True
    remat: Remat = "none"
    attention: Kernel = Kernel()
    dtype: Dtype = jnp.float32
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        """Makes all parts but the layers, which depend on the call."""
        c = self.config
        self.embed_tokens = nn.Embed(
            c.vocab_size, c.hidden_size, dtype=self.dtype, param_dtype=self.param_dtype
        )
        self.norm = RMSNorm(c.rms_norm_eps, self.dtype, self.param_dtype)
        if not c.tie_word_embeddings:
            self.lm_head = Unembedding(c, self.param_dtype)

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b s"],
        *,
        mask: Bool[Array, "b t"] | None = None,
        past: KVCache | Past | None = None,
        packed: Packed | None = None,
        reads: Int[Array, "b q"] | None = None,
        return_cache: bool = False,
    ) -> Float[Array, "b _ d"] | tuple[Float[Array, "b _ d"], KVCache]:
        """Computes the hidden states after the final norm.

        Args:
            tokens: token ids; those at padding may be any.
            mask: True at real tokens, False at padding on either side. It covers
                `tokens` or, if the past has padding too, the past and `tokens`.
            past: cache of the tokens before `tokens`; with batch size 1 a prefix that
                all sequences share. A `Past` allows one token a row, and nothing else.
            packed: for rows of several texts: where these are. `tokens` begins with the
                prefix that they share, if it is longer than `packed` says. A text
                attends only to the prefix and itself. Excludes the two above.
            reads: indices of the tokens whose states are wanted; None for all.
            return_cache: also return the cache of the past and `tokens` together; after
                a `Past`, that of `tokens`.

        Returns:
            Hidden states, or the pair of them and the cache. Those at padding are
            arbitrary.

        Raises:
            ValueError: `mask` has another length, or `packed` comes with `mask`, `past`
                or `return_cache`.
        """
        window = self.config.sliding_window
        visible: Visible | Packed | None
        drawing: AbstractContextManager[None] = nullcontext()
        if isinstance(past, Past):
            if not (mask is None and packed is None and tokens.shape[1] == 1):
                raise ValueError("past: a Past excludes mask, packed and more tokens")
            near = past.visible(window) if window else None
            positions, visible = past.positions, Visible(past.visible(), near)
        elif packed is None:
            prefix = 0 if past is None else past.keys.shape[2]
            positions, visible = _visibility(tokens, mask, prefix, window)
        elif mask is None and past is None and not return_cache:
            prefix = tokens.shape[1] - packed.place.shape[1]
            positions, visible = packed.positions(prefix), packed
            drawing = numbered(packed.numbers(prefix))
        else:
            raise ValueError("packed: excludes mask, past and return_cache")
        if mask is not None:
            # An id without an embedding is read as NaN, which no mask removes.
            tokens = jnp.where(mask[:, -tokens.shape[1] :], tokens, 0)
        x = split_batch(self.embed_tokens(tokens))
        rope = rotation(self.config, positions)
        # Where all layers have the window, none is told.
        mixed = not all(self.config.windowed_layers)
        windowed = jnp.array(self.config.windowed_layers) if mixed else None
        layers = past.layers if isinstance(past, Past) else past
        with drawing:
            x, cache = self._layers(return_cache)(x, layers, windowed, rope, visible)
        if self.is_initializing() and not self.config.tie_word_embeddings:
            self.lm_head.kernel  # noqa: B018, made on first access
        if reads is not None:
            x = jnp.take_along_axis(x, reads[..., None], axis=1)
        hidden = self.norm(x)
        return hidden if cache is None else (hidden, cache)

    def unembed(
        self,
        hidden: Float[Array, "*n d"],
        token_ids: Int[Array, "c"] | None = None,
    ) -> Float[Array, "*n c"]:
        """Returns logits in float32, of a few tokens or of the whole vocabulary.

        Args:
            hidden: hidden states of `__call__`.
            token_ids: tokens to compute logits for, in this order; None for all. With
                ids, nothing of the vocabulary's size is computed.

        Returns:
            The logits.
        """
        if self.config.tie_word_embeddings:
            rows, axis = self.embed_tokens.embedding, 0
        else:
            rows, axis = self.lm_head.kernel, 1
        if token_ids is not None:
            rows = jnp.take(rows, token_ids, axis=axis)
        return jax.lax.dot_general(
            hidden.astype(self.dtype),
            rows.astype(self.dtype),
            (((hidden.ndim - 1,), (1 - axis,)), ((), ())),
            preferred_element_type=jnp.float32,
        )

    def _layers(self, keep_cache: bool) -> Stack:
        return stack(
            Block,
            (self.config, keep_cache, self.attention, self.dtype, self.param_dtype),
            self.config.num_hidden_layers,
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            scan_layers=self.scan_layers,
            remat=self.remat,
        )


def _visibility(
    tokens: Int[Array, "b s"],
    mask: Bool[Array, "b t"] | None,
    prefix: int,
    window: int | None,
) -> tuple[Int[Array, "r s"], Visible | None]:
    """Returns positions of the tokens, and the keys that each may attend to.

    Without a mask they are those before it.
    """
    length = tokens.shape[1]
    index = jnp.arange(prefix, prefix + length)[None]
    if mask is None:
        return index, None
    seen = jnp.arange(prefix + length)[None, None, None]
    causal = seen <= index[:, None, :, None]
    near = (
        None if window is None else causal & (seen > index[:, None, :, None] - window)
    )
    if mask.shape[1] not in (length, prefix + length):
        raise ValueError(
            f"mask covers {mask.shape[1]} tokens, expected {length} (the new tokens)"
            f" or {prefix + length} (with the past)"
        )
    missing = prefix + length - mask.shape[1]
    mask = jnp.pad(mask, ((0, 0), (missing, 0)), constant_values=True)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)[:, prefix:]
    mask = mask[:, None, None, :]
    return positions, Visible(causal & mask, None if near is None else near & mask)
