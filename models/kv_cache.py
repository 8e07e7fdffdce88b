"""Keys and values of earlier tokens, as the decoder reads them.

The model only reads caches, and returns those of the new tokens: the caller writes
them where it likes, once for all layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class KVCache(NamedTuple):
    """Rotated keys, and values, of previous tokens in every layer.

    With batch size 1 the cache is a prefix shared by the whole batch.
    """

    keys: Float[Array, "layers b t kv_heads head_dim"]
    values: Float[Array, "layers b t kv_heads head_dim"]


class Slots(NamedTuple):
    """Rotated keys, and values, in buffers of fixed length, time next to the heads.

    In this order the products of one new token read the buffers as they are.
    """

    keys: Float[Array, "*layers b kv_heads t head_dim"]
    values: Float[Array, "*layers b kv_heads t head_dim"]


class LayerPast(NamedTuple):
    """What one layer, or with a leading axis every layer, reads of a `Past`."""

    prompt: Slots
    own: Slots


class Past(NamedTuple):
    """The tokens before one new token of each row: a prompt's, then the row's own.

    Rows are those of the first prompt, then those of the second, and so on; each prompt
    has equally many. A prompt is stored once, for all of its rows.

    Attributes:
        prompt: caches of p prompts, padded on the right.
        lengths: number of tokens of each prompt.
        own: caches of the r rows.
        counts: number of tokens of each row after the prompt.
    """

    prompt: Slots
    lengths: Int[Array, " p"]
    own: Slots
    counts: Int[Array, " r"]

    @property
    def layers(self) -> LayerPast:
        """The caches."""
        return LayerPast(self.prompt, self.own)

    @property
    def positions(self) -> Int[Array, "r 1"]:
        """Position of each row's new token."""
        return self._starts + self.counts[:, None]

    @property
    def _starts(self) -> Int[Array, "r 1"]:
        """Length of each row's prompt."""
        rows = len(self.counts) // len(self.lengths)
        return jnp.repeat(self.lengths, rows)[:, None]

    def visible(self, window: int | None = None) -> Bool[Array, "r 1 1 u"]:
        """Returns which slots a new token may attend to; the last is its own.

        Args:
            window: only this many tokens, the new one included; None for all.
        """
        prompt, own = (
            jnp.arange(slots.keys.shape[-2])[None] for slots in (self.prompt, self.own)
        )
        now = jnp.ones_like(self.positions, bool)
        parts = [prompt < self._starts, own < self.counts[:, None], now]
        seen = jnp.concatenate(parts, axis=1)
        if window is not None:
            places = [
                jnp.broadcast_to(prompt, (len(self.counts), prompt.shape[1])),
                self._starts + own,
                self.positions,
            ]
            seen &= jnp.concatenate(places, axis=1) > self.positions - window
        return seen[:, None, None]


def attend(
    query: Float[Array, "r 1 n h"],
    key: Float[Array, "r 1 k h"],
    value: Float[Array, "r 1 k h"],
    past: LayerPast,
    mask: Bool[Array, "r 1 1 u"],
) -> Float[Array, "r 1 n h"]:
    """Attends from one new token of each row to its prompt, its own past, and itself.

    The rows of a prompt share one product with the prompt's keys, as in Hydragen
    (Juravsky et al. 2024, arXiv:2402.05099), and one softmax joins the three parts.

    Args:
        query: rotated queries.
        key: rotated keys of the new tokens.
        value: their values.
        past: the layer's caches.
        mask: see `Past.visible`.
    """
    rows, _, heads, size = query.shape
    kv_heads, prompts = key.shape[2], past.prompt.keys.shape[0]
    group = heads // kv_heads

    def split(x: Array) -> Array:  # rows to prompts, and their rows into the group
        x = x.reshape(prompts, rows // prompts, kv_heads, group, -1)
        return x.swapaxes(1, 2).reshape(prompts, kv_heads, rows // prompts * group, -1)

    def join(x: Array) -> Array:
        x = x.reshape(prompts, kv_heads, rows // prompts, group, -1)
        return x.swapaxes(1, 2).reshape(rows, kv_heads, group, -1)

    one = query.reshape(rows, kv_heads, group, size)
    new_key, new_value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    logits = [
        join(_scores(split(one), past.prompt.keys)),
        _scores(one, past.own.keys),
        _scores(one, new_key),
    ]
    joined = jnp.concatenate(logits, axis=-1) * size**-0.5
    weights = jax.nn.softmax(jnp.where(mask, joined, -jnp.inf), axis=-1)
    length = past.prompt.keys.shape[-2]
    parts = jnp.split(weights.astype(value.dtype), (length, joined.shape[-1] - 1), -1)
    out = (
        join(_mean(split(parts[0]), past.prompt.values))
        + _mean(parts[1], past.own.values)
        + _mean(parts[2], new_value)
    )
    return out.astype(query.dtype).reshape(rows, 1, heads, size)


def _scores(
    query: Float[Array, "b k g h"], keys: Float[Array, "b k t h"]
) -> Float[Array, "b k g t"]:
    return jnp.einsum(
        "bkgh,bkth->bkgt", query, keys, preferred_element_type=jnp.float32
    )


def _mean(
    weights: Float[Array, "b k g t"], values: Float[Array, "b k t h"]
) -> Float[Array, "b k g h"]:
    return jnp.einsum(
        "bkgt,bkth->bkgh", weights, values, preferred_element_type=jnp.float32
    )
