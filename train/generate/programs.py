"""The compiled functions of decoding, and how their arrays are split over a mesh."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Int, Key, PyTree, UInt

from ivon_jax.models import decode as pure
from ivon_jax.models.decode import Prompts, Rows
from ivon_jax.models.kv_cache import Slots
from ivon_jax.models.sampler import Sampler
from ivon_jax.train.pod.sharding import BATCH_AXES, activation_rules


@functools.partial(jax.jit, static_argnames="module")
def prefill(
    module: nn.Module,
    variables: PyTree,
    tokens: Int[Array, "p s"],
    lengths: Int[Array, " p"],
) -> Prompts:
    """Compiles `ivon_jax.models.decode.prefill`."""
    return pure.prefill(module, variables, tokens, lengths)


@functools.partial(jax.jit, static_argnames=("groups", "length", "rows", "capacity"))
def fresh(
    one: Prompts, groups: int, length: int, rows: int, capacity: int
) -> tuple[Prompts, Rows]:
    """Makes buffers for prompts and rows, of which none is live.

    Args:
        one: a prompt.
        groups: number of prompts.
        length: tokens that a prompt can have.
        rows: number of rows.
        capacity: tokens that a row can have.
    """

    def slots(part: Array) -> Array:
        layers, _, heads, _, size = part.shape
        return jnp.zeros((layers, groups, heads, length, size), part.dtype)

    prompts = Prompts(
        Slots(*map(slots, one.cache)),
        jnp.ones(groups, jnp.int32),
        jnp.zeros((groups, one.hidden.shape[1]), one.hidden.dtype),
    )
    return split(prompts), split(pure.fresh(prompts, rows, capacity))


@functools.partial(jax.jit, donate_argnames="prompts")
def place(prompts: Prompts, new: Prompts, group: int | Int[Array, ""]) -> Prompts:
    """Compiles `ivon_jax.models.decode.place`."""
    return split(pure.place(prompts, new, group))


@functools.partial(jax.jit, donate_argnames="rows")
def start(
    rows: Rows,
    prompts: Prompts,
    where: Bool[Array, " r"],
    key: Key[Array, ""],
    prompt_ids: UInt[Array, " r"],
    model_id: UInt[Array, ""],
    outputs: Int[Array, " r"],
) -> Rows:
    """Starts outputs, each with the key of its prompt, model and number."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = fold(key, prompt_ids)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, model_id)
    keys = jax.vmap(jax.random.fold_in)(keys, outputs)
    return split(pure.start(rows, prompts, where, keys))


@functools.partial(
    jax.jit, static_argnames=("module", "sampler"), donate_argnames="rows"
)
def decode(
    module: nn.Module,
    variables: PyTree,
    prompts: Prompts,
    rows: Rows,
    sampler: Sampler,
    stops: Int[Array, " e"],
    limit: int | Int[Array, ""],
    steps: int | Int[Array, ""],
    ended: int | Int[Array, ""],
) -> Rows:
    """Compiles `ivon_jax.models.decode.decode`."""
    with nn.logical_axis_rules(activation_rules()):
        rows = pure.decode(
            module, variables, prompts, rows, sampler, stops, limit, steps, ended
        )
    return split(rows)


@jax.jit
def take(prompts: Prompts, rows: Rows, index: Int[Array, " n"]) -> tuple[Prompts, Rows]:
    """Compiles `ivon_jax.models.decode.take`."""
    prompts, rows = pure.take(prompts, rows, index)
    return split(prompts), split(rows)


@functools.partial(jax.jit, static_argnames="capacity")
def resize(rows: Rows, capacity: int) -> Rows:
    """Compiles `ivon_jax.models.decode.resize`."""
    return split(pure.resize(rows, capacity))


def split(tree: Any) -> Any:
    """Splits prompts or rows over the current mesh, inside jit.

    The first axis, that of rows, is split over the batch axes, heads over the tensor
    axis, where they divide it.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def axes(size: int, names: tuple[str, ...]) -> tuple[str, ...] | None:
        names = tuple(name for name in names if mesh.shape[name] > 1)
        parts = math.prod(mesh.shape[name] for name in names)
        return names if names and size % parts == 0 else None

    def leaf(part: Array) -> Array:
        if part.ndim == 5:  # layers, rows, heads, tokens, entries of a head
            rows = axes(part.shape[1], BATCH_AXES)
            spec = PartitionSpec(None, rows, axes(part.shape[2], ("tensor",)))
        else:
            spec = PartitionSpec(axes(len(part), BATCH_AXES))
        return jax.lax.with_sharding_constraint(part, spec)

    return jax.tree.map(leaf, tree)
