"""Decoding as tests call it."""

import jax
import jax.numpy as jnp
import numpy as np

from ivon_jax.models import decode as pure

NONE = jnp.array([-1])
read = jax.jit(pure.prefill, static_argnums=0)
go_on = jax.jit(pure.decode, static_argnames=("model", "sampler"))
fresh = jax.jit(pure.fresh, static_argnames=("rows", "outputs", "capacity"))
start = jax.jit(pure.start)


def begin(prompts, outputs, capacity=16, seed=0, rows=None, keys=None):
    """All outputs of a prompt start in its first row, of as many as there are outputs.

    With keys, where they are given.
    """
    rows = rows or outputs
    if keys is None:
        keys = jax.random.split(jax.random.key(seed), outputs)
    group = jnp.arange(outputs) // (outputs // len(prompts.lengths))
    first = group * (rows // len(prompts.lengths))
    state = fresh(prompts, rows, outputs, capacity)
    return start(state, prompts, jnp.ones(outputs, bool), first, keys)


def outputs(state):
    found = state.outputs
    return [
        ids[:count].tolist()
        for ids, count in zip(np.asarray(found.tokens), found.counts, strict=True)
    ]
