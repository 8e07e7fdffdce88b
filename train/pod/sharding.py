"""Placement of arrays: one mesh of devices, and one table of rules.

All programs are written for whole arrays; XLA splits them by the shardings below.
The mesh has three axes: the batch is split over ``data`` and ``fsdp``, parameters
over ``fsdp`` (one axis) and ``tensor`` (the other).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PyTree

from ivon_jax._tree import path_name
from ivon_jax.errors import prefixed
from ivon_jax.models.axes import logical_axes

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
RULES: dict[str, str | tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}


def activation_rules(
    batch: tuple[str, ...] = BATCH_AXES,
) -> list[tuple[str, str | tuple[str, ...]]]:
    """Returns flax's logical axis rules of what layers compute.

    Args:
        batch: the mesh's axes that rows are split over.
    """
    return [("batch", batch), ("heads", "tensor")]


def parse_mesh(text: str) -> dict[str, int]:
    """Parses the sizes of the mesh's axes.

    Args:
        text: as ``data=2,fsdp=4``; axes left out have size 1.

    Returns:
        The size of every axis.

    Raises:
        ValueError: the text has another form.

    Example:
        >>> parse_mesh("data=2,tensor=4")
        {'data': 2, 'fsdp': 1, 'tensor': 4}
    """
    parts = [part.partition("=") for part in text.split(",")]
    sizes = {name: size for name, _, size in parts}
    legal = all(size.isdecimal() and int(size) > 0 for size in sizes.values())
    if not legal or len(sizes) < len(parts) or not sizes.keys() <= set(AXES):
        raise ValueError(f"mesh: {text!r} is not of the form data=2,fsdp=1,tensor=1")
    return {axis: int(sizes.get(axis, 1)) for axis in AXES}


def device_count(text: str) -> int:
    """Counts the devices of a mesh; see `parse_mesh`."""
    return math.prod(parse_mesh(text).values())


def make_mesh(text: str, devices: Sequence[Any] | None = None) -> Mesh:
    """Builds the mesh from the first N devices.

    Neighbours in the mesh are neighbours in a TPU's torus. Of several slices each holds
    an equal part of the axis ``data``: between them the network is slow.

    Args:
        text: see `parse_mesh`.
        devices: the devices, also those of a topology; None for JAX's.

    Returns:
        The mesh; all axes are split automatically, by XLA.

    Raises:
        ValueError: the text is malformed, there are fewer than N devices, several
            processes have more than N, or they cannot be laid out so.
    """
    shape = parse_mesh(text)
    devices = jax.devices() if devices is None else devices
    wanted, found = device_count(text), len(devices)
    if wanted > found or (jax.process_count() > 1 and wanted < found):
        raise ValueError(f"mesh: {text} is {wanted} devices, there are {found}")
    devices = devices[:wanted]
    slices = len({getattr(device, "slice_index", None) for device in devices})
    if devices[0].platform != "tpu":  # GPUs of several nodes are in order
        slices = 1
    if shape["data"] % slices:
        raise ValueError(f"mesh: {text} on {slices} slices, which do not divide data")
    inner = tuple((shape | {"data": shape["data"] // slices}).values())
    split: Any = {"devices": devices, "allow_split_physical_axes": True}
    with prefixed(f"mesh: {text}", (ValueError, AssertionError, NotImplementedError)):
        if slices == 1:
            grid = mesh_utils.create_device_mesh(inner, **split)
        else:
            grid = mesh_utils.create_hybrid_device_mesh(inner, (slices, 1, 1), **split)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def cut_heads(mesh: Mesh, heads: int, head_dim: int) -> str | None:
    """Says so if the axis ``tensor`` divides heads, not only their number.

    Args:
        mesh: the devices.
        heads: number of the model's key and value heads.
        head_dim: their size.
    """
    parts = mesh.shape["tensor"]
    if heads % parts == 0 or heads * head_dim % parts:  # then they are not split
        return None
    return (
        f"mesh: tensor={parts} cuts the model's {heads} key-value heads, whose parts"
        f" are exchanged in every layer; a divisor of {heads} leaves them whole"
    )


def spec(path: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> PartitionSpec:
    """Returns the partition of an array.

    Args:
        path: path of a parameter, an adapter, or a leaf of the optimizer's state.
        shape: the array's shape.
        sizes: sizes of the mesh's axes.

    Returns:
        The mesh axis of each dimension. A dimension that the axis does not divide
        is not split.
    """
    axes = [RULES.get(name or "") for name in logical_axes(path, len(shape))]
    split = [
        axis
        if isinstance(axis, str) and sizes[axis] > 1 and n % sizes[axis] == 0
        else None
        for axis, n in zip(axes, shape, strict=True)
    ]
    # As XLA spells its outputs: else a step's output would be recompiled for as input.
    while split and split[-1] is None:
        split.pop()
    return PartitionSpec(*split)


def placement(mesh: Mesh | AbstractMesh) -> Callable[..., NamedSharding]:
    """Returns the function from an array's path and shape to its sharding."""
    return lambda path, shape: NamedSharding(mesh, spec(path, shape, mesh.shape))


def shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree[NamedSharding]:
    """Returns a sharding for every leaf of parameters or a training state; see `spec`.

    Args:
        tree: arrays, or their shapes from `jax.eval_shape`.
        mesh: the devices.
    """
    place = placement(mesh)

    def leaf(path: Any, value: Any) -> NamedSharding:
        return place(path_name(path), value.shape)

    return jax.tree_util.tree_map_with_path(leaf, tree)


def constrain(tree: PyTree) -> PyTree:
    """Constrains a state to its shardings on the current mesh, inside jit.

    A step whose output is split like its input can reuse its buffers, and is compiled
    once.
    """
    mesh: Any = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, shardings(tree, mesh))


def replicate(tree: PyTree) -> PyTree:
    """Replicates a small result on all devices, inside jit."""
    if jax.sharding.get_abstract_mesh().empty:
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec())


def row_shards(mesh: Mesh) -> int:
    """Returns the number of parts that a batch's rows are split into."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def local_rows(mesh: Mesh, num_rows: int) -> Int[np.ndarray, " rows"]:
    """Returns the indices of a batch's rows on this process's devices, ascending.

    Args:
        mesh: the devices.
        num_rows: rows of the batch, over all processes.

    Raises:
        ValueError: the batch cannot be split evenly.
    """
    shards = row_shards(mesh)
    if num_rows % shards:
        raise ValueError(
            f"batch: {num_rows} rows are not a multiple of data*fsdp = {shards}"
        )
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))
    held = split.addressable_devices_indices_map((num_rows,)).values()
    return np.unique([np.arange(num_rows)[index] for index in held])


def put_whole(array: np.ndarray, mesh: Mesh) -> jax.Array:
    """Replicates an array that all processes hold on all devices."""
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.make_array_from_callback(array.shape, whole, array.__getitem__)


def spread(tree: PyTree, mesh: Mesh) -> PyTree:
    """Replicates small arrays, the same in all processes, on all devices.

    A program that is given arrays of one device sends them to the others at each call.
    """
    whole = NamedSharding(mesh, PartitionSpec())
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)  # without a copy of what is there already
    return jax.jit(_same, out_shardings=whole)(tree)


def _same(tree: PyTree) -> PyTree:
    return tree


def put_batch(batch: PyTree, mesh: Mesh, num_rows: int) -> PyTree:
    """Makes global arrays, split over the mesh's batch axes, of each process's rows.

    Args:
        batch: arrays of this process's rows, see `local_rows`.
        mesh: the devices.
        num_rows: rows of the batch, over all processes.
    """
    split = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def leaf(part: np.ndarray) -> jax.Array:
        shape = (num_rows, *part.shape[1:])
        return jax.make_array_from_process_local_data(split, part, shape)

    return jax.tree.map(leaf, batch)
