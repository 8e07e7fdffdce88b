"""Rows of several texts: each is as if it were alone, with its prefix before it."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_peer import SMALL, hf_configs, no_past, random_model, relative

from ivon_jax.lora import Lora, LoraConfig, init_adapters
from ivon_jax.models import Llama, LlamaConfig
from ivon_jax.models.attention import Causal, Kernel
from ivon_jax.models.packed import Packed, packed_attention, to_places, to_tokens
from ivon_jax.models.stack import unstack_layers

LENGTHS = st.integers(1, 7)


@st.composite
def texts(draw, vocabulary=1009):
    """A prefix, rows of texts, and how many tokens and places are left empty."""
    count = draw(st.integers(1, 3))
    row = st.lists(LENGTHS, min_size=count, max_size=count)
    rows = np.array(draw(st.lists(row, min_size=1, max_size=2)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    prefix = rng.integers(vocabulary, size=draw(st.integers(0, 5)))
    found = [[rng.integers(vocabulary, size=n) for n in row] for row in rows]
    return prefix, found, draw(st.integers(0, 3)), draw(st.integers(0, 3))


def in_rows(prefix, rows, tokens=0, places=0):
    """The tokens of rows, and where the texts are."""
    lengths = np.array([[len(text) for text in row] for row in rows])
    size, width = lengths.sum(1).max() + tokens, lengths.max() + places
    packed = Packed.of(lengths, int(size), int(width))
    made = np.zeros((len(rows), len(prefix) + packed.place.shape[1]), np.int32)
    made[:, : len(prefix)] = prefix
    empty = texts_of(made, prefix, packed, rows)
    for own, text in zip(empty, itertools.chain(*rows), strict=True):
        own[:] = text
    return jnp.asarray(made), packed


def texts_of(hidden, prefix, packed, rows):
    """The states of each text's own tokens, one text after another."""
    starts = len(prefix) + packed.token[..., 0]
    return [
        own[start : start + len(text)]
        for own, edges, row in zip(hidden, starts, rows, strict=True)
        for start, text in zip(edges, row, strict=True)
    ]


def weighted(states):
    """A number that depends on every entry, each in its own way."""
    flat = jnp.concatenate([jnp.ravel(state) for state in states])
    return jnp.sum(jnp.sin(flat) * jnp.cos(jnp.arange(flat.size, dtype=jnp.float32)))


def by_rows(model, params, prefix, rows, *more):
    tokens, packed = in_rows(prefix, rows, *more)
    hidden = model.apply({"params": params}, tokens, packed=packed)
    return texts_of(hidden, prefix, packed, rows)


def padded(model, params, prefix, rows, *_):
    """Each text in a row of its own after the prefix, padded on the right."""
    texts = [np.concatenate([prefix, text]) for row in rows for text in row]
    tokens = np.zeros((len(texts), max(map(len, texts))), np.int32)
    for own, text in zip(tokens, texts, strict=True):
        own[: len(text)] = text
    hidden = model.apply({"params": params}, jnp.asarray(tokens))
    return [
        own[len(prefix) : len(text)] for own, text in zip(hidden, texts, strict=True)
    ]


def assert_same(model, params, case):
    """States, and the gradients of a number that depends on each of them."""
    found = []
    for states_of in (by_rows, padded):

        def loss(params, states_of=states_of):
            states = states_of(model, params, *case)
            return weighted(states), states

        found.append(jax.jit(jax.grad(loss, has_aux=True))(params))
    (grads, states), (wanted, expected) = found
    for one, two in zip(states, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=1e-4 * size),
        grads,
        wanted,
    )


