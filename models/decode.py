"""Decoding: many outputs of many prompts, token by token, as pure functions.

Outputs of a prompt that have drawn the same tokens so far are one row: what they have
in common is computed once. Where they draw different tokens, the row is copied to free
ones. A group of rows shares a prompt, whose keys and values are stored once and only
read. Each row has a buffer of its own, written at one position a step, and may be at
another position than its neighbours: new outputs can start while others continue. What
an output draws depends on its key and position only, so it is the same, to rounding, in
any company.

>>> from ivon_jax.models import Llama, LlamaConfig
>>> config = LlamaConfig(
...     vocab_size=32, hidden_size=16, intermediate_size=24,
...     num_hidden_layers=2, num_attention_heads=4,
...     num_key_value_heads=2, head_dim=4,
... )
>>> model = Llama(config)
>>> variables = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
>>> tokens, lengths = jnp.array([[5, 9, 0], [3, 1, 4]]), jnp.array([2, 3])
>>> prompts = prefill(model, variables, tokens, lengths)
>>> state = fresh(prompts, rows=4, outputs=4, capacity=8)
>>> keys = jax.random.split(jax.random.key(1), 4)
>>> row = jnp.array([0, 0, 2, 2])  # the first row of each prompt
>>> state = start(state, prompts, jnp.ones(4, bool), row, keys)
>>> state = decode(model, variables, prompts, state, Sampler(), jnp.array([2]), limit=8)
>>> bool(state.outputs.live.any()), state.outputs.tokens.shape
(False, (4, 8))
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ivon_jax.lora import Lora
from ivon_jax.models.kv_cache import Past, Slots
from ivon_jax.models.rows import Outputs, copied, drawn, per_row, settled
from ivon_jax.models.sampler import Sampler

# The vectorised fold_in of a row's key and a position.
_fold = jax.vmap(jax.random.fold_in)


class Prompts(NamedTuple):
    """What decoding reads of p prompts.

    Attributes:
        cache: keys and values, padded on the right.
        lengths: number of tokens.
        hidden: hidden state after the last token.
    """

    cache: Slots
    lengths: Int[Array, " p"]
    hidden: Float[Array, "p d"]


class State(NamedTuple):
    """The state of decoding.

    Attributes:
        cache: keys and values of the tokens of r rows.
        hidden: hidden state of each row, from which the next tokens are drawn.
        outputs: the outputs; those of a row have the same tokens so far.
    """

    cache: Slots
    hidden: Float[Array, "r d"]
    outputs: Outputs


def prefill(
    model: nn.Module,
    variables: PyTree,
    tokens: Int[Array, "p s"],
    lengths: Int[Array, " p"],
) -> Prompts:
    """Reads prompts.

    Args:
        model: a `Llama`, or a `Lora` of one.
        variables: its parameters.
        tokens: the prompts' tokens, padded on the right by any.
        lengths: number of tokens of each.
    """
    real = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    # An id without an embedding is read as NaN, which no mask removes later.
    tokens = jnp.where(real, tokens, 0)
    out: Any = model.apply(variables, tokens, return_cache=True)
    hidden, cache = out
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]
    slots = Slots(*(part.swapaxes(2, 3) for part in cache))
    return Prompts(slots, lengths, last)


def fresh(prompts: Prompts, rows: int, outputs: int, capacity: int) -> State:
    """Returns the state in which no output is live.

    Args:
        prompts: the prompts.
        rows: number of rows, a multiple of that of prompts.
        outputs: number of outputs at a time.
        capacity: number of tokens that a row can hold.
    """

    def buffer(part: Array) -> Array:
        layers, _, heads, _, size = part.shape
        return jnp.zeros((layers, rows, heads, capacity, size), part.dtype)

    return State(
        cache=Slots(*map(buffer, prompts.cache)),
        hidden=jnp.zeros((rows, prompts.hidden.shape[1]), prompts.hidden.dtype),
        outputs=Outputs(
            row=jnp.zeros(outputs, jnp.int32),
            keys=jax.random.split(jax.random.key(0), outputs),
            tokens=jnp.zeros((outputs, capacity), jnp.int32),
            counts=jnp.zeros(outputs, jnp.int32),
            log_probs=jnp.zeros(outputs),
            live=jnp.zeros(outputs, bool),
            waits=jnp.zeros(outputs, bool),
        ),
    )


def start(
    state: State,
    prompts: Prompts,
    where: Bool[Array, " o"],
    row: Int[Array, " o"],
    keys: Key[Array, " o"],
) -> State:
    """Starts new outputs.

    Args:
        state: the state.
        prompts: the prompts.
        where: the outputs to start.
        row: a row of its prompt for each of them, in which no output is live; those of
            a prompt may start in the same.
        keys: their keys.
    """
    count, old = len(state.hidden), state.outputs
    first = jnp.repeat(prompts.hidden, count // len(prompts.hidden), axis=0)
    started = jnp.zeros(count, bool).at[row].max(where)
    return state._replace(
        hidden=jnp.where(started[:, None], first, state.hidden),
        outputs=old._replace(
            row=jnp.where(where, row, old.row),
            keys=jnp.where(where, keys, old.keys),
            counts=jnp.where(where, 0, old.counts),
            log_probs=jnp.where(where, 0.0, old.log_probs),
            live=old.live | where,
            waits=old.waits & ~where,
        ),
    )


def decode(
    model: nn.Module,
    variables: PyTree,
    prompts: Prompts,
    state: State,
    sampler: Sampler,
    stops: Int[Array, " e"],
    limit: int | Int[Array, ""],
    steps: int | Int[Array, ""] = 2**30,
    ended: int | Int[Array, ""] = 2**30,
    crowd: bool | Bool[Array, ""] = True,
) -> State:
    """Adds tokens to the live outputs, until a row is full or no output is live.

    An output ends with a stop token or at the limit.

    Args:
        model: as in `prefill`.
        variables: its parameters.
        prompts: the prompts.
        state: the state; donate it, so that its buffers are written in place.
        sampler: how tokens are drawn.
        stops: tokens that end an output.
        limit: number of tokens at which an output ends.
        steps: number of tokens after which to return.
        ended: number of outputs to end before returning.
        crowd: continue when outputs of a prompt have drawn more different tokens than
            it has rows, while some wait for others to end; or return, so that they can
            be given more.

    Returns:
        The state; the outputs that are live can continue once there is room.
    """
    capacity, before = state.cache.keys.shape[3], jnp.sum(state.outputs.live)
    base = model.base if isinstance(model, Lora) else model

    def unfinished(carry: tuple[Array, State]) -> Bool[Array, ""]:
        step, state = carry
        outputs = state.outputs
        live = jnp.sum(outputs.live)
        room = jnp.max(jnp.where(outputs.live, outputs.counts, 0)) < capacity
        going = room & (live > 0) & (before - live < ended) & (step < steps)
        return going & (crowd | ~jnp.any(outputs.waits & outputs.live))

    def step(carry: tuple[Array, State]) -> tuple[Array, State]:
        step, state = carry
        outputs, rows = state.outputs, len(state.hidden)
        logits: Any = base.apply(
            {"params": variables["params"]}, state.hidden, method="unembed"
        )
        keys = _fold(outputs.keys, outputs.counts)
        tokens, log_probs = sampler.pick(logits, keys, outputs.row)
        outputs = drawn(outputs, tokens, log_probs, stops, limit)
        outputs, parent = settled(outputs, rows, len(prompts.lengths))
        going = outputs.live & ~outputs.waits
        counts = per_row(outputs.counts - 1, outputs.row, going, rows)
        cache = copied(state.cache, parent)
        out: Any = model.apply(
            variables,
            per_row(outputs.last, outputs.row, going, rows)[:, None],
            past=Past(prompts.cache, prompts.lengths, cache, counts),
            return_cache=True,
        )
        hidden, new = out
        # A row without outputs is not written to.
        place = jnp.where(per_row(going, outputs.row, going, rows), counts, capacity)
        parts = zip(cache, new, strict=True)
        cache = Slots(*(_write(buffer, part, place) for buffer, part in parts))
        return step + 1, State(cache, hidden[:, 0], outputs)

    return jax.lax.while_loop(unfinished, step, (jnp.int32(0), state))[1]


def _write(
    buffer: Float[Array, "layers r k t h"],
    new: Float[Array, "layers r 1 k h"],
    place: Int[Array, " r"],
) -> Float[Array, "layers r k t h"]:
    """Writes each row's new keys or values, of all layers at once."""
    rows_first = new[:, :, 0].swapaxes(0, 1)
    index = jnp.arange(len(place))
    return buffer.at[:, index, :, place].set(rows_first, mode="drop")


