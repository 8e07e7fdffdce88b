"""The command ``ivon-jax plan``."""

import contextlib
import sys
from typing import Annotated

import jax
import tyro

from ivon_jax.models.pretrained import load_config
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.options import unset
from ivon_jax.train.plan.chips import ChipName, CompilerName
from ivon_jax.train.plan.compiler import missing
from ivon_jax.train.plan.plan import Plan, make_plans
from ivon_jax.train.plan.report import report, table
from ivon_jax.train.plan.sweep import Sweep
from ivon_jax.train.plan.topology import find_topology
from ivon_jax.train.pod.sharding import device_count
from ivon_jax.train.splits import find_task


def plan(
    config: Annotated[TrainConfig, tyro.conf.arg(name="")],
    chip: ChipName,
    seq_length: int = 512,
    compiler: CompilerName = "auto",
    topology: Annotated[str | None, unset("SHAPE", "by the mesh's size")] = None,
    slices: int = 1,
    sweep: Sweep = Sweep(),  # noqa: B008
) -> None:
    """Reports the cost of a training step on chips that this machine lacks.

    Takes the options of "ivon-jax train"; no weights and no data are read. A table has
    the variants of --sweep, and names the fastest that fits.

    Args:
        config: the run.
        chip: the accelerator.
        seq_length: tokens of a prompt, padding included.
        compiler: chip, the accelerator's own, of the extra "plan"; cpu, which estimates
            memory from shapes; auto, the accelerator's if it is installed.
        topology: as 4x8, chips along each axis of a TPU's slice, or nodes and GPUs of
            each.
        slices: number of slices of TPUs.
        sweep: variants of the run.

    Raises:
        ValueError: an option is illegal, or the compiler is missing or refuses.
    """
    task = find_task(config.data)
    configs: list[TrainConfig] = []
    for one in sweep.configs(config):
        # The number of examples changes no shape.
        one = resolve(one, task.preset, num_examples=1)
        if one not in configs:
            configs.append(one)
    model_config = load_config(config.model)
    classes = task.answer_outputs
    runs = [(one, find_topology(chip, one.mesh, topology, slices)) for one in configs]
    reason = missing(runs[0][1])
    if compiler == "auto" and reason:
        print(f"compiler: cpu, as {reason}", file=sys.stderr)
    # The plug-in would complain about missing chips; the child loads it itself.
    jax.config.update("jax_platforms", "cpu")
    if compiler == "cpu" or reason:
        with contextlib.suppress(RuntimeError):  # JAX is already initialised
            jax.config.update("jax_num_cpu_devices", device_count(configs[0].mesh))
    plans: list[Plan] = []
    for one_plan in make_plans(runs, model_config, seq_length, classes, compiler):
        if not plans:
            print(report(one_plan), flush=True)
        plans.append(one_plan)
    if len(plans) > 1:
        print(f"\n{table(plans)}")
