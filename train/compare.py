"""Methods compared on the same adapters, batches and examples."""

import dataclasses
import functools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.ensemble import average
from ivon_jax.errors import prefixed
from ivon_jax.kinds import Distribution
from ivon_jax.train.command_line import read_options
from ivon_jax.train.config import CompareConfig, TrainConfig, make_method, resolve
from ivon_jax.train.fits.base import Fit
from ivon_jax.train.fits.registry import FITS
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.pod.processes import check_shared, on_first_process
from ivon_jax.train.predictors.base import Predictor, Row
from ivon_jax.train.predictors.registry import predictor_of
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.predictors.wanted import Wanted
from ivon_jax.train.problem import Problem, prepare, with_test
from ivon_jax.train.queue import Job, own_predictors, run_all
from ivon_jax.train.report.comparison import Scored, write_comparison
from ivon_jax.train.report.costs import costs
from ivon_jax.train.runs import run
from ivon_jax.train.sources import Source
from ivon_jax.train.splits import find_task, run_splits, scored_split, settled
from ivon_jax.train.step import first_state
from ivon_jax.train.voting.outputs import find_questions, find_votes


def compare(config: CompareConfig, out: Path, resume: bool = False) -> dict[str, Any]:
    """Trains, fits, evaluates and reports methods.

    Args:
        config: the comparison.
        out: folder for ``results.json``, ``metrics.jsonl``, ``report.md``, figures,
            and a run folder for each method and fit.
        resume: continue the comparison in the folder, if there is one.

    Returns:
        The contents of ``results.json``.

    Raises:
        ValueError: illegal input, before anything is trained or written; or the folder
            holds another comparison, or a run cannot be fitted.
        Interrupted: SIGINT or SIGTERM was received in training; see `loop.train`.
    """
    task = find_task(config.data)
    if task.answer == "number":
        raise ValueError(f"task: {task.name} has no classes to compare calibration on")
    if scored_split(config.data) not in run_splits(config):
        raise ValueError("eval_file: needed, or --validation-examples, to score")
    # Twice: names and values are checked before the model is loaded.
    jobs_of(config, task.preset, num_examples=1)
    on_first_process(lambda: run.check_out(out, resume=resume))
    problem = prepare(next(iter(config.runs().values())))
    config = settled(config, problem.task)
    jobs = jobs_of(config, task.preset, len(problem.splits["train"]))
    jobs = _with_samples(jobs, problem, config.samples)
    # What a fit used is not scored, but the task's own evaluation examples are.
    used = any("validation" in job.fit.splits for job in jobs if job.fit)
    test = with_test(problem, config) if used else None
    split = scored_split(config.data, test=used)
    if votes := jobs[0].votes:
        find_questions(test or problem, config, split, votes.voting)
    on_first_process(
        lambda: run.start(out, config, problem.run_metadata, resume=resume)
    )
    check_shared(out / run.CONFIG)
    found = run_all(jobs, problem, out, test)
    of_jobs = costs(jobs, problem, out)
    scored = [
        one._replace(row=one.row | of_jobs[job.name])
        for job in jobs
        for one in _scored(config, job, found[job.name], out / job.name, test=used)
    ]
    copied = ("task", "model", "train_examples", "eval_examples")
    metadata = (test or problem).metadata
    about = {name: metadata[name] for name in copied} | {
        "seed": config.seed,
        "steps": jobs[0].config.hyper.steps,
    }
    labels = (test or problem).splits[split].labels if task.answer == "class" else None
    trained = [job.name for job in jobs if not job.fit]
    return write_comparison(out, about, trained, scored, labels)


def jobs_of(config: CompareConfig, preset: str, num_examples: int) -> list[Job]:
    """Lists the runs of a comparison, on the same batches, then the fits of them.

    Args:
        config: the comparison.
        preset: the task's preset.
        num_examples: size of the training set.

    Raises:
        ValueError: a method is named twice, the batches differ, a value is out of
            range, or a fit is unknown or lacks what it needs.
    """
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise ValueError(
            f"methods: {' '.join(config.methods)} are not different methods of"
            f" {', '.join(METHODS)}"
        )
    check("samples", config.samples, AT_LEAST_ONE)
    check("sweep_samples", config.sweep_samples, AT_LEAST_ONE)
    _sweep(config, Samples())  # which checks its values
    runs = {k: resolve(v, preset, num_examples) for k, v in config.runs().items()}
    (first, of_first), *others = runs.items()
    for name in ("steps", "batch_size"):
        for other, of_other in others:
            one, two = (getattr(c.hyper, name) for c in (of_first, of_other))
            if one != two:
                raise ValueError(
                    f"{name}: {one} of {first} and {two} of {other} differ; they are"
                    " compared on the same batches"
                )
    predictors = functools.partial(_predictors, config)
    votes = find_votes(find_task(config.data), config.voting, config.samples)
    jobs = [Job(name, run, predictors, votes=votes) for name, run in runs.items()]
    for fit, names in dict.fromkeys(_fits(config)):
        name = f"{fit.name}-{'+'.join(names)}"
        if name in [job.name for job in jobs]:
            raise ValueError(
                f"fit: {fit.name}:{'+'.join(names)} is named twice, with other options"
            )
        jobs.append(Job(name, runs[names[0]], predictors, fit, names, votes))
    return jobs


