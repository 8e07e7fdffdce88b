"""Runs in a queue: each is trained and scored once, however often it is interrupted."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ivon_jax.train.config import TrainConfig
from ivon_jax.train.evaluate import Evaluated, evaluate, evaluation_name
from ivon_jax.train.loop import train
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.registry import predictor_of
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
        A row of a results table for each predictor; with the job's name as ``run``
        if it is not the method's.

    Raises:
        ValueError: the job's folder holds a run of other settings.
        Interrupted: see `train`; the same call goes on.
    """
    out, config = root / job.name, job.config
    on_first_process(lambda: _check(job, problem, root))
    rows = _finished(job, out)
    if rows is None:
        try:
            posterior = train(problem, config, out, resume=True)
        except Interrupted as error:
            raise Interrupted(f"{job.name} {error}", error.signum) from None
        split, steps = scored_split(config.data), config.hyper.steps
        evaluated = Evaluated(config.method, config, problem, posterior, split, steps)
        rows = evaluate(evaluated, job.predictors, out)
    named = {} if job.name == config.method else {"run": job.name}
    return [row | named for row in rows]


def _check(job: Job, problem: Problem, root: Path) -> None:
    """Checks that a job's folder is new, or this job's."""
    out = root / job.name
    run.check_out(out, resume=True)
    if (out / run.CONFIG).exists():
        before = run.describe(*run.read_config(out))
        run.check_same(out, before, run.describe(job.config, problem.facts))


def _finished(job: Job, out: Path) -> list[Row] | None:
    """Reads a job's rows; None unless they are of its last step and its predictors.

    Whoever evaluated the run while it was interrupted left a file of the same name.
    """
    try:
        found = json.loads((out / evaluation_name(job.predictors)).read_text())
        made = tuple(predictor_of(row) for row in found["rows"])
        done = found["step"] == job.config.hyper.steps and made == job.predictors
    except (OSError, ValueError, KeyError, TypeError):  # none, or to be made anew
        return None
    return found["rows"] if done else None


def run_all(jobs: Sequence[Job], problem: Problem, root: Path) -> dict[str, list[Row]]:
    """Brings jobs to their ends, one after another; see `ensure`.

    Returns:
        The rows of each job by its name.

    Raises:
        ValueError: a job's folder holds anything else, before any is trained.
        Interrupted: see `ensure`.
    """

    def check() -> None:
        for job in jobs:
            _check(job, problem, root)

    on_first_process(check)
    return {job.name: ensure(job, problem, root) for job in jobs}
