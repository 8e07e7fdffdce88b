"""DeBERTa-v2 and v3: an encoder with disentangled attention, and its classifier.

He et al., "DeBERTa: Decoding-enhanced BERT with disentangled attention" (2021,
arXiv:2006.03654) and DeBERTaV3 (2021, arXiv:2111.09543). The parameter tree carries
HF's names below `deberta.` and `deberta.encoder.`, layers stacked. Every projection
is a plain `nn.Dense`, so adapters can be added from outside by interception.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from ivon_jax.models.deberta_attention import (
    Relative,
    SelfAttention,
    relative_positions,
)
from ivon_jax.models.deberta_config import DebertaConfig
from ivon_jax.models.layers import (
    ACTIVATIONS,
    ProjectionModule,
    layer_norm,
    split_batch,
)
from ivon_jax.models.stack import Remat, stack


class Convolved(NamedTuple):
    """The convolution's output, and scale and bias of the norm that follows it."""

    out: Float[Array, "b s d"]
    scale: Float[Array, " d"]
    bias: Float[Array, " d"]


class Residual(ProjectionModule):
    """Dense, dropout, add `residual`, LayerNorm."""

    config: DebertaConfig

    def setup(self) -> None:
        """Makes the sublayers."""
        c = self.config
        self.dense = self.linear(c.hidden_size)
        self.LayerNorm = self.layer_norm(c.hidden_size, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def __call__(
        self, x: Float[Array, "b s e"], residual: Float[Array, "b s d"]
    ) -> Float[Array, "b s d"]:
        """Applies the layer at every position of `x`."""
        out = self.dropout(self.dense(x), not self.has_rng("dropout"))
        return split_batch(self.LayerNorm(out + residual))


class SelfOutput(ProjectionModule):
    """Self-attention with its residual; HF's names are `self` and `output`."""

    config: DebertaConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b s d"],
        relative: Relative | None,
        mask: Bool[Array, "b 1 s s"] | None,
    ) -> Float[Array, "b s d"]:
        """Applies the sublayer."""
        settings = (self.config, self.dtype, self.param_dtype)
        attended = SelfAttention(*settings, name="self")(x, relative, mask)
        return Residual(*settings, name="output")(attended, x)


class Intermediate(ProjectionModule):
    """The first half of the MLP."""

    config: DebertaConfig

    def setup(self) -> None:
        """Makes the projection."""
        self.dense = self.linear(self.config.intermediate_size)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s e"]:
        """Applies the layer at every position."""
        up = checkpoint_name(self.dense(x), "up")
        return ACTIVATIONS[self.config.hidden_act](up)


class Layer(ProjectionModule):
    """One encoder layer."""

    config: DebertaConfig

    def setup(self) -> None:
        """Makes the sublayers under HF's names."""
        settings = (self.config, self.dtype, self.param_dtype)
        self.attention = SelfOutput(*settings)
        self.intermediate = Intermediate(*settings)
        self.output = Residual(*settings)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        first: Bool[Array, ""] | None,
        relative: Relative | None,
        mask: Bool[Array, "b 1 s s"] | None,
        convolved: Convolved | None,
    ) -> tuple[Float[Array, "b s d"], None]:
        """Applies the layer; the first one also adds the convolution's output."""
        attended = checkpoint_name(self.attention(x, relative, mask), "residual")
        x = self.output(self.intermediate(attended), attended)
        if convolved is not None:
            out, scale, bias = convolved
            eps = self.config.layer_norm_eps
            mixed = layer_norm(x + out, scale, bias, eps).astype(x.dtype)
            if mask is not None:
                mixed = jnp.where(mask[:, 0].any(-1)[..., None], mixed, 0)
            x = jnp.where(first, mixed, x)  # type: ignore[arg-type]
        return x, None


