"""Masks of dropout and random signs, which belong to tokens.

How a batch is split decides in which row a text is, at which place and beside which
others. Inside `numbered` a draw is a function of key and token only, so that it is the
same in any row; elsewhere it is one of key and index.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32
from jaxtyping import Array, Float, Int, Key, UInt32


class Tokens(NamedTuple):
    """The numbers of tokens in an array; no two tokens of a batch have the same two.

    Attributes:
        text: number of each one's text.
        place: its place there.
    """

    text: Int[Array, "*b"]
    place: Int[Array, "*b"]


_TOKENS: ContextVar[Tokens | None] = ContextVar("tokens", default=None)


@contextmanager
def numbered(tokens: Tokens) -> Iterator[None]:
    """Says which tokens the layers that are called inside compute.

    As an interceptor, it is entered inside the function being jitted: the layers of a
    model know nothing of it.

    Args:
        tokens: their numbers, of the shape of the layers' inputs without features.

    Example:
        >>> key, x = jax.random.key(0), jnp.ones((1, 3, 8))
        >>> row = Tokens(jnp.array([[0, 0, 1]]), jnp.array([[0, 1, 0]]))
        >>> with numbered(row):
        ...     kept = dropout(key, x, 0.5)
        >>> with numbered(jax.tree.map(jnp.flip, row)):
        ...     print((dropout(key, x, 0.5) == jnp.flip(kept, 1)).all())
        True
    """
    before = _TOKENS.set(tokens)
    try:
        yield
    finally:
        _TOKENS.reset(before)


def dropout(
    key: Key[Array, ""], x: Float[Array, "*b i"], rate: float
) -> Float[Array, "*b i"]:
    """Drops entries at `rate` to within 2^-17, with 16 random bits for each.

    Args:
        key: key of the mask.
        x: a row of entries for each token.
        rate: in [0, 1]; the entries that are kept are scaled so that the mean stays.
    """
    dropped = round(rate * 2**16)
    if dropped >= 2**16:
        return jnp.zeros_like(x)
    *shape, width = x.shape
    words = _words(key, tuple(shape), -(-width // 2))
    # All low halves, then all high ones: a new last axis of the two would leave a TPU's
    # lanes empty.
    draws = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., :width]
    # Scaled by the rounded rate, so that the mean is exact.
    scale = 1 / (1 - dropped / 2**16)
    return jnp.where(draws >= jnp.uint32(dropped), scale * x, 0)


def signs(key: Key[Array, ""], like: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """Draws -1 or 1 for each entry, from one random bit.

    Args:
        key: key of the signs.
        like: an array of the same shape and dtype, a row of entries for each token.
    """
    *shape, width = like.shape
    words = _words(key, tuple(shape), -(-width // 32))
    shifts = jnp.arange(32, dtype=jnp.uint32)
    bits = (words[..., None] >> jnp.expand_dims(shifts, range(words.ndim))) & 1
    bits = bits.reshape(*shape, -1)[..., :width]
    return 1 - 2 * bits.astype(like.dtype)


def _words(
    key: Key[Array, ""], shape: tuple[int, ...], count: int
) -> UInt32[Array, "*b n"]:
    """Draws words of 32 random bits for each token."""
    tokens = _TOKENS.get()
    if tokens is None:
        return jax.random.bits(key, (*shape, count), jnp.uint32)
    if tokens.text.shape != shape:
        raise ValueError(
            f"numbered: tokens of shape {tokens.text.shape}, but a layer's are {shape}"
        )
    # The generator makes two words of two counters: the text, and a number in it.
    pair = jax.random.bits(key, (2,), jnp.uint32)
    calls = -(-count // 2)

    def of_token(text: UInt32[Array, ""], place: UInt32[Array, ""]) -> Array:
        numbers = place * calls + jnp.arange(calls, dtype=jnp.uint32)
        counters = jnp.concatenate([jnp.full_like(numbers, text), numbers])
        return threefry_2x32((pair[0], pair[1]), counters)[:count]

    numbers = (leaf.astype(jnp.uint32) for leaf in tokens)
    return jnp.vectorize(of_token, signature="(),()->(n)")(*numbers)
