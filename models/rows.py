"""Rows of a batch that several outputs share until they draw different tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from ivon_jax.models.kv_cache import Slots


class Outputs(NamedTuple):
    """What belongs to each of o outputs.

    Attributes:
        row: the row that has the output's tokens so far.
        keys: key of each output; the position is folded in for every token.
        tokens: the tokens so far, the stop token included, then any.
        counts: their number.
        log_probs: sum of their log-probabilities under the model.
        live: whether the output continues.
        waits: whether it does so once there is a row. The row that it is in has its
            tokens but the last, and then others.
    """

    row: Int[Array, " o"]
    keys: Key[Array, " o"]
    tokens: Int[Array, "o t"]
    counts: Int[Array, " o"]
    log_probs: Float[Array, " o"]
    live: Bool[Array, " o"]
    waits: Bool[Array, " o"]

    @property
    def own(self) -> Int[Array, " o"]:
        """The number of each output."""
        return jnp.arange(len(self.live))

    @property
    def last(self) -> Int[Array, " o"]:
        """The last token of each output that has any."""
        return self.tokens[self.own, jnp.maximum(self.counts - 1, 0)]


def drawn(
    outputs: Outputs,
    tokens: Int[Array, " o"],
    log_probs: Float[Array, " o"],
    stops: Int[Array, " e"],
    limit: int | Int[Array, ""],
) -> Outputs:
    """Adds a token to each live output that does not wait.

    Args:
        outputs: the outputs.
        tokens: a token for each.
        log_probs: its log-probability.
        stops: tokens that end an output.
        limit: number of tokens at which an output ends.
    """
    going, capacity = outputs.live & ~outputs.waits, outputs.tokens.shape[1]
    place = jnp.where(going, outputs.counts, capacity)
    counts = outputs.counts + going.astype(jnp.int32)
    ends = jnp.any(tokens[:, None] == stops[None], axis=1) | (counts >= limit)
    return outputs._replace(
        tokens=outputs.tokens.at[jnp.arange(len(tokens)), place].set(
            tokens, mode="drop"
        ),
        counts=counts,
        log_probs=outputs.log_probs + jnp.where(going, log_probs, 0.0),
        live=outputs.live & ~(going & ends),
    )


def settled(
    outputs: Outputs, rows: int, prompts: int
) -> tuple[Outputs, Int[Array, " r"]]:
    """Finds a row for all outputs of a row that have the same tokens.

    The outputs with the most tokens keep their row, because only they need all of it.
    The others need free rows of their prompt, or wait.

    Args:
        outputs: the outputs; the live ones have a token at least.
        rows: number of rows, as many for each prompt.
        prompts: number of prompts.

    Returns:
        The outputs, and for each row the one whose past it is to have.
    """
    live, row, counts, own = outputs.live, outputs.row, outputs.counts, outputs.own
    last = outputs.last
    beside = live[:, None] & live[None] & (row[:, None] == row[None])
    same = (counts[:, None] == counts[None]) & (last[:, None] == last[None])
    leader = jnp.argmax(beside & same, axis=1)
    keeps = live & (jnp.argmax(jnp.where(beside, counts[None], -1), axis=1) == own)
    leaves = live & (leader == own) & ~keeps
    # The first that leaves takes the first free row of its prompt, and so on.
    index = jnp.arange(rows)
    group = index // (rows // prompts)
    free = ~per_row(live, row, live, rows)
    takes = group[row][:, None] == group[None]
    takes &= _number(leaves, group[row])[:, None] == _number(free, group)[None]
    takes &= leaves[:, None] & free[None]
    found = (keeps | jnp.any(takes, axis=1))[leader]
    new = jnp.where(leaves, jnp.argmax(takes, axis=1), row)[leader]
    parent = jnp.where(jnp.any(takes, axis=0), row[jnp.argmax(takes, axis=0)], index)
    moved = jnp.where(live & found, new, row).astype(jnp.int32)
    return outputs._replace(row=moved, waits=live & ~found), parent.astype(jnp.int32)


def _number(chosen: Bool[Array, " n"], group: Int[Array, " n"]) -> Int[Array, " n"]:
    """Counts the chosen before each, among those of its group."""
    earlier = jnp.tril(group[:, None] == group[None], -1)
    return jnp.sum(earlier & chosen[None], axis=1)


def per_row(
    values: Shaped[Array, " o"],
    row: Int[Array, " o"],
    which: Bool[Array, " o"],
    rows: int,
) -> Shaped[Array, " r"]:
    """Returns the value of each row's outputs, which is the same for all, or 0.

    Args:
        values: of outputs.
        row: the row of each.
        which: outputs that count.
        rows: number of rows.
    """
    place = jnp.where(which, row, rows)
    return jnp.zeros(rows, values.dtype).at[place].set(values, mode="drop")


def copied(cache: Slots, parent: Int[Array, " r"]) -> Slots:
    """Copies the past of rows to those that continue them.

    Args:
        cache: keys and values.
        parent: the row whose past each row is to have.
    """
    index = jnp.arange(len(parent))
    changed = parent != index
    order = jnp.argsort(~changed)  # those to copy to first

    def copy(i: Int[Array, ""], cache: Slots) -> Slots:
        def one(buffer: Array) -> Array:
            part = jax.lax.dynamic_index_in_dim(buffer, parent[order[i]], 1)
            return jax.lax.dynamic_update_index_in_dim(buffer, part, order[i], 1)

        return Slots(*map(one, cache))

    return jax.lax.fori_loop(0, jnp.sum(changed), copy, cache)