class Convolution(ProjectionModule):
    """A convolution of the embeddings over neighbouring tokens."""

    config: DebertaConfig

    def setup(self) -> None:
        """Makes the convolution, and the norm of the first layer's output."""
        c = self.config
        self.conv = nn.Conv(
            c.hidden_size,
            (c.conv_kernel_size,),
            padding=c.conv_kernel_size // 2,
            feature_group_count=c.conv_groups,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        self.LayerNorm = self.layer_norm(c.hidden_size, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def __call__(
        self, x: Float[Array, "b s d"], mask: Bool[Array, "b s"] | None
    ) -> Convolved:
        """Convolves the embeddings; zero at padding."""
        out = self.conv(x)
        if mask is not None:
            out = jnp.where(mask[..., None], out, 0)
        out = self.dropout(out, not self.has_rng("dropout"))
        out = ACTIVATIONS[self.config.conv_act](out)
        return Convolved(out, self.LayerNorm.scale, self.LayerNorm.bias)


class Embeddings(ProjectionModule):
    """Embeddings of words and, where the config has them, positions and types."""

    config: DebertaConfig

    def setup(self) -> None:
        """Makes the tables of the configuration."""
        c = self.config
        size = c.embedding_size or c.hidden_size
        self.word_embeddings = self.embedding(c.vocab_size, size)
        if c.position_biased_input:
            self.position_embeddings = self.embedding(c.max_position_embeddings, size)
        if c.type_vocab_size:
            self.token_type_embeddings = self.embedding(c.type_vocab_size, size)
        if c.embedding_size:
            self.embed_proj = self.linear(c.hidden_size, use_bias=False)
        self.LayerNorm = self.layer_norm(c.hidden_size, c.layer_norm_eps)
        self.dropout = nn.Dropout(c.hidden_dropout_prob)

    def __call__(
        self,
        tokens: Int[Array, "b s"],
        types: Int[Array, "b s"] | None,
        mask: Bool[Array, "b s"] | None,
    ) -> Float[Array, "b s d"]:
        """Embeds tokens; padding becomes zero, whatever its ids."""
        c = self.config
        index = jnp.arange(tokens.shape[1])[None]
        if mask is not None:
            # An id without an embedding is read as NaN, which spoils the gradients.
            tokens = jnp.where(mask, tokens, 0)
            types = None if types is None else jnp.where(mask, types, 0)
            if tokens.shape[1] > c.max_position_embeddings:
                index = jnp.where(mask, index, 0)
        x = self.word_embeddings(tokens)
        if c.position_biased_input:
            x = x + self.position_embeddings(index)
        if c.type_vocab_size:
            types = jnp.zeros_like(tokens) if types is None else types
            x = x + self.token_type_embeddings(types)
        x = self.LayerNorm(self.embed_proj(x) if c.embedding_size else x)
        if mask is not None:
            x = jnp.where(mask[..., None], x, 0)
        return split_batch(self.dropout(x, not self.has_rng("dropout")))


class Pooler(ProjectionModule):
    """The first token's hidden state, projected: HF's `ContextPooler`."""

    config: DebertaConfig

    def setup(self) -> None:
        """Makes the projection."""
        self.dense = head_layer(self, self.config.hidden_size)
        self.dropout = nn.Dropout(self.config.pooler_dropout)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b d"]:
        """Pools the hidden states."""
        first = self.dropout(x[:, 0], not self.has_rng("dropout"))
        return ACTIVATIONS[self.config.pooler_hidden_act](self.dense(first))


def head_layer(module: ProjectionModule, features: int) -> nn.Dense:
    """Makes a projection of the head: in float32, with HF's initial values."""
    return nn.Dense(
        features,
        kernel_init=nn.initializers.normal(module.config.initializer_range),
        dtype=jnp.float32,
        param_dtype=module.param_dtype,
    )


class Deberta(ProjectionModule):
    """The encoder with its head for classification (or regression).

    Attributes:
        config: sizes and switches.
        dtype: of the computation; norms, softmax and logits use float32.
        param_dtype: of the parameters that `init` makes.
        scan_layers: see `Llama`.
        remat: see `Llama`.

    Example:
        >>> import jax
        >>> config = DebertaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=24,
        ...     num_hidden_layers=2, num_attention_heads=4,
        ...     relative_attention=True, pos_att_type=("c2p", "p2c"),
        ... )
        >>> model, tokens = Deberta(config), jnp.array([[1, 2, 3]])
        >>> variables = model.init(jax.random.key(0), tokens)
        >>> model.apply(variables, tokens).shape
        (1, 2)
        >>> model.apply(variables, tokens, method="hidden_states").shape
        (1, 3, 16)
    """

    config: DebertaConfig
    scan_layers: bool = True
    remat: Remat = "none"

    def setup(self) -> None:
        """Makes everything but the layers."""
        c = self.config
        settings = (c, self.dtype, self.param_dtype)
        self.embeddings = Embeddings(*settings)
        if c.relative_attention:
            self.rel_embeddings = self.embedding(2 * c.position_span, c.hidden_size)
            if c.norm_rel_ebd:
                self.LayerNorm = self.layer_norm(c.hidden_size, c.layer_norm_eps)
        if c.conv_kernel_size:
            self.conv = Convolution(*settings)
        self.pooler = Pooler(*settings)
        self.classifier = head_layer(self, c.num_labels)
        rate = c.hidden_dropout_prob if c.cls_dropout is None else c.cls_dropout
        self.dropout = nn.Dropout(rate)

    def __call__(
        self,
        tokens: Int[Array, "b s"],
        *,
        mask: Bool[Array, "b s"] | None = None,
        types: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b c"]:
        """Computes the head's outputs.

        Args:
            tokens: token ids; the head reads the first one's hidden state. Those at
                padding may be any.
            mask: True at real tokens, False at padding on either side.
            types: 0 for tokens of the first text, 1 for those of the second; read
                only by models with embeddings of types.

        Returns:
            Logits, or regression outputs, float32.
        """
        pooled = self.pooler(self.hidden_states(tokens, mask=mask, types=types))
        pooled = self.dropout(pooled, not self.has_rng("dropout"))
        return self.classifier(pooled)

    @nn.compact
    def hidden_states(
        self,
        tokens: Int[Array, "b s"],
        *,
        mask: Bool[Array, "b s"] | None = None,
        types: Int[Array, "b s"] | None = None,
    ) -> Float[Array, "b s d"]:
        """Computes the last layer's hidden states; see `__call__`."""
        c = self.config
        x = self.embeddings(tokens, types, mask)
        convolved = self.conv(x, mask) if c.conv_kernel_size else None
        first = jnp.arange(c.num_hidden_layers) == 0 if c.conv_kernel_size else None
        pairs = None
        if mask is not None:
            # Padding attends to nothing, hence evenly to all. Its hidden state counts
            # only where padding comes first, in the pooler.
            pairs = mask[:, None, :, None] & mask[:, None, None, :]
        layers = stack(
            Layer,
            (c, self.dtype, self.param_dtype),
            c.num_hidden_layers,
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            scan_layers=self.scan_layers,
            remat=self.remat,
        )
        x, _ = layers(x, first, self._relative(tokens.shape[1]), pairs, convolved)
        return x

    def _relative(self, length: int) -> Relative | None:
        c = self.config
        if not (c.relative_attention and c.pos_att_type):
            return None
        distance = relative_positions(length, c.position_buckets, c.largest_position)
        span = c.position_span
        embeddings = self.rel_embeddings.embedding.astype(self.dtype)
        if c.norm_rel_ebd:
            embeddings = self.LayerNorm(embeddings)
        index = np.clip(distance + span, 0, 2 * span - 1)
        return Relative(embeddings, jnp.asarray(index))
