"""Log-probabilities of tokens in blocks, against the logits of all at once."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from ivon_jax.train.objectives.token_losses import token_log_probs
from ivon_jax.train.pod.sharding import make_mesh

ROWS, WIDTH, VOCABULARY = 4, 6, 37


def problem(count, seed=0, vocabulary=VOCABULARY):
    keys = jax.random.split(jax.random.key(seed), 3)
    hidden = jax.random.normal(keys[0], (ROWS, count, WIDTH))
    matrix = jax.random.normal(keys[1], (WIDTH, vocabulary))
    targets = jax.random.randint(keys[2], (ROWS, count), 0, vocabulary)
    return hidden, matrix, targets


def whole(hidden, matrix, targets):
    """All logits at once."""
    log_probs = jax.nn.log_softmax(hidden @ matrix)
    target = jnp.take_along_axis(log_probs, targets[..., None], axis=-1)[..., 0]
    return jnp.stack([target, log_probs.max(axis=-1)], axis=-1)


def in_blocks(block_tokens, hidden, matrix, targets):
    return token_log_probs(lambda h: h @ matrix, hidden, targets, block_tokens)


@given(
    count=st.integers(1, 9),
    columns=st.integers(1, 10),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None)
def test_values_and_gradients_are_those_of_whole_logits(count, columns, seed):
    parts = problem(count, seed)
    weights = jax.random.uniform(jax.random.key(seed + 1), parts[2].shape)
    size = ROWS * columns

    def loss(fn, hidden, matrix):
        found = fn(hidden, matrix, parts[2])
        return -jnp.sum(weights * found[..., 0]), found

    graded = [
        jax.jit(jax.value_and_grad(functools.partial(loss, fn), (0, 1), has_aux=True))(
            *parts[:2]
        )
        for fn in (functools.partial(in_blocks, size), whole)
    ]
    chex.assert_trees_all_close(*graded, rtol=1e-4, atol=1e-5)


def test_logits_of_a_frozen_matrix_are_computed_once():
    hidden, matrix, targets = problem(6)

    def loss(hidden):
        return jnp.sum(in_blocks(8, hidden, matrix, targets)[..., 0])

    # The logits, and the gradient by the states.
    step = jax.make_jaxpr(jax.value_and_grad(loss))(hidden)
    assert str(step).count("dot_general") == 2


def test_16_bit_states_have_16_bit_gradients():
    hidden, matrix, targets = problem(6)
    short = hidden.astype(jnp.bfloat16)
    weights = jax.random.uniform(jax.random.key(1), targets.shape)

    def loss(fn, states):
        found = fn(states)[..., 0]
        return jnp.sum(weights * found)

    def ours(states):
        return token_log_probs(
            lambda x: x.astype(jnp.float32) @ matrix, states, targets, 8
        )

    def theirs(states):
        return whole(states.astype(jnp.float32), matrix, targets)

    found, wanted = (
        jax.grad(functools.partial(loss, fn))(short) for fn in (ours, theirs)
    )
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        found.astype(jnp.float32), wanted.astype(jnp.float32), rtol=2**-6, atol=1e-6
    )


def test_a_token_that_is_the_likeliest_has_the_largest_log_prob():
    hidden, matrix, _ = problem(5)
    likeliest = jnp.argmax(hidden @ matrix, axis=-1)
    right = in_blocks(4, hidden, matrix, likeliest)
    wrong = in_blocks(4, hidden, matrix, (likeliest + 1) % VOCABULARY)
    assert (right[..., 0] == right[..., 1]).all()
    assert (wrong[..., 0] < wrong[..., 1]).all()


@pytest.mark.parametrize("axes", ["data=2,fsdp=2", "data=2,tensor=2"])
def test_a_mesh_changes_nothing(axes):
    """Rows and, along tensor, the vocabulary are split."""
    mesh, parts = make_mesh(axes), problem(7, vocabulary=38)
    rows = PartitionSpec(("data", "fsdp"))
    specs = (rows, PartitionSpec(None, "tensor"), rows)
    split = [
        jax.device_put(part, NamedSharding(mesh, spec))
        for part, spec in zip(parts, specs, strict=True)
    ]
    with jax.set_mesh(mesh):
        found = jax.jit(functools.partial(in_blocks, 8))(*split)
    np.testing.assert_allclose(found, in_blocks(8, *parts), rtol=1e-5, atol=1e-6)


def test_memory_is_that_of_a_block():
    """Compiled temporary memory; the whole logits are 64 times a block."""
    rows, count, vocabulary = 2, 512, 4096
    hidden = jnp.zeros((rows, count, 8))
    matrix = jnp.zeros((8, vocabulary))
    targets = jnp.zeros((rows, count), jnp.int32)
    block = rows * count // 64

    def memory(fn):
        def loss(hidden):
            return jnp.sum(fn(hidden, matrix, targets)[..., 0])

        compiled = jax.jit(jax.grad(loss)).lower(hidden).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(functools.partial(in_blocks, block)) < memory(whole) / 10
