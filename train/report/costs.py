"""The cost of runs: time and memory of a step, size of the posterior, time of a fit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ivon_jax.train.config import TrainConfig, make_method
from ivon_jax.train.data.batches import collate
from ivon_jax.train.data.layout import Layout
from ivon_jax.train.keys import Streams
from ivon_jax.train.plan.memory import peak_bytes
from ivon_jax.train.plan.program import placed
from ivon_jax.train.pod.sharding import local_rows, put_batch, shardings
from ivon_jax.train.problem import Problem, train_layout
from ivon_jax.train.queue import Job
from ivon_jax.train.runs import fitted, run
from ivon_jax.train.step import TrainState, first_state, train_step

Cost = dict[str, float]


def costs(jobs: Sequence[Job], problem: Problem, root: Path) -> dict[str, Cost]:
    """Returns the costs of finished jobs by their names.

    Args:
        jobs: the jobs; sources come before fits of them.
        problem: the model and the examples.
        root: folder of the runs.

    Returns:
        ``step_seconds``, the median over steps, which leaves compilation out;
        ``peak_bytes``, see `step_bytes`; ``posterior_bytes``, of the file; and
        ``fit_seconds``. The steps of a fit are those of its sources: their times are
        added, of their memories the largest counts.
    """
    found: dict[str, Cost] = {}
    for job in jobs:
        out = root / job.name
        if made := fitted.read(out):
            before = [found[name] for name in job.sources]
            cost = {
                "step_seconds": sum(one["step_seconds"] for one in before),
                "peak_bytes": max(one["peak_bytes"] for one in before),
                "fit_seconds": made.seconds,
            }
        else:
            cost = {
                "step_seconds": _median_step(out),
                "peak_bytes": step_bytes(problem, job.config),
                "fit_seconds": 0.0,
            }
        size = (out / run.POSTERIOR).stat().st_size
        found[job.name] = cost | {"posterior_bytes": size}
    return found


def _median_step(out: Path) -> float:
    lines = (out / run.METRICS).read_text().splitlines()
    seconds = [json.loads(line)["seconds"] for line in lines]
    return float(np.median(np.diff(seconds, prepend=0.0)))


def step_bytes(problem: Problem, config: TrainConfig) -> int:
    """Returns the peak memory of a training step on one device, by its compiler.

    Base, state and activations of the longest batch. It is no measurement: that of a
    process would be the peak of all it did before.

    Args:
        problem: the model and the examples.
        config: the resolved run.
    """
    method, mesh = make_method(config), problem.mesh
    network = problem.network_with(method.branch)
    whole = NamedSharding(mesh, PartitionSpec())
    streams = jax.jit(Streams.from_seed, static_argnums=0, out_shardings=whole)
    prefix, layout = train_layout(problem, config)
    fixed = problem.fixed(streams(config.seed), prefix)

    def init(key: Any) -> TrainState:
        return first_state(network, method, problem.start, key)

    state: Any = jax.eval_shape(init, fixed.streams.adapters)
    state = placed(state, shardings(state, mesh))
    with jax.set_mesh(mesh):
        step = train_step.lower(
            network,
            method,
            state,
            fixed,
            _longest_batch(problem, len(prefix), layout),
            accumulate=config.accumulate,
        )
        return peak_bytes(step.compile())  # a program as the loop compiles


def _longest_batch(problem: Problem, prefix: int, layout: Layout) -> Any:
    """Returns a batch of the largest shape that training may have."""
    rows = len(local_rows(problem.mesh, layout.rows))
    encoded = problem.splits["train"].without_prefix(prefix)
    shortest = int(np.argmin(encoded.lengths))  # fits into any row
    local = np.full((rows, layout.texts), shortest)
    batch = collate(encoded, local, layout.shapes[-1])
    return put_batch(batch, problem.mesh, layout.rows)
