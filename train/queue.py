"""A resumable queue of runs, each of which is trained or fitted, and scored, once."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from ivon_jax.kinds import Distribution
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.evaluate import evaluate, evaluation_name
from ivon_jax.train.fit import fit
from ivon_jax.train.fits.base import Fit
from ivon_jax.train.fits.partial import PARTIAL
from ivon_jax.train.loop import Watch, train
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predictors.base import Predictor, Row
from ivon_jax.train.predictors.registry import predictor_of
from ivon_jax.train.problem import Problem
from ivon_jax.train.runs import fitted, identity, run
from ivon_jax.train.sources import Source, source_of
from ivon_jax.train.splits import scored_split
from ivon_jax.train.voting.outputs import Votes

# predictors(posterior, those that a fit is for, None of a trained run): those to score
Predictors = Callable[[Distribution, Sequence[Predictor] | None], Sequence[Predictor]]


class Job(NamedTuple):
    """A run to be trained or fitted, and scored.

    Attributes:
        name: name of its folder.
        config: the resolved run; of a fit, that of its first source.
        predictors: returns the predictors to score, which depend on what a posterior
            allows.
        fit: how to make it of finished runs; None to train it.
        sources: names of the jobs that it is made of.
        votes: how answers are written and voted on, if they are.
        watch: called with the numbers of each training step; see `loop.train`.
    """

    name: str
    config: TrainConfig
    predictors: Predictors
    fit: Fit | None = None
    sources: tuple[str, ...] = ()
    votes: Votes | None = None
    watch: Watch | None = None


def _complete(
    job: Job, problem: Problem, root: Path, test: Problem | None
) -> list[Row]:
    """Completes a job, whose folder was checked, and returns its rows."""
    out = root / job.name
    rows = _finished(job, out, test)
    if rows is None:
        source = _fitted(job, problem, root) if job.fit else _trained(job, problem, out)
        if test:
            source = dataclasses.replace(source, problem=test, split="test")
        own = source.predictors if job.fit else None
        predictors = job.predictors(source.posterior, own)
        rows = evaluate(source, predictors, out, test=test is not None, votes=job.votes)
    # A fitted run is called by its sources, as tfb(adam).
    named = {} if job.fit or job.name == job.config.method else {"run": job.name}
    return [row | named for row in rows]


def _trained(job: Job, problem: Problem, out: Path) -> Source:
    try:
        train(problem, job.config, out, resume=True, watch=job.watch)
    except Interrupted as error:
        raise Interrupted(f"{job.name} {error}", error.signum) from None
    return source_of(out, problem, scored_split(job.config.data))


def _fitted(job: Job, problem: Problem, root: Path) -> Source:
    assert job.fit
    out, split = root / job.name, scored_split(job.config.data)
    if fitted.read(out) is None:
        sources = [source_of(root / name, problem, split) for name in job.sources]
        fit(job.fit, sources, out, resume=True)
    return source_of(out, problem, split)


def _check(job: Job, problem: Problem, root: Path) -> None:
    """Checks that a job's folder is new, or this job's."""
    out = root / job.name
    if job.fit and not (out / run.CONFIG).exists():
        run.check_new(out, beside=(PARTIAL,))
        return
    run.check_out(out, resume=True)
    if (out / run.CONFIG).exists():
        made = fitted.read(out)
        if (made.fit if made else None) != (job.fit.name if job.fit else None):
            raise ValueError(f"{out}: holds another run; choose a new folder")
        before = identity.describe(*run.read_config(out))
        identity.check_same(
            out, before, identity.describe(job.config, problem.run_metadata)
        )


def _finished(job: Job, out: Path, test: Problem | None) -> list[Row] | None:
    """Reads a job's rows; None unless they are of its last step and its predictors.

    An evaluation of the interrupted run has a file of the same name.
    """
    try:
        predictors = own_predictors(job, out)
        of = "-test" * (test is not None)
        of += job.votes.voting.name if job.votes else ""
        name = evaluation_name(predictors, of)
        found = json.loads((out / name).read_text())
        made = [predictor_of(row) for row in found["rows"]]
        done = found["step"] == job.config.hyper.steps and made == list(predictors)
    except (OSError, ValueError, KeyError, TypeError):  # none, or to be made again
        return None
    return found["rows"] if done else None


def own_predictors(job: Job, out: Path) -> Sequence[Predictor]:
    """Returns the predictors that a job's run is scored with.

    Args:
        job: the job.
        out: its folder.

    Raises:
        ValueError: the run is not finished.
    """
    made = fitted.read(out)
    own = made.predictors if made else None
    return job.predictors(run.read_posterior(out)[0], own)


def check_jobs(jobs: Sequence[Job], problem: Problem, root: Path) -> None:
    """Checks that jobs can be completed in their folders.

    Args:
        jobs: the jobs.
        problem: the model and the examples.
        root: folder of the runs.

    Raises:
        ValueError: a job's folder holds something else, or a run of other settings.
    """

    def check_all() -> None:
        for job in jobs:
            _check(job, problem, root)

    on_first_process(check_all)


def run_all(
    jobs: Sequence[Job], problem: Problem, root: Path, test: Problem | None = None
) -> dict[str, list[Row]]:
    """Completes jobs one after another.

    An interrupted run is resumed; of one that was scored, the rows are read.

    Args:
        jobs: the jobs; sources come before fits of them.
        problem: the model and the examples, shared by all jobs.
        root: folder of the runs.
        test: the problem whose split "test" is scored, where fits use the held-out
            examples that would be scored otherwise.

    Returns:
        The rows of each job by its name: one for each predictor, with the job's name as
        ``run`` if that is not the method's.

    Raises:
        ValueError: see `check_jobs`, before any is trained.
        Interrupted: see `train`; the same call resumes.
    """
    check_jobs(jobs, problem, root)
    return {job.name: _complete(job, problem, root, test) for job in jobs}
