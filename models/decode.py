"""Decoding: many outputs of many prompts, token by token, as pure functions.

Rows are the outputs being made. A group of rows shares a prompt, whose keys and values
are stored once and only read. Each row has a buffer of its own, written at one position
a step, and may be at another position than its neighbours: a row that ends can start
the next output while others go on. What a row draws depends on its key and position
only, so it is the same, to rounding, in any company.

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
>>> rows = fresh(prompts, rows=4, capacity=8)
>>> keys = jax.random.split(jax.random.key(1), 4)
>>> rows = start(rows, prompts, jnp.ones(4, bool), keys)
>>> rows = decode(model, variables, prompts, rows, Sampler(), jnp.array([2]), limit=8)
>>> bool(rows.live.any()), rows.tokens.shape
(False, (4, 8))
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ivon_jax.lora import Lora
from ivon_jax.models.kv_cache import Past, Slots
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


class Rows(NamedTuple):
    """The state of r outputs.

    Attributes:
        cache: keys and values of their tokens.
        hidden: hidden state from which the next token is drawn.
        keys: key of each output; the position is folded in for every token.
        tokens: the tokens so far, the stop token included, then any.
        counts: their number.
        log_probs: sum of their log-probabilities under the model.
        live: whether the output goes on.
    """

    cache: Slots
    hidden: Float[Array, "r d"]
    keys: Key[Array, " r"]
    tokens: Int[Array, "r t"]
    counts: Int[Array, " r"]
    log_probs: Float[Array, " r"]
    live: Bool[Array, " r"]


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


def fresh(prompts: Prompts, rows: int, capacity: int) -> Rows:
    """Returns rows of which none is live.

    Args:
        prompts: the prompts.
        rows: number of rows, a multiple of that of prompts.
        capacity: number of tokens that a row can hold.
    """

    def buffer(part: Array) -> Array:
        layers, _, heads, _, size = part.shape
        return jnp.zeros((layers, rows, heads, capacity, size), part.dtype)

    return Rows(
        cache=Slots(*map(buffer, prompts.cache)),
        hidden=jnp.zeros((rows, prompts.hidden.shape[1]), prompts.hidden.dtype),
        keys=jax.random.split(jax.random.key(0), rows),
        tokens=jnp.zeros((rows, capacity), jnp.int32),
        counts=jnp.zeros(rows, jnp.int32),
        log_probs=jnp.zeros(rows),
        live=jnp.zeros(rows, bool),
    )


def start(
    rows: Rows, prompts: Prompts, where: Bool[Array, " r"], keys: Key[Array, " r"]
) -> Rows:
    """Starts a new output in some rows.

    Args:
        rows: the rows.
        prompts: the prompts.
        where: the rows to start.
        keys: key of each new output.
    """
    hidden = jnp.repeat(prompts.hidden, len(where) // len(prompts.hidden), axis=0)
    return rows._replace(
        hidden=jnp.where(where[:, None], hidden, rows.hidden),
        keys=jnp.where(where, keys, rows.keys),
        counts=jnp.where(where, 0, rows.counts),
        log_probs=jnp.where(where, 0.0, rows.log_probs),
        live=rows.live | where,
    )


def decode(
    model: nn.Module,
    variables: PyTree,
    prompts: Prompts,
    rows: Rows,
    sampler: Sampler,
    stops: Int[Array, " e"],
    limit: int | Int[Array, ""],
    steps: int | Int[Array, ""] = 2**30,
    ended: int | Int[Array, ""] = 2**30,
) -> Rows:
    """Adds tokens to the live rows, until one of them is full or none is live.

    A row ends with a stop token or at the limit.

    Args:
        model: as in `prefill`.
        variables: its parameters.
        prompts: the prompts.
        rows: the rows; donate them, so that their buffers are written in place.
        sampler: how tokens are drawn.
        stops: tokens that end an output.
        limit: number of tokens at which an output ends.
        steps: number of tokens after which to return.
        ended: number of rows to end before returning.

    Returns:
        The rows; those that are live and not full can go on.
    """
    capacity, before = rows.tokens.shape[1], jnp.sum(rows.live)
    base = model.base if isinstance(model, Lora) else model
    index = jnp.arange(len(rows.live))

    def unfinished(carry: tuple[Array, Rows]) -> Bool[Array, ""]:
        step, rows = carry
        live = jnp.sum(rows.live)
        room = jnp.max(jnp.where(rows.live, rows.counts, 0)) < capacity
        return room & (live > 0) & (before - live < ended) & (step < steps)

    def step(carry: tuple[Array, Rows]) -> tuple[Array, Rows]:
        step, rows = carry
        logits: Any = base.apply(
            {"params": variables["params"]}, rows.hidden, method="unembed"
        )
        tokens, log_probs = sampler.pick(logits, _fold(rows.keys, rows.counts))
        out: Any = model.apply(
            variables,
            tokens[:, None],
            past=Past(prompts.cache, prompts.lengths, rows.cache, rows.counts),
            return_cache=True,
        )
        hidden, new = out
        # One that has ended is not written to any more, and a full one is out of range.
        place = jnp.where(rows.live, rows.counts, capacity)
        parts = zip(rows.cache, new, strict=True)
        cache = Slots(*(_write(buffer, part, index, place) for buffer, part in parts))
        counts = rows.counts + rows.live.astype(jnp.int32)
        stopped = jnp.any(tokens[:, None] == stops[None], axis=1)
        return step + 1, Rows(
            cache=cache,
            hidden=hidden[:, 0],
            keys=rows.keys,
            tokens=rows.tokens.at[index, place].set(tokens, mode="drop"),
            counts=counts,
            log_probs=rows.log_probs + jnp.where(rows.live, log_probs, 0.0),
            live=rows.live & ~stopped & (counts < limit),
        )

    return jax.lax.while_loop(unfinished, step, (jnp.int32(0), rows))[1]


def _write(
    buffer: Float[Array, "layers r k t h"],
    new: Float[Array, "layers r 1 k h"],
    index: Int[Array, " r"],
    place: Int[Array, " r"],
) -> Float[Array, "layers r k t h"]:
    """Writes each row's new keys or values, of all layers at once."""
    rows_first = new[:, :, 0].swapaxes(0, 1)
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


def take(prompts: Prompts, rows: Rows, index: Int[Array, " n"]) -> tuple[Prompts, Rows]:
    """Takes some rows, each with a copy of its prompt.

    Args:
        prompts: the prompts.
        rows: the rows.
        index: the rows to take.

    Returns:
        The prompts of the rows, and the rows.
    """

    def pick(tree: Any, index: Int[Array, " n"]) -> Any:
        cache = Slots(*(jnp.take(part, index, axis=1) for part in tree.cache))
        rest = {k: leaf[index] for k, leaf in tree._asdict().items() if k != "cache"}
        return tree._replace(cache=cache, **rest)

    owner = index // (len(rows.live) // len(prompts.lengths))
    return pick(prompts, owner), pick(rows, index)


def resize(rows: Rows, capacity: int) -> Rows:
    """Changes the number of tokens that rows can hold; what is beyond it is lost."""

    def fit(part: Array, axis: int) -> Array:
        widths = [(0, 0)] * part.ndim
        widths[axis] = (0, max(capacity - part.shape[axis], 0))
        return jax.lax.slice_in_dim(jnp.pad(part, widths), 0, capacity, axis=axis)

    cache = Slots(*(fit(part, 3) for part in rows.cache))
    return rows._replace(cache=cache, tokens=fit(rows.tokens, 1))