def _with_samples(jobs: Sequence[Job], problem: Problem, samples: int) -> list[Job]:
    """Checks, by shapes only, that the posteriors have what fits of them need.

    Returns:
        The jobs; fits of one run average the comparison's number of samples, or all
        that the run has, where their options leave it open.
    """
    configs = {job.name: job.config for job in jobs}
    found = []
    for job in jobs:
        sizes = []
        for name in job.sources:
            assert job.fit
            with prefixed(f"fit: {job.fit.name}:{name}"):
                sizes.append(_checked_size(job.fit, configs[name], problem))
        if job.fit and not job.fit.several:
            count = min(samples, sizes[0] or samples)
            job = job._replace(fit=job.fit.averaging(count))
        found.append(job)
    return found


def _checked_size(fit: Fit, config: TrainConfig, problem: Problem) -> int | None:
    method = make_method(config)
    network = problem.network_with(method.branch)

    sizes = []  # known while tracing

    def trace(key: Key[Array, ""]) -> None:
        state = first_state(network, method, problem.start, key)
        posterior = method.posterior(state.params, state.method)
        fit.check(Source(method.name, config, problem, posterior, "train"))
        sizes.append(posterior.size)

    jax.eval_shape(trace, jax.random.key(0))
    return sizes[0]


def _fits(config: CompareConfig) -> Iterator[tuple[Fit, tuple[str, ...]]]:
    """Yields each fit, with the methods whose runs it is made of."""
    for text in config.fit:
        with prefixed(f"fit: {text}"):
            pair, *options = shlex.split(text) or [""]
        name, _, methods = pair.partition(":")
        if name not in FITS:
            raise ValueError(f"fit: {text} is not FIT:METHOD, FIT of {', '.join(FITS)}")
        with prefixed(f"fit: {text}"):
            fit: Fit = read_options(FITS[name], options)
        if "validation" in fit.splits and config.data.validation_examples is None:
            raise ValueError(
                f"fit: {text} uses held-out training examples; needs"
                " --validation-examples"
            )
        every = [(method,) for method in config.methods]
        for names in every if methods == "*" else [tuple(methods.split("+"))]:
            if not set(names) <= set(config.methods):
                raise ValueError(
                    f"fit: {text} is not of methods that are compared,"
                    f" {', '.join(config.methods)}"
                )
            if len(names) > 1 and not fit.several:
                raise ValueError(f"fit: {text} is of several methods, not one")
            yield fit, names


def _main(
    config: CompareConfig, posterior: Distribution, own: Sequence[Predictor] | None
) -> list[Predictor]:
    """Returns the predictors of a fit; of a trained run, its points and samples."""
    if own is not None:
        return list(own)
    count = min(config.samples, posterior.size or config.samples)
    return Wanted(count).predictors(posterior)


def _predictors(
    config: CompareConfig, posterior: Distribution, own: Sequence[Predictor] | None
) -> list[Predictor]:
    """Returns the main predictors, and what the posterior allows of the sweeps.

    All samples share the key, hence the samples' noise, and one compiled program.
    """
    main = _main(config, posterior, own)
    base, *points = _sweep(config, main[-1])
    swept = [x for x in points if x.suits(posterior)]
    # Both curves pass through tau 1, unpruned, with the sweep's number of samples.
    return list(dict.fromkeys([*main, *([base] if swept else []), *swept]))


def _sweep(config: CompareConfig, base: Any) -> list[Predictor]:
    """Returns a predictor as it is swept, then the points over tau and pruning."""
    if not {"tau", "prune"} <= vars(base).keys() or (base.tau, base.prune) != (1, 0):
        return [base]
    if isinstance(base, Samples):
        base = Samples(config.sweep_samples)
    points = [dataclasses.replace(base, tau=tau) for tau in config.taus]
    pruned = [dataclasses.replace(base, prune=prune) for prune in config.prunes]
    return [base, *points, *pruned]


def _scored(
    config: CompareConfig, job: Job, rows: Sequence[Row], folder: Path, *, test: bool
) -> Iterator[Scored]:
    """Yields a job's rows with their predictions, the main ones first."""
    main = own_predictors(
        job._replace(predictors=functools.partial(_main, config)), folder
    )
    for index, row in enumerate(rows):
        predictor = predictor_of(row)
        found, _ = run.read_predictions(folder, predictor.name + "-test" * test)
        log_probs = np.asarray(average(jnp.asarray(found)))
        backward = predictor.backward_passes(log_probs.shape[1])
        row = row | {"passes": predictor.passes + backward}
        yield Scored(row, log_probs, swept=index >= len(main))
