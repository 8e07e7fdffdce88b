"""A resumable queue of runs, each of which is trained and scored once."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ivon_jax.train.config import TrainConfig
from ivon_jax.train.evaluate import evaluate, evaluation_name
from ivon_jax.train.loop import train
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.registry import predictor_of
from ivon_jax.train.problem import Problem
from ivon_jax.train.runs import run
from ivon_jax.train.sources import Source
from ivon_jax.train.splits import scored_split

Row = dict[str, Any]


class Job(NamedTuple):
    """A run to be trained and scored.

    Attributes:
        name: name of its folder.
        config: the resolved run.
        predictors: predictors to score.
    """

    name: str
    config: TrainConfig
    predictors: tuple[Predictor, ...]


def _complete(job: Job, problem: Problem, root: Path) -> list[Row]:
    """Completes a job, whose folder was checked, and returns its rows."""
    out, config = root / job.name, job.config
    rows = _finished(job, out)
    if rows is None:
        try:
            posterior = train(problem, config, out, resume=True)
        except Interrupted as error:
            raise Interrupted(f"{job.name} {error}", error.signum) from None
        split, steps = scored_split(config.data), config.hyper.steps
        source = Source(config.method, config, problem, posterior, split, steps)
        rows = evaluate(source, job.predictors, out)
    named = {} if job.name == config.method else {"run": job.name}
    return [row | named for row in rows]


def _check(job: Job, problem: Problem, root: Path) -> None:
    """Checks that a job's folder is new, or this job's."""
    out = root / job.name
    run.check_out(out, resume=True)
    if (out / run.CONFIG).exists():
        before = run.describe(*run.read_config(out))
        run.check_same(out, before, run.describe(job.config, problem.run_metadata))


def _finished(job: Job, out: Path) -> list[Row] | None:
    """Reads a job's rows; None unless they are of its last step and its predictors.

    An evaluation of the interrupted run has a file of the same name.
    """
    try:
        found = json.loads((out / evaluation_name(job.predictors)).read_text())
        made = tuple(predictor_of(row) for row in found["rows"])
        done = found["step"] == job.config.hyper.steps and made == job.predictors
    except (OSError, ValueError, KeyError, TypeError):  # none, or to be made anew
        return None
    return found["rows"] if done else None


def run_all(jobs: Sequence[Job], problem: Problem, root: Path) -> dict[str, list[Row]]:
    """Completes jobs one after another.

    An interrupted run is resumed; of one that was scored, the rows are read.

    Args:
        jobs: the jobs.
        problem: the model and the examples, shared by all jobs.
        root: folder of the runs.

    Returns:
        The rows of each job by its name: one for each predictor, with the job's name as
        ``run`` if that is not the method's.

    Raises:
        ValueError: a job's folder holds a run of other settings, before any is trained.
        Interrupted: see `train`; the same call resumes.
    """

    def check() -> None:
        for job in jobs:
            _check(job, problem, root)

    on_first_process(check)
    return {job.name: _complete(job, problem, root) for job in jobs}
