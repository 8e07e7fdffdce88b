"""Memory, traffic, operations and time of a run, beforehand."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.sharding import AbstractMesh
from jaxtyping import PyTree

from ivon_jax.models.families import Config, with_outputs
from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.plan.chips import CHIPS, SLICES, Chip, CompilerName
from ivon_jax.train.plan.compiler import Program, compile_for_chips, missing
from ivon_jax.train.plan.flops import flops
from ivon_jax.train.plan.hlo import program_cost
from ivon_jax.train.plan.kernels import planned_cudnn
from ivon_jax.train.plan.program import Step, compile_step, placed, step_shapes
from ivon_jax.train.plan.shapes import estimate, shard_bytes
from ivon_jax.train.plan.topology import Topology
from ivon_jax.train.pod.sharding import make_mesh, parse_mesh, shardings
from ivon_jax.train.problem import find_kernel

# The share of its peak that a chip is taken to reach in a kernel of attention: an
# assumption, as its compiler gives no cycles for it.
KERNEL_MFU = 0.4


class Memory(NamedTuple):
    """Bytes on one device; the activations are what the peak holds besides."""

    base: int
    trained: int
    optimizer: int
    activations: int
    peak: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """Cost of one training step.

    Attributes:
        config: the resolved run.
        topology: the chips.
        compiled: whether the chips' own compiler says so; else memory is estimated from
            shapes, and traffic is that of a CPU's program.
        fits: whether the memory suffices.
        memory: memory of one device.
        flops: operations of all devices together.
        traffic: bytes that a device receives, by kind of transfer.
        reads: bytes of the gathered model that a device reads from its memory.
        cycles: of the program's fusions and copies; 0 if they are not known.
        kernels: operations of kernels on one device, which have no cycles.
        host: bytes of activations in the host's memory, of one device; 0 if no chip's
            compiler says so.
        attention: what computes attention, and why.
    """

    config: TrainConfig
    topology: Topology
    compiled: bool
    fits: bool
    memory: Memory
    flops: float
    traffic: dict[str, int]
    reads: float
    cycles: int
    kernels: float
    host: int
    attention: str

    @property
    def chip(self) -> Chip:
        """The accelerator."""
        return CHIPS[self.topology.chip]

    @property
    def rate(self) -> float:
        """Operations a second at the most; of a f32 base on GPUs those of TF32."""
        tf32 = self.config.base == "f32" and self.topology.chip not in SLICES
        return self.chip.flops / (2 if tf32 else 1)

    @property
    def bounds(self) -> dict[str, float]:
        """Seconds of a step if each resource were the only limit."""
        return {
            "compute": self.flops / self.topology.used / self.rate,
            "memory": self.reads / self.chip.bandwidth,
            "network": sum(self.traffic.values()) / self.chip.network,
        }

    @property
    def estimated(self) -> float | None:
        """Seconds of a step by the program's cycles, if they are known."""
        if not self.cycles:
            return None
        kernels = self.kernels / (KERNEL_MFU * self.rate)
        return self.cycles / self.chip.clock + kernels

    @property
    def seconds(self) -> float:
        """The estimated time, else the largest bound."""
        return self.estimated or max(self.bounds.values())


def make_plans(
    runs: Sequence[tuple[TrainConfig, Topology]],
    model_config: Config,
    seq_length: int,
    classes: int | None,
    compiler: CompilerName = "cpu",
) -> Iterator[Plan]:
    """Plans resolved runs of one model on chips that need not exist.

    Args:
        runs: the runs, and their chips.
        model_config: configuration of the model; the chips' compiler reads the one that
            a run's name of the model stands for.
        seq_length: tokens of a prompt, padding included.
        classes: number of label words, or outputs of the head; None for text, of which
            every token is assumed to be learnt.
        compiler: the chips' own, the CPU's, or the chips' where it is installed.

    Yields:
        The plan of each run, as soon as it is made.

    Raises:
        ValueError: a size is out of range, the compiler is missing or refuses, or, with
            the CPU's, JAX has fewer devices than a mesh.
    """
    limit = model_config.max_position_embeddings
    if not 0 < seq_length <= limit:
        raise ValueError(f"seq_length: {seq_length} is not in [1, {limit}]")
    if classes is not None:
        model_config = with_outputs(model_config, classes)
    reasons = [reason for _, topology in runs if (reason := missing(topology))]
    if compiler == "chip" and reasons:
        raise ValueError(f"compiler: {reasons[0]}")
    own = compiler != "cpu" and not reasons
    programs = compile_for_chips(runs, seq_length, classes) if own else None
    for i, (config, topology) in enumerate(runs):
        shapes = (model_config, topology.platform, seq_length, classes)
        with planned_cudnn(topology.platform):
            step = step_shapes(config, *shapes)
            peak = 0 if own else estimate(config, *shapes)
        if programs is None:
            # A CPU has no kernels; transfers do not depend on them.
            plain = dataclasses.replace(config, attention="xla")
            here = step_shapes(plain, *shapes) if i == 0 else None
            program = _without_chips(here, peak, config)
        else:
            print(f"compiling {i + 1} of {len(runs)} for {topology}", file=sys.stderr)
            program = next(programs)
        total = flops(config, model_config, seq_length, classes)
        yield _plan(step, config, model_config, topology, program, total, compiled=own)


def _without_chips(step: Step | None, peak: int, config: TrainConfig) -> Program:
    """Returns an estimated peak, with the traffic of a step's program for CPUs."""
    if step is None:
        return Program(peak)
    text = compile_step(step, make_mesh(config.mesh)).as_text()
    return Program(peak, program_cost(text))


def _plan(
    step: Step,
    config: TrainConfig,
    model_config: Config,
    topology: Topology,
    program: Program,
    total: float,
    *,
    compiled: bool,
) -> Plan:
    sizes = parse_mesh(config.mesh)
    placed_step = step.placed(AbstractMesh(tuple(sizes.values()), tuple(sizes)))
    base, state = placed_step.fixed.frozen, placed_step.state
    parts = (shard_bytes(base), shard_bytes(state.params), shard_bytes(state.method))
    rest = max(0, program.peak - sum(parts))
    gradients = config.accumulate * make_method(config).reads
    _, attention = find_kernel(config, model_config, topology.platform)
    passes = (3 if config.remat == "full" else 2) * gradients
    return Plan(
        config,
        topology,
        compiled,
        program.fits and program.peak <= CHIPS[topology.chip].memory,
        Memory(*parts, rest, program.peak),
        total,
        program.cost.traffic(),
        passes * _gathered(base or state.params, sizes),
        program.cost.cycles,
        program.kernels,
        program.host,
        attention,
    )


def _gathered(params: PyTree, sizes: dict[str, int]) -> int:
    """Returns the bytes that a device computes with: fsdp shards are gathered."""
    whole: Any = sizes | {"fsdp": 1}
    mesh = AbstractMesh(tuple(whole.values()), tuple(whole))
    return shard_bytes(placed(params, shardings(params, mesh)))