@given(config=hf_configs(), data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_texts_of_a_row_are_as_if_alone(config, data, seed):
    """Windows, norms of queries and keys, biases and all kinds of rope."""
    if config["rope_parameters"]["rope_type"] == "dynamic":
        # Else its angles depend on the longest of what is computed together.
        config = config | {"max_position_embeddings": 24}
    model, params = random_model(LlamaConfig.from_hf(config), seed)
    assert_same(model, params, data.draw(texts(config["vocab_size"])))


@given(config=hf_configs(), data=st.data(), seed=st.integers(0, 99))
@settings(max_examples=5, deadline=None)
def test_branches_of_a_text_are_as_if_alone(config, data, seed):
    """Each after the prefix and what is before the fork; windows too."""
    if config["rope_parameters"]["rope_type"] == "dynamic":
        config = config | {"max_position_embeddings": 24}
    model, params = random_model(LlamaConfig.from_hf(config), seed)
    prefix, rows, *more = data.draw(texts(config["vocab_size"]))
    # Each row is one text: its first part, then the others as branches.
    joined = [[np.concatenate(row)] for row in rows]
    tokens, packed = in_rows(prefix, joined, *more)
    edges = np.cumsum([[len(text) for text in row] for row in rows], axis=1)[:, :-1]
    width = packed.token.shape[2]
    branch = (edges[..., None] <= np.arange(width)).sum(1)[:, None]
    packed = packed._replace(branch=branch.astype(np.int32))
    got = model.apply({"params": params}, tokens, packed=packed)
    wholes = texts_of(got, prefix, packed, joined)
    states = list(itertools.chain(*map(np.split, wholes, edges)))
    every = list(itertools.chain(*rows))
    for row in rows:
        first, *branches = row
        for text in branches or [first]:
            before = [*prefix, *first] if branches else prefix
            (wanted,) = padded(model, params, before, [[text]])
            place = next(i for i, one in enumerate(every) if one is text)
            np.testing.assert_allclose(states[place], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rows_are_the_same_with_recomputation(remat):
    _, params = random_model()
    model = Llama(SMALL, remat=remat)
    rng = np.random.default_rng(0)
    rows = [[rng.integers(1009, size=n) for n in (1, 70, 9)]]
    assert_same(model, params, (rng.integers(1009, size=40), rows, 5, 2))


def test_rows_are_the_same_unscanned():
    model, params = random_model()
    case = ([3, 1], [[[4], [1, 5]], [[9, 2], [6]]])
    plain = Llama(SMALL, scan_layers=False)
    got = by_rows(plain, unstack_layers(params), *case)
    for one, two in zip(got, by_rows(model, params, *case), strict=True):
        assert relative(one, two) <= 1e-5


@pytest.mark.parametrize(("scan_layers", "remat"), [(True, "dots"), (False, "full")])
def test_masks_belong_to_texts(scan_layers, remat):
    """States and gradients are the same in other rows, of another shape."""
    base, params = random_model()
    params = params if scan_layers else unstack_layers(params)
    base = base.clone(scan_layers=scan_layers, remat=remat)
    targets = ("q_proj", "v_proj", "o_proj", "down_proj")
    model = Lora(base, LoraConfig(rank=2, dropout=0.5, targets=targets))
    tokens = jnp.zeros((1, 1), jnp.int32)
    fresh = init_adapters(model, jax.random.key(1), tokens)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, fresh)
    rng = np.random.default_rng(0)
    texts = [rng.integers(1009, size=n) for n in (3, 5, 2, 4)]

    def found(order, key, *more):
        rows = [[texts[i] for i in row] for row in order]
        tokens, packed = in_rows([7, 8], rows, *more)
        packed = packed._replace(text=jnp.asarray(order))

        def loss(adapters):
            variables = {"params": params, "lora": adapters}
            rngs = {"dropout": jax.random.key(key)}
            hidden = model.apply(variables, tokens, packed=packed, rngs=rngs)
            states = texts_of(hidden, [7, 8], packed, rows)
            own = [states[i] for i in np.argsort(np.ravel(order))]
            return weighted(own), (own, hidden[:, :2])

        return jax.jit(jax.grad(loss, has_aux=True))(adapters)

    grads, (states, shared) = found([[0, 1, 2, 3]], 2)
    others, (moved, first) = found([[3, 1], [0, 2]], 2, 3, 1)
    for one, other in zip(states, moved, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    for row in first:
        np.testing.assert_allclose(row, shared[0], rtol=1e-4, atol=1e-5)
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(grads))
    chex.assert_trees_all_close(grads, others, rtol=0, atol=1e-4 * size)
    _, (renumbered, _) = found([[0, 1, 2, 3]], 3)
    assert not np.allclose(states[0], renumbered[0], rtol=1e-2)


def test_numbers_are_text_and_position():
    packed = Packed.of(np.array([[2, 1], [1, 1]]), 4, 2, np.array([[3, 0], [2, 1]]))
    text, position = packed.numbers(2)
    assert text[:, :2].tolist() == [[0, 0]] * 2
    assert position[:, :2].tolist() == [[0, 1]] * 2
    assert text[0, 2:5].tolist() == [3, 3, 0] and text[1, 2:4].tolist() == [2, 1]
    assert position[0, 2:5].tolist() == [2, 3, 2] and position[1, 2:4].tolist() == [
        2,
        2,
    ]


def test_only_the_states_that_are_read_are_returned():
    model, params = random_model()
    prefix, rows = [3, 1], [[[4], [1, 5]], [[9, 2], [6]]]
    tokens, packed = in_rows(prefix, rows)
    whole = model.apply({"params": params}, tokens, packed=packed)
    reads = jnp.array([[0, 4, 2], [3, 3, 1]])
    got = model.apply({"params": params}, tokens, packed=packed, reads=reads)
    np.testing.assert_allclose(
        got, np.take_along_axis(np.asarray(whole), reads[..., None], 1), rtol=1e-5
    )


@given(case=texts())
@settings(max_examples=5, deadline=None)
def test_places_and_tokens_are_each_others_transpose(case):
    prefix, rows, *more = case
    _, packed = in_rows(prefix, rows, *more)
    rng = np.random.default_rng(0)
    x, y = (
        jnp.asarray(rng.normal(size=(*shape, 2)), jnp.float32)
        for shape in (packed.place.shape, packed.token.shape)
    )
    there, back = to_places(x, packed), to_tokens(y, packed)
    assert float(jnp.vdot(there, y)) == pytest.approx(
        float(jnp.vdot(x, back)), rel=1e-4
    )
    # As their gradients are, and as those of a sum that knows nothing of gathers.
    np.testing.assert_array_equal(
        jax.vjp(functools.partial(to_places, packed=packed), x)[1](y)[0], back
    )
    np.testing.assert_array_equal(
        jax.vjp(functools.partial(to_tokens, packed=packed), y)[1](x)[0], there
    )
    np.testing.assert_array_equal(to_tokens(there, packed), x * inside(packed))


def inside(packed):
    _, texts, width = packed.token.shape
    return (packed.place < texts * width)[..., None].astype(jnp.float32)


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("lengths", [[[4, 4, 4]], [[4, 1, 3], [2, 4, 4]], [[4], [2]]])
def test_a_full_row_is_taken_as_it_is(lengths, prefix):
    """Bit for bit as with a token more, which gathers: results and gradients."""
    lengths, rng = np.array(lengths), np.random.default_rng(0)
    texts = lengths.shape[1]

    def found(tokens):
        packed = Packed.of(lengths, tokens, 4)
        assert packed.full == (tokens == 4 * texts)
        own = prefix + packed.token[packed.token < tokens]
        row = np.nonzero(packed.token < tokens)[0]
        rows = np.full((3, len(lengths), prefix + tokens, 2, 8), 9.0, np.float32)
        rows[:, :, :prefix], rows[:, row, own] = shared, values

        def loss(rows):
            out = packed_attention(*rows, packed, Causal(), Kernel())
            out = jnp.concatenate([out[:, :prefix].ravel(), out[row, own].ravel()])
            return weighted([out]), out

        grads, out = jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(rows))
        return out, grads[:, :, :prefix], grads[:, row, own]

    shared = rng.normal(size=(3, 1, prefix, 2, 8))
    values = rng.normal(size=(3, lengths.sum(), 2, 8))
    chex.assert_trees_all_equal(found(4 * texts), found(4 * texts + 1))


def test_texts_that_do_not_fit_are_refused():
    for tokens, width in ((4, 3), (5, 2)):
        with pytest.raises(ValueError, match="texts of up to 3 tokens, 5 in a row"):
            Packed.of(np.array([[2, 3], [1, 1]]), tokens, width)


def test_packed_comes_alone():
    model, params = random_model()
    tokens, packed = in_rows([], [[[1, 2], [3]]])
    for inputs in ({"mask": tokens > 0}, {"past": no_past()}, {"return_cache": True}):
        with pytest.raises(ValueError, match="packed: excludes mask, past and"):
            model.apply({"params": params}, tokens, packed=packed, **inputs)


def test_a_token_without_an_embedding_in_another_text_changes_nothing():
    """It is read as NaN, which must not reach its neighbours."""
    model, params = random_model()
    prefix, rows = [3], [[[4, 7], [1009]]]
    tokens, packed = in_rows(prefix, rows)
    hidden = model.apply({"params": params}, tokens, packed=packed)
    wanted = padded(model, params, prefix, [rows[0][:1]])
    np.testing.assert_allclose(hidden[0, 1:3], wanted[0], rtol=1e-4, atol=1e-5)
