"""Disentangled attention: by content, and by relative position (He et al., 2021)."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from ivon_jax.models.deberta_config import DebertaConfig
from ivon_jax.models.layers import ProjectionModule


class Relative(NamedTuple):
    """Embeddings of relative positions, and which of them each distance has.

    Attributes:
        embeddings: of all r positions, normalised if the model does so.
        indices: into `embeddings`, of the 2 s distances from s - 1 down to -s.
    """

    embeddings: Float[Array, "r d"]
    indices: Int[Array, " t"]


def relative_positions(length: int, buckets: int | None, largest: int) -> np.ndarray:
    """Returns the distances in a sequence, the far ones in buckets.

    Args:
        length: of the sequence.
        buckets: number of buckets: half of them hold a distance each, the rest grow
            logarithmically; None for plain distances.
        largest: distance of the last bucket.

    Returns:
        The positions of the distances length - 1 down to -length, int32. Query i has
        distance i - j to key j.

    Example:
        >>> relative_positions(9, 6, 16)[:9]
        array([5, 5, 4, 4, 4, 3, 2, 1, 0], dtype=int32)
    """
    distance = np.arange(length - 1, -length - 1, -1, dtype=np.int32)
    if buckets is None:
        return distance
    # In float32, as HF's class: rounding decides at the edges of buckets.
    half = buckets // 2
    far = np.maximum(np.abs(distance), half).astype(np.float32)
    scale = np.log(np.float32((largest - 1) / half))
    logarithm = np.log(far / np.float32(half)) / scale * np.float32(half - 1)
    bucket = np.sign(distance) * (np.ceil(logarithm).astype(np.int32) + half)
    return np.where(np.abs(distance) <= half, distance, bucket).astype(np.int32)


class SelfAttention(ProjectionModule):
    """Attention by content, by content to position, and by position to content."""

    config: DebertaConfig

    def setup(self) -> None:
        """Makes the projections of content and, unless shared, of positions."""
        c = self.config
        self.query_proj = self.linear(c.hidden_size)
        self.key_proj = self.linear(c.hidden_size)
        self.value_proj = self.linear(c.hidden_size)
        if not c.share_att_key:
            self.pos_key_proj = self.linear(c.hidden_size)
            self.pos_query_proj = self.linear(c.hidden_size)
        self.dropout = nn.Dropout(c.attention_probs_dropout_prob)
        self.pos_dropout = nn.Dropout(c.hidden_dropout_prob)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        relative: Relative | None,
        mask: Bool[Array, "b 1 s s"] | None,
    ) -> Float[Array, "b s d"]:
        """Attends from each token to all that are not padding."""
        c, training = self.config, self.has_rng("dropout")
        query, key, value = (
            checkpoint_name(self._heads(project(x)), name)
            for name, project in (
                ("query", self.query_proj),
                ("key", self.key_proj),
                ("value", self.value_proj),
            )
        )
        scores = _dot("bhqc,bhkc->bhqk", query, key)
        if relative is not None:
            embeddings = self.pos_dropout(relative.embeddings, not training)
            scores = scores + self._by_position(
                query, key, embeddings, relative.indices
            )
        scores = scores / np.sqrt(query.shape[-1] * (1 + len(c.pos_att_type))).item()
        if mask is not None:
            scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
        weights = self.dropout(jax.nn.softmax(scores), not training)
        out = jnp.einsum("bhqk,bhkc->bhqc", weights.astype(value.dtype), value)
        return out.swapaxes(1, 2).reshape(x.shape)

    def _by_position(
        self,
        query: Float[Array, "b h s c"],
        key: Float[Array, "b h s c"],
        embeddings: Float[Array, "r d"],
        indices: Int[Array, " t"],
    ) -> Float[Array, "b h s s"]:
        """Returns scores of content to position, and of position to content."""
        c = self.config
        scores = jnp.zeros((1, 1, 1, 1))
        if "c2p" in c.pos_att_type:
            project = self.key_proj if c.share_att_key else self.pos_key_proj
            by_distance = self._heads(project(embeddings))[:, indices]
            scores = scores + _skewed(_dot("bhqc,htc->bhqt", query, by_distance))
        if "p2c" in c.pos_att_type:
            project = self.query_proj if c.share_att_key else self.pos_query_proj
            opposite = jnp.roll(indices[::-1], -1)  # of the distances 1 - s up to s
            by_distance = self._heads(project(embeddings))[:, opposite]
            by_key = _skewed(_dot("bhkc,htc->bhkt", key, by_distance))
            scores = scores + jnp.swapaxes(by_key, -1, -2)
        return scores

    def _heads(self, x: Float[Array, "*n s d"]) -> Float[Array, "*n h s c"]:
        split = x.reshape(*x.shape[:-1], self.config.num_attention_heads, -1)
        return split.swapaxes(-3, -2)


def _dot(how: str, a: Array, b: Array) -> Float[Array, "..."]:
    return jnp.einsum(how, a, b, preferred_element_type=jnp.float32)


def _skewed(x: Float[Array, "*n s t"]) -> Float[Array, "*n s s"]:
    """Returns the entries of the distances i - j, at [i, j].

    Row i has them from column s - 1 - i on. In rows of one column less, one after
    another, they are below each other. A gather of them is slow on a TPU.

    Args:
        x: entries of the distances s - 1 down to -s in each row.
    """
    *batch, size, columns = x.shape
    flat = x.reshape(*batch, -1)[..., : size * (columns - 1)]
    return flat.reshape(*batch, size, columns - 1)[..., size - 1 :]
