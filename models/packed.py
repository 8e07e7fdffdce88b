"""Texts one after another in a row, without padding, and attention within each.

Layers work on rows of tokens. Only attention needs the tokens of a text side by side:
it is computed on places, of which every text has as many as the longest. A row with a
token for every place has its texts at their places, and its padding between them.

Shapes: b rows, k texts in each, t tokens of the texts; w places of a text; p tokens of
a prefix that all texts share, which is computed once a row; u = p + t.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ivon_jax.models.attention import Causal, Kernel, attention, dot_product
from ivon_jax.token_draws import Tokens


class Packed(NamedTuple):
    """Where the texts are in their rows; an index out of range means padding.

    Attributes:
        token: index among a row's t tokens of the one at each place.
        place: index among a row's k * w places of the one of each token.
        text: number of each text in its batch, whatever row it is in.
        branch: of texts that fork, the branch of each place: 0 before the fork, then 1,
            2, ...; no branch sees another. None if no text forks.
    """

    token: Int[Any, "b k w"]
    place: Int[Any, "b t"]
    text: Int[Any, "b k"]
    branch: Int[Any, "b k w"] | None = None

    @classmethod
    def of(
        cls,
        lengths: Int[np.ndarray, "b k"],
        tokens: int,
        width: int,
        text: Int[np.ndarray, "b k"] | None = None,
    ) -> "Packed":
        """Computes the indices, on the host.

        Args:
            lengths: tokens of each text, without the prefix.
            tokens: t, at least their sum in every row.
            width: w, at least the longest.
            text: number of each text in its batch; None for their order.

        Raises:
            ValueError: the texts do not fit.

        Example:
            >>> found = Packed.of(np.array([[2, 1]]), tokens=4, width=2)
            >>> found.token.tolist(), found.place.tolist(), found.text.tolist()
            ([[[0, 1], [2, 4]]], [[0, 1, 2, 4]], [[0, 1]])
        """
        most, texts = lengths.sum(axis=1).max(), lengths.shape[1]
        if most > tokens or lengths.max() > width:
            raise ValueError(
                f"texts of up to {lengths.max()} tokens, {most} in a row,"
                f" do not fit into {tokens} tokens and {width} places"
            )
        starts = np.cumsum(lengths, axis=1) - lengths
        if tokens == texts * width:
            starts = np.broadcast_to(np.arange(texts) * width, lengths.shape)
        offset = np.arange(width)
        inside = offset < lengths[..., None]
        token = np.where(inside, starts[..., None] + offset, tokens)
        place = np.full((len(lengths), tokens), texts * width)
        row, which, at = np.nonzero(inside)
        place[row, token[inside]] = which * width + at
        if text is None:
            text = np.arange(lengths.size).reshape(lengths.shape)
        parts = (part.astype(np.int32) for part in (token, place, text))
        return cls(*parts)

    @property
    def full(self) -> bool:
        """Whether a row has a token for every place."""
        _, texts, width = self.token.shape
        return bool(self.place.shape[1] == texts * width)

    def positions(self, prefix: int) -> Int[Array, "b u"]:
        """Returns the position in its text of every token of a row.

        Args:
            prefix: number of tokens of the prefix, which come first.
        """
        _, texts, width = self.token.shape
        own = prefix + self.place % width
        if self.branch is not None:
            depth = self.depth().reshape(len(own), -1)
            own = prefix + jnp.take_along_axis(depth, self.place, 1, mode="clip")
        own = jnp.where(self.place < texts * width, own, 0)
        first = jnp.broadcast_to(jnp.arange(prefix)[None], (len(own), prefix))
        return jnp.concatenate([first, own], axis=1)

    def numbers(self, prefix: int) -> Tokens:
        """Returns the numbers by which masks are drawn for a row's tokens.

        They are the same in whatever row a text is. A prefix has in all rows those of
        the first text. A fork's branches have places of their own.

        Args:
            prefix: see `positions`.
        """
        _, texts, width = self.token.shape
        index = jnp.minimum(self.place // width, texts - 1)  # padding's may be any
        own = jnp.take_along_axis(jnp.asarray(self.text), index, axis=1)
        first = jnp.broadcast_to(jnp.arange(prefix)[None], (len(own), prefix))
        return Tokens(
            jnp.pad(own, ((0, 0), (prefix, 0))),
            jnp.concatenate([first, prefix + self.place % width], axis=1),
        )

    def depth(self) -> Int[Array, "b k w"]:
        """Returns how many places of its text each place of a forked text follows."""
        return jnp.sum(self.seen(), axis=-1) - 1

    def seen(self) -> Bool[Array, "b k w w"]:
        """Returns which places of its text each place of a forked text sees."""
        assert self.branch is not None
        query, key = self.branch[..., :, None], self.branch[..., None, :]
        width = self.branch.shape[-1]
        return ((key == 0) | (key == query)) & jnp.tri(width, dtype=bool)[None, None]


@jax.custom_vjp
def to_places(x: Float[Array, "b t *f"], packed: Packed) -> Float[Array, "b k w *f"]:
    """Puts tokens at their places; those without a token are 0."""
    return _take(x, packed.token)


@jax.custom_vjp
def to_tokens(x: Float[Array, "b k w *f"], packed: Packed) -> Float[Array, "b t *f"]:
    """Takes tokens from their places; those without a place are 0."""
    return _take(x.reshape(len(x), -1, *x.shape[3:]), packed.place)


# Each is the other's transpose. Said so, the gradient is a gather too, not a scatter;
# the price is that there is no forward mode.
to_places.defvjp(
    lambda x, packed: (to_places(x, packed), packed),
    lambda packed, ct: (to_tokens(ct, packed), None),
)
to_tokens.defvjp(
    lambda x, packed: (to_tokens(x, packed), packed),
    lambda packed, ct: (to_places(ct, packed), None),
)


def _take(x: Float[Array, "b n *f"], index: Int[Any, "b *m"]) -> Array:
    """Takes from every row; 0 where the index is out of range."""
    fill: Any = {"mode": "fill", "fill_value": 0, "wrap_negative_indices": False}
    return jax.vmap(lambda row, at: row.at[at].get(**fill))(x, index)


def packed_attention(
    query: Float[Array, "b u n h"],
    key: Float[Array, "b u m h"],
    value: Float[Array, "b u m h"],
    packed: Packed,
    causal: Causal,
    kernel: Kernel,
) -> Float[Array, "b u n h"]:
    """Attends from every token to the prefix and to those before it in its text.

    Args:
        query: rotated queries of the prefix and of the texts, n heads.
        key: rotated keys, m heads, which divides n.
        value: the values.
        packed: where the texts are.
        causal: the window, if there is one.
        kernel: what computes it, but for texts that fork. A TPU's takes whole rows
            where that are fewer scores.

    Returns:
        The means of the values; arbitrary at padding.
    """
    tokens = packed.place.shape[1]
    prefix = query.shape[1] - tokens
    rows, texts, width = packed.token.shape
    plain = not prefix and packed.branch is None and not packed.full
    fewer = plain and tokens**2 <= texts * width**2
    if kernel.name == "splash" and tokens >= kernel.shortest and fewer:
        return attention(query, key, value, causal, kernel, packed.place // width)

    def side_by_side(x: Float[Array, "b u _ h"]) -> Float[Array, "c w _ h"]:
        own = x[:, prefix:]
        if not packed.full:
            own = to_places(own, packed)
        return own.reshape(-1, width, *x.shape[2:])

    def after_prefix(x: Float[Array, "b u m h"]) -> Float[Array, "c v m h"]:
        shape = (rows, texts, prefix, *x.shape[2:])
        shared = jnp.broadcast_to(x[:, None, :prefix], shape)
        shared = shared.reshape(rows * texts, *shape[2:])
        return jnp.concatenate([shared, side_by_side(x)], axis=1)

    inputs = (side_by_side(query), after_prefix(key), after_prefix(value))
    if packed.branch is None:
        own = attention(*inputs, causal, kernel)
    else:
        own = dot_product(*inputs, _forked(packed, prefix, causal))
    if packed.full:
        own = own.reshape(rows, tokens, *own.shape[2:])
    else:
        own = to_tokens(own.reshape(rows, texts, width, *own.shape[2:]), packed)
    if not prefix:
        return own
    first = attention(
        query[:, :prefix], key[:, :prefix], value[:, :prefix], causal, kernel
    )
    return jnp.concatenate([first, own], axis=1)


def _forked(packed: Packed, prefix: int, causal: Causal) -> Bool[Array, "c 1 w v"]:
    """Returns what places of forked texts may attend to, of the prefix and the text."""
    own, depth = packed.seen(), prefix + packed.depth()
    first = jnp.broadcast_to(jnp.arange(prefix), (*own.shape[:2], prefix))
    at = jnp.concatenate([first, depth], axis=-1)
    shape = (*own.shape[:3], prefix)
    seen = jnp.concatenate([jnp.broadcast_to(True, shape), own], axis=-1)
    seen = causal.near(seen, depth[..., :, None] - at[..., None, :])
    return seen.reshape(-1, 1, *seen.shape[2:])
