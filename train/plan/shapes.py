"""Memory of a training step from its traced function, without any compiler."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
from jax.sharding import AbstractMesh
from jaxtyping import PyTree

from ivon_jax.models.attention import Platform
from ivon_jax.models.families import Config
from ivon_jax.models.llama_config import LlamaConfig
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.plan.kernels import bodies
from ivon_jax.train.plan.program import step_shapes
from ivon_jax.train.pod.sharding import parse_mesh

# Operations whose results a compiler keeps; the others are computed inside of what
# reads them. Those of device_put are in the host's memory, or come from there.
STORED = (
    "dot_general",
    "conv",
    "reduce",
    "gather",
    "scatter",
    "cumsum",
    "sort",
    "device_put",
)
KERNELS = ("pallas_call", "dot_product_attention")  # what is inside stays inside


class _Event(NamedTuple):
    """An operation: the buffers that it reads and makes, and the bytes inside it."""

    reads: frozenset[int]
    makes: frozenset[int]
    inside: int


class _Flow:
    """The buffers of one function, in the order of their computation.

    Attributes:
        sizes: bytes of each buffer.
        events: the operations that make buffers.
        shards: number of devices that share a parameter or its gradient, by shape.
    """

    def __init__(self, shards: dict[tuple[int, ...], int]) -> None:
        self.sizes: list[int] = []
        self.events: list[_Event] = []
        self.shards = shards

    def new(self, variable: Any) -> frozenset[int]:
        """Makes the buffer of a variable."""
        parts = self.shards.get(variable.aval.shape, 1)
        self.sizes.append(_bytes(variable.aval) // parts)
        return frozenset({len(self.sizes) - 1})

    def run(self, jaxpr: Any, inputs: Iterable[frozenset[int]]) -> list[frozenset[int]]:
        """Follows a function; returns the buffers that each of its results needs."""
        needs = dict(zip(jaxpr.invars, inputs, strict=True))

        def of(variables: Iterable[Any]) -> list[frozenset[int]]:
            return [
                frozenset() if hasattr(v, "val") else needs.get(v, frozenset())
                for v in variables
            ]

        for eqn in jaxpr.eqns:
            name, reads = eqn.primitive.name, of(eqn.invars)
            every = frozenset().union(*reads)
            inner = bodies(eqn.params)
            loop = name in ("scan", "while", "cond")
            kernel = name.startswith(KERNELS)
            if kernel:
                inner = []
            if inner and not loop:
                results = self.run(inner[-1], reads[-len(inner[-1].invars) :])
            elif loop or kernel or name.startswith(STORED):
                inside = max((self._inside(body, eqn) for body in inner), default=0)
                results = [self.new(variable) for variable in eqn.outvars]
                made = frozenset().union(*results)
                self.events.append(_Event(every, made, inside))
            else:
                results = [every] * len(eqn.outvars)
            needs.update(zip(eqn.outvars, results, strict=True))
        return of(jaxpr.outvars)

    def _inside(self, body: Any, eqn: Any) -> int:
        """Returns the peak of a loop's body, with the kernels that a layer gathers."""
        flow = _Flow(self.shards)
        results = flow.run(body, [frozenset[int]()] * len(body.invars))
        gathered = 0
        if eqn.primitive.name == "scan":
            pairs = zip(eqn.invars, body.invars, strict=True)
            gathered = sum(
                _bytes(one.aval)
                for many, one in pairs
                if many.aval.shape in self.shards and one.aval.shape != many.aval.shape
            )
        return flow.peak(results) + gathered

    def peak(self, results: Iterable[frozenset[int]]) -> int:
        """Returns the most bytes that are alive at a time."""
        last = {buffer: i for i, one in enumerate(self.events) for buffer in one.makes}
        for i, one in enumerate(self.events):
            last.update(dict.fromkeys(one.reads, i))
        last.update(dict.fromkeys(frozenset().union(*results), len(self.events)))
        alive, most = 0, 0
        ends: dict[int, int] = {}
        for buffer, i in last.items():
            ends[i] = ends.get(i, 0) + self.sizes[buffer]
        for i, one in enumerate(self.events):
            alive += sum(self.sizes[buffer] for buffer in one.makes)
            most = max(most, alive + one.inside)
            alive -= ends.get(i, 0)
        return most


def estimate(
    config: TrainConfig,
    model_config: Config,
    platform: Platform,
    seq_length: int,
    classes: int | None,
) -> int:
    """Estimates the peak of a step's memory on one device.

    It is that of the arguments' shards, and of a step with one device's rows and heads:
    products, reductions and what loops stack are kept from their computation to their
    last use, and all else is assumed to be fused.

    Args:
        config: the resolved run.
        model_config: configuration of the model.
        platform: what it runs on, which decides about attention.
        seq_length: tokens of a prompt, padding included.
        classes: see `step_shapes`.

    Returns:
        Bytes.
    """
    sizes = parse_mesh(config.mesh)
    step = step_shapes(config, model_config, platform, seq_length, classes)
    whole = step.placed(_mesh(sizes))
    arguments = shard_bytes((whole.fixed.frozen, whole.state))
    rows = config.hyper.batch_size // sizes["data"] // sizes["fsdp"]  # type: ignore[operator]
    hyper: Any = dataclasses.replace(config.hyper, batch_size=rows)
    part = step_shapes(
        dataclasses.replace(config, hyper=hyper, mesh="data=1"),
        _part(model_config, sizes["tensor"]),
        platform,
        seq_length,
        classes,
    )
    placed = part.placed(_mesh(sizes | {"tensor": 1}))
    shards = {
        leaf.shape: math.prod(leaf.shape) // math.prod(shard)
        for leaf in jax.tree.leaves((placed.fixed.frozen, placed.state))
        if (shard := leaf.sharding.shard_shape(leaf.shape)) != leaf.shape
    }
    jaxpr, flow = part.trace().jaxpr.jaxpr, _Flow(shards)
    results = flow.run(jaxpr, [frozenset[int]()] * len(jaxpr.invars))
    return arguments + flow.peak(results)


def _part(config: Config, parts: int) -> Config:
    """Returns the model of one of the devices that share its heads.

    Where they cannot be shared, and of an encoder, which has no heads of a size of
    their own, it is the whole model: the estimate is too large.
    """
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    if not isinstance(config, LlamaConfig):
        return config
    counts = {name: getattr(config, name) for name in names}
    if any(count % parts for count in counts.values()):
        return config
    split: Any = {name: count // parts for name, count in counts.items()}
    return dataclasses.replace(config, **split)


def _mesh(sizes: dict[str, int]) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.values()), tuple(sizes))


def shard_bytes(tree: PyTree) -> int:
    """Returns the bytes of the leaves' shards on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * _bits(leaf.dtype) // 8
        for leaf in jax.tree.leaves(tree)
    )


def _bits(dtype: Any) -> int:
    return 4 if dtype.name in ("int4", "uint4") else 8 * dtype.itemsize


def _bytes(aval: Any) -> int:
    if aval.memory_space == jax.memory.Space.Host:
        return 0
    return math.prod(aval.shape) * _bits(aval.dtype) // 8
