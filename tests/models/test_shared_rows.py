"""Outputs that have the same tokens so far are computed once, and nothing changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding import NONE, begin, fresh, go_on, outputs, read, start
from llama_peer import random_model, random_tokens

from ivon_jax.models.decode import arrange
from ivon_jax.models.sampler import Sampler


@pytest.fixture(scope="module")
def small():
    model, params = random_model()
    return model, {"params": params}


@pytest.fixture(scope="module")
def three(small):
    tokens, lengths = random_tokens(3, 7), jnp.array([7, 2, 4])
    return read(*small, tokens, lengths)


@pytest.mark.parametrize("temperature", [0.2, 0.6, 2.0])
def test_what_outputs_have_in_common_is_one_row(small, three, temperature):
    """From few rows to one for each output; and as many as there are beginnings."""
    sampler = Sampler(temperature)
    keys = jax.random.split(jax.random.key(7), 12)
    shared = begin(three, 12, keys=keys)
    apart = start(
        fresh(three, 12, 12, 16), three, jnp.ones(12, bool), jnp.arange(12), keys
    )
    whole = go_on(*small, three, apart, sampler, NONE, limit=9)
    for steps in range(1, 9):
        shared = go_on(*small, three, shared, sampler, NONE, limit=9, steps=1)
        beginnings = [(i // 4, *ids) for i, ids in enumerate(outputs(shared))]
        row = shared.outputs.row.tolist()
        pairs = set(zip(row, beginnings, strict=True))
        assert len(pairs) == len(set(row)) == len(set(beginnings)), steps
    shared = go_on(*small, three, shared, sampler, NONE, limit=9)
    assert outputs(shared) == outputs(whole)
    np.testing.assert_allclose(
        shared.outputs.log_probs, whole.outputs.log_probs, rtol=1e-4
    )


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
@pytest.mark.parametrize("rows", [3, 6])
def test_outputs_wait_for_a_row(small, three, rows, temperature):
    sampler = Sampler(temperature)
    keys = jax.random.split(jax.random.key(7), 24)
    whole = go_on(*small, three, begin(three, 24, keys=keys), sampler, NONE, limit=9)
    few = begin(three, 24, rows=rows, keys=keys)
    few = go_on(*small, three, few, sampler, NONE, limit=9)
    assert outputs(few) == outputs(whole)
    np.testing.assert_allclose(
        few.outputs.log_probs, whole.outputs.log_probs, rtol=1e-4
    )


def test_outputs_that_wait_can_be_given_rows(small, three):
    keys = jax.random.split(jax.random.key(7), 12)
    whole = go_on(*small, three, begin(three, 12, keys=keys), Sampler(), NONE, limit=9)
    few = begin(three, 12, rows=6, keys=keys)
    few = go_on(*small, three, few, Sampler(), NONE, limit=9, crowd=False)
    assert few.outputs.waits.any() and few.outputs.live.all()
    rows = jnp.array([0, 1, 6, 6, 2, 3, 6, 6, 4, 5, 6, 6])  # and two free ones for each
    prompts, more = arrange(three, few, jnp.arange(3), rows, jnp.arange(12))
    more = go_on(*small, prompts, more, Sampler(), NONE, limit=9, steps=1)
    assert not more.outputs.waits.any()
    more = go_on(*small, prompts, more, Sampler(), NONE, limit=9)
    assert outputs(more) == outputs(whole)
