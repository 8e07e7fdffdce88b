"""Masks and signs of tokens: the same in any row, and as random as their generator."""

import math
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax.token_draws import Tokens, dropout, numbered, signs

KEY = jax.random.key(5)


def tokens_of(shape, texts):
    """Tokens of equally many texts one after another, from position 3 on."""
    text, position = np.divmod(np.arange(math.prod(shape)), math.prod(shape) // texts)
    return Tokens(*(jnp.asarray(x.reshape(shape)) for x in (text, position + 3)))


def both(x, tokens, key=KEY):
    with numbered(tokens):
        return np.asarray(dropout(key, x, 0.5)), np.asarray(signs(key, x))


@pytest.mark.parametrize("width", [1, 4, 7, 67])
def test_draws_are_those_of_the_token_wherever_it_is(width):
    tokens = tokens_of((2, 12), 4)
    order = np.random.default_rng(0).permutation(24)
    moved = jax.tree.map(lambda leaf: leaf.ravel()[order].reshape(3, 8), tokens)
    x = jnp.ones((2, 12, width))
    for one, other in zip(
        both(x, tokens), both(x.reshape(3, 8, width), moved), strict=True
    ):
        np.testing.assert_array_equal(
            one.reshape(24, width)[order], other.reshape(24, width)
        )


def threefry(key, counter):
    """Threefry-2x32 of 20 rounds, by its paper (Salmon et al., 2011)."""
    word = 2**32 - 1
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = ((c + k) & word for c, k in zip(counter, keys, strict=False))
    for i in range(20):
        turn = (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]
        x = (x + y) & word
        y = (y << turn | y >> 32 - turn) & word ^ x
        if i % 4 == 3:
            n = i // 4 + 1
            x, y = (x + keys[n % 3]) & word, (y + keys[(n + 1) % 3] + n) & word
    return x, y


def test_bits_are_those_of_the_generator():
    assert threefry((0, 0), (0, 0)) == (0x6B200159, 0x99BA4EFE)  # a known answer
    width, calls = (
        70,
        2,
    )  # three words of signs: two calls, whose first words come first
    tokens = Tokens(jnp.array([[2, 0]]), jnp.array([[5, 1]]))
    kept, found = both(jnp.ones((1, 2, width)), tokens)
    pair = [int(word) for word in jax.random.bits(KEY, (2,), jnp.uint32)]

    def words(text, position, calls):
        pairs = [threefry(pair, (text, position * calls + i)) for i in range(calls)]
        return [word for half in zip(*pairs, strict=True) for word in half]

    for i, (text, position) in enumerate([(2, 5), (0, 1)]):
        drawn = words(text, position, calls)
        bits = [drawn[i // 32] >> i % 32 & 1 for i in range(width)]
        assert found[0, i].tolist() == [1 - 2 * bit for bit in bits]
        # Dropout has 35 words of 18 calls: their low halves, then their high ones.
        drawn = words(text, position, 18)[:35]
        halves = [word % 2**16 for word in drawn] + [word >> 16 for word in drawn]
        assert kept[0, i].tolist() == [2.0 * (half >= 2**15) for half in halves]


@pytest.mark.parametrize("where", ["by token", "by index"])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("width", [1, 2, 333])
def test_dropout_keeps_the_right_share_and_the_mean(rate, width, where):
    shape = (3, 100_000 // width)
    tokens = tokens_of(shape, 3)
    with numbered(tokens) if where == "by token" else nullcontext():
        out = np.asarray(dropout(KEY, jnp.ones((*shape, width)), rate))
    assert out.shape == (*shape, width)
    error = 4 * math.sqrt(rate * (1 - rate) / out.size)
    assert abs(np.mean(out == 0) - rate) < error + 2**-17
    np.testing.assert_allclose(out[out != 0], 1 / (1 - rate), rtol=2**-13)
    if width == 2:  # the two halves of a word are independent
        dropped = (out == 0).reshape(-1, 2)
        pairs = np.mean(dropped[:, 0] & dropped[:, 1])
        assert abs(pairs - rate**2) < 4 * math.sqrt(rate**2 / len(dropped))


@pytest.mark.parametrize("by", ["tokens", "entries"])
def test_draws_are_uncorrelated(by):
    """Those of two tokens or of two entries of each, of one layer or of two."""
    count, width = (32, 4096) if by == "tokens" else (4096, 32)
    tokens, x = tokens_of((4, count // 4), 8), jnp.ones((4, count // 4, width))
    layers = [both(x, tokens, key) for key in jax.random.split(KEY)]
    for kind in zip(*layers, strict=True):
        rows = [draws.reshape(count, width) for draws in kind]
        rows = np.concatenate([row if by == "tokens" else row.T for row in rows])
        found = np.corrcoef(rows) - np.eye(64)
        assert np.abs(found).max() < 5.5 / math.sqrt(4096)


def test_dropout_at_the_ends():
    x = jax.random.normal(KEY, (2, 5))
    np.testing.assert_array_equal(dropout(KEY, x, 0.0), x)
    assert not dropout(KEY, x, 1 - 2**-20).any()  # and nothing infinite


def test_another_number_of_tokens_is_refused():
    message = r"numbered: tokens of shape \(2, 12\), but a layer's are \(2, 11\)"
    with pytest.raises(ValueError, match=message):
        both(jnp.ones((2, 11, 4)), tokens_of((2, 12), 4))