def place(prompts: Prompts, new: Prompts, group: int | Int[Array, ""]) -> Prompts:
    """Replaces the prompt of a group, none of whose rows is live.

    Args:
        prompts: the prompts.
        new: one prompt, in a buffer of any length up to theirs.
        group: index of the prompt to replace.
    """

    def put(old: Array, part: Array) -> Array:
        first = (0,) * (old.ndim - 1)
        at = (group, *first) if old.ndim < 3 else (0, group, *first[1:])
        return jax.lax.dynamic_update_slice(old, part, at)

    return jax.tree.map(put, prompts, new)


def arrange(
    prompts: Prompts,
    state: State,
    groups: Int[Array, " g"],
    rows: Int[Array, " n"],
    outputs: Int[Array, " m"],
) -> tuple[Prompts, State]:
    """Takes some prompts, rows and outputs, in any order and as often as wanted.

    Args:
        prompts: the prompts.
        state: the state.
        groups: the prompts to take.
        rows: the rows to take, as many of each of these prompts, each once; one out of
            range is a free row.
        outputs: the outputs to take; the row of each live one must be among these. One
            out of range is not live.

    Returns:
        The prompts, and the state.
    """
    index = jnp.arange(len(rows), dtype=jnp.int32)
    place = jnp.zeros(len(state.hidden), jnp.int32).at[rows].set(index, mode="drop")

    def slots(cache: Slots, index: Int[Array, " n"]) -> Slots:
        return Slots(*(jnp.take(part, index, axis=1, mode="clip") for part in cache))

    taken = Prompts(
        slots(prompts.cache, groups), prompts.lengths[groups], prompts.hidden[groups]
    )
    last = jnp.minimum(outputs, len(state.outputs.live) - 1)
    chosen = jax.tree.map(lambda leaf: leaf[last], state.outputs)
    return taken, State(
        slots(state.cache, rows),
        jnp.take(state.hidden, rows, axis=0, mode="clip"),
        chosen._replace(row=place[chosen.row], live=chosen.live & (outputs == last)),
    )


def resize(state: State, capacity: int) -> State:
    """Changes the number of tokens that rows can hold; what is beyond it is lost."""

    def fit(part: Array, axis: int) -> Array:
        widths = [(0, 0)] * part.ndim
        widths[axis] = (0, max(capacity - part.shape[axis], 0))
        return jax.lax.slice_in_dim(jnp.pad(part, widths), 0, capacity, axis=axis)

    return state._replace(
        cache=Slots(*(fit(part, 3) for part in state.cache)),
        outputs=state.outputs._replace(tokens=fit(state.outputs.tokens, 1)),
    )
