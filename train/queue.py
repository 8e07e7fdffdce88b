"""Runs in a queue: each is trained and scored once, however often it is interrupted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ivon_jax.train.config import TrainConfig
from ivon_jax.train.evaluate import Evaluated, evaluate, evaluation_name
from ivon_jax.train.loop import train
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.problem import Problem
from ivon_jax.train.runs import run
from ivon_jax.train.splits import scored_split

Row = dict[str, Any]


class Job(NamedTuple):
    """A run to be trained and scored.

    Attributes:
        name: of its folder.
        config: resolved.
        predictors: how it is scored.
    """

    name: str
    config: TrainConfig
    predictors: tuple[Predictor, ...]


def ensure(job: Job, problem: Problem, root: Path) -> list[Row]:
    """Brings a job to its end from wherever it stands, and returns its rows.

    A folder that was interrupted is resumed; one that was scored is only read.

    Args:
        job: what to run.
        problem: the model and the examples, the same for all jobs of a queue.
        root: folder of the runs.

    Returns:
        A row of a results table for each predictor.

    Raises:
        ValueError: the job's folder holds a run of other settings.
        Interrupted: see `train`; the same call goes on.
    """
    out, config = root / job.name, job.config
    done = out / evaluation_name(job.predictors)
    if done.exists():
        old, recorded = run.read_config(out)
        now = run.describe(config, problem.facts)
        run.check_same(out, run.describe(old, recorded), now)
        rows: list[Row] = json.loads(done.read_text())["rows"]
        if len(rows) == len(job.predictors):
            return rows
    try:
        posterior = train(problem, config, out, resume=True)
    except Interrupted as error:
        raise Interrupted(f"{job.name} {error}", error.signum) from None
    split = scored_split(config.data)
    evaluated = Evaluated(config.method, config, problem, posterior, split)
    return evaluate(evaluated, job.predictors, out)


def run_all(jobs: Sequence[Job], problem: Problem, root: Path) -> dict[str, list[Row]]:
    """Brings jobs to their ends, one after another; see `ensure`.

    Returns:
        The rows of each job by its name.
    """
    return {job.name: ensure(job, problem, root) for job in jobs}
