"""The process that the chips' compilers run in; see `compiler`."""

import json
import os
import re
import sys
from typing import Any

import jax

from ivon_jax.errors import one_line
from ivon_jax.models.families import with_outputs
from ivon_jax.models.pretrained import load_config
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.config_json import from_json
from ivon_jax.train.plan.chips import GIB
from ivon_jax.train.plan.compiler import Program
from ivon_jax.train.plan.hlo import program_cost
from ivon_jax.train.plan.kernels import kernel_operations, planned_cudnn
from ivon_jax.train.plan.program import step_shapes, trace_step
from ivon_jax.train.plan.topology import Topology
from ivon_jax.train.pod.runtime import settle
from ivon_jax.train.pod.sharding import make_mesh

UNITS = {"K": 2**10, "M": 2**20, "G": GIB, "T": 2**40}
_EXCEEDS = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM")


def main() -> None:
    """Reads runs from stdin as JSON; writes a line of JSON for each."""
    # Google's library writes to stdout.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    settle()
    request = json.load(sys.stdin)
    for values, topology in request["runs"]:
        try:
            program = _compile(
                from_json(values, TrainConfig),
                Topology(*topology),
                request["seq_length"],
                request["classes"],
            )
            answer: dict[str, Any] = program._asdict()
        except ValueError as error:
            answer = {"error": one_line(error)}
        except Exception as error:
            answer = {"error": f"compiler: {one_line(error)}"}
        print(json.dumps(answer), file=answers)


def _compile(
    config: TrainConfig, topology: Topology, seq_length: int, classes: int | None
) -> Program:
    mesh = make_mesh(config.mesh, topology.devices())
    model_config = load_config(config.model)
    if classes is not None:
        model_config = with_outputs(model_config, classes)
    with planned_cudnn(topology.platform):
        step = step_shapes(config, model_config, topology.platform, seq_length, classes)
        traced = trace_step(step, mesh)
        lowered = traced.lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if found := _EXCEEDS.search(str(error)):
            needs = int(float(found[1]) * UNITS[found[2]])
            return Program(needs, fits=False)
        raise
    sizes = compiled.memory_analysis()
    copied = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    cost = program_cost(compiled.as_text())
    kernels = kernel_operations(traced.jaxpr.jaxpr)
    return Program(
        sizes.peak_memory_in_bytes,
        cost,
        copied,
        kernels=kernels,
        host=sizes.host_temp_size_in_bytes,
    )


if __name__ == "__main__":
    main()
