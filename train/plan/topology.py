"""Which chips a mesh is laid over: slices of TPUs, nodes of GPUs."""

import math
import re
from typing import Any, NamedTuple

from ivon_jax.models.attention import Platform
from ivon_jax.train.plan.chips import (
    CAPABILITIES,
    GPUS_OF_A_NODE,
    SLICES,
    ChipName,
    target_config,
)
from ivon_jax.train.pod.sharding import device_count, parse_mesh


class Topology(NamedTuple):
    """The chips of a run.

    Attributes:
        chip: the accelerator.
        shape: chips along each axis of a TPU's slice; nodes, and GPUs of a node.
        slices: slices of TPUs.
        used: the chips of the mesh: the first ones.
    """

    chip: ChipName
    shape: str
    slices: int
    used: int

    def __str__(self) -> str:
        """Names the chips, as ``2 slices of v5e:4x4``."""
        if self.chip in SLICES:
            many = f"{self.slices} slices of " if self.slices > 1 else ""
            return f"{many}{self.chip}:{self.shape}"
        nodes, gpus = self.shape.split("x")
        return f"{nodes} node{'s' * (nodes != '1')} of {gpus} {self.chip}"

    @property
    def platform(self) -> Platform:
        """What computes."""
        if self.chip in SLICES:
            return Platform("tpu")
        return Platform("gpu", CAPABILITIES[self.chip])

    def devices(self) -> list[Any]:
        """Returns JAX's devices of these chips, from the compiler's library.

        Raises:
            Exception: whatever JAX raises where the library is not installed.
        """
        from jax.experimental import topologies

        if self.chip in SLICES:
            more: Any = {"num_slices": self.slices} if self.slices > 1 else {}
            name, platform = f"{self.chip}:{self.shape}", "tpu"
        else:
            more = {
                "topology": f"1x{self.shape}",
                "target_config": target_config(self.chip),
            }
            name, platform = self.chip, "cuda"
        found = topologies.get_topology_desc(name, platform=platform, **more)
        return list(found.devices)[: self.used]


def find_topology(
    chip: ChipName, mesh: str, shape: str | None = None, slices: int = 1
) -> Topology:
    """Finds the chips of a mesh.

    Args:
        chip: the accelerator.
        mesh: see `parse_mesh`. A TPU's mesh of less than a host of four takes the first
            chips of one.
        shape: as 4x8, chips along each axis of a slice, or nodes and GPUs of a node;
            None for the one of the mesh's size, with up to eight GPUs in a node.
        slices: slices of TPUs, which ``data`` is split over.

    Raises:
        ValueError: there are no such chips.

    Example:
        >>> str(find_topology("v5e", "data=2,fsdp=16"))
        'v5e:4x8'
        >>> str(find_topology("h100", "fsdp=32"))
        '4 nodes of 8 h100'
    """
    count = device_count(mesh)
    if slices < 1 or (slices > 1 and chip not in SLICES):
        raise ValueError(f"slices: {slices} of {chip}; several are only of TPUs, >= 1")
    if parse_mesh(mesh)["data"] % slices:
        raise ValueError(f"slices: {slices} do not divide data of mesh {mesh}")
    if chip in SLICES:
        found = _slice(chip, mesh, count // slices, shape, whole=slices > 1)
    else:
        found = _nodes(chip, mesh, count, shape)
    return Topology(chip, found, slices, count)


def _slice(
    chip: ChipName, mesh: str, count: int, shape: str | None, *, whole: bool
) -> str:
    sizes = {size(name): name for name in SLICES[chip]}
    least = count if whole else min(sizes)  # a host
    if shape is None:
        part = max(count, least)
        if part in sizes:
            return sizes[part]
        legal = ", ".join(map(str, sizes))
        raise ValueError(
            f"mesh: {mesh} is {count} chips a slice; slices of {chip} have {legal}"
        )
    if shape not in SLICES[chip]:
        legal = ", ".join(SLICES[chip])
        raise ValueError(f"topology: {chip} has no {shape!r}; it has {legal}")
    if max(count, least) != size(shape):
        raise ValueError(
            f"topology: {shape} has {size(shape)} chips, mesh {mesh} {count} a slice"
        )
    return shape


def _nodes(chip: ChipName, mesh: str, count: int, shape: str | None) -> str:
    if shape is None:
        nodes = -(-count // GPUS_OF_A_NODE)
        if count % nodes:
            raise ValueError(
                f"mesh: {mesh} is {count} GPUs, no multiple of {GPUS_OF_A_NODE};"
                " give --topology NODESxGPUS"
            )
        return f"{nodes}x{count // nodes}"
    found = re.fullmatch(r"[1-9]\d*x([1-8])", shape)
    if found is None:
        raise ValueError(
            f"topology: {shape!r} is not NODESxGPUS of {chip}, as 4x8, with at most"
            f" {GPUS_OF_A_NODE} GPUs"
        )
    if size(shape) != count:
        raise ValueError(
            f"topology: {shape} has {size(shape)} GPUs, mesh {mesh} {count}"
        )
    return shape


def size(shape: str) -> int:
    """Counts the chips of a shape, as 4x8."""
    return math.prod(int(n) for n in shape.split("x"))
