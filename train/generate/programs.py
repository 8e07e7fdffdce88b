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
from ivon_jax.models.decode import Prompts, State
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


@functools.partial(
    jax.jit, static_argnames=("groups", "length", "rows", "outputs", "capacity")
)
def fresh(
    one: Prompts, groups: int, length: int, rows: int, outputs: int, capacity: int
) -> tuple[Prompts, State]:
    """Makes buffers for prompts and rows, without live outputs.

    Args:
        one: a prompt.
        groups: number of prompts.
        length: tokens that a prompt can have.
        rows: number of rows.
        outputs: number of outputs at a time.
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
    return split(prompts), split(pure.fresh(prompts, rows, outputs, capacity))


@functools.partial(jax.jit, donate_argnames="prompts")
def place(prompts: Prompts, new: Prompts, group: int | Int[Array, ""]) -> Prompts:
    """Compiles `ivon_jax.models.decode.place`."""
    return split(pure.place(prompts, new, group))


@functools.partial(jax.jit, donate_argnames="state")
def start(
    state: State,
    prompts: Prompts,
    where: Bool[Array, " o"],
    row: Int[Array, " o"],
    key: Key[Array, ""],
    prompt_ids: UInt[Array, " o"],
    model_id: UInt[Array, ""],
    numbers: Int[Array, " o"],
) -> State:
    """Starts outputs, each with the key of its prompt, model and number."""
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = fold(key, prompt_ids)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, model_id)
    keys = jax.vmap(jax.random.fold_in)(keys, numbers)
    return split(pure.start(state, prompts, where, row, keys))


@functools.partial(
    jax.jit, static_argnames=("module", "sampler"), donate_argnames="state"
)
def decode(
    module: nn.Module,
    variables: PyTree,
    prompts: Prompts,
    state: State,
    sampler: Sampler,
    stops: Int[Array, " e"],
    limit: int | Int[Array, ""],
    steps: int | Int[Array, ""],
    ended: int | Int[Array, ""],
    crowd: bool | Bool[Array, ""],
) -> State:
    """Compiles `ivon_jax.models.decode.decode`."""
    with nn.logical_axis_rules(activation_rules()):
        state = pure.decode(
            module,
            variables,
            prompts,
            state,
            sampler,
            stops,
            limit,
            steps,
            ended,
            crowd,
        )
    return split(state)


@functools.partial(jax.jit, donate_argnames="state")
def end(state: State, where: Bool[Array, " o"]) -> State:
    """Ends outputs, as a stop token does."""
    live = state.outputs.live & ~where
    return split(state._replace(outputs=state.outputs._replace(live=live)))


@jax.jit
def arrange(
    prompts: Prompts,
    state: State,
    groups: Int[Array, " g"],
    rows: Int[Array, " n"],
    outputs: Int[Array, " m"],
) -> tuple[Prompts, State]:
    """Compiles `ivon_jax.models.decode.arrange`."""
    prompts, state = pure.arrange(prompts, state, groups, rows, outputs)
    return split(prompts), split(state)


@functools.partial(jax.jit, static_argnames="capacity")
def resize(state: State, capacity: int) -> State:
    """Compiles `ivon_jax.models.decode.resize`."""
    return split(pure.resize(state, capacity))


def split(tree: Any) -> Any:
    """Splits prompts or rows over the current mesh, inside jit.

    The axis of prompts or rows is split over the batch axes, heads over the tensor
    axis, where they divide it. Outputs, which are small, are whole everywhere.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree

    def axes(size: int, names: tuple[str, ...]) -> tuple[str, ...] | None:
        names = tuple(name for name in names if mesh.shape[name] > 1)
        parts = math.prod(mesh.shape[name] for name in names)
        return names if names and size % parts == 0 else None

    def whole(part: Array) -> Array:
        return jax.lax.with_sharding_constraint(part, PartitionSpec())

    def leaf(part: Array) -> Array:
        if part.ndim == 5:  # layers, rows, heads, tokens, entries of a head
            rows = axes(part.shape[1], BATCH_AXES)
            spec = PartitionSpec(None, rows, axes(part.shape[2], ("tensor",)))
        else:
            spec = PartitionSpec(axes(len(part), BATCH_AXES))
        return jax.lax.with_sharding_constraint(part, spec)

    if isinstance(tree, State):
        cache, hidden = jax.tree.map(leaf, (tree.cache, tree.hidden))
        return State(cache, hidden, jax.tree.map(whole, tree.outputs))
    return jax.tree.map(leaf, tree)
