"""Methods compared on the same adapters, batches and examples."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.ensemble import average
from ivon_jax.files import write_bytes
from ivon_jax.train.config import CompareConfig, TrainConfig, resolve
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.pod.processes import check_shared, on_first_process
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.point import Point
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.queue import Job, Row, run_all
from ivon_jax.train.report import figures, tables
from ivon_jax.train.runs import run
from ivon_jax.train.splits import find_task, scored_split, settled

# Fields of a row in ``results.json``; metrics as far as the task has them.
ROW = ("method", "predict", "samples", "tau", "prune", "point", *tables.COLUMNS)


def compare(config: CompareConfig, out: Path, resume: bool = False) -> dict[str, Any]:
    """Trains, evaluates and reports methods.

    Args:
        config: the comparison.
        out: folder for ``results.json``, ``metrics.jsonl``, ``report.md``, figures,
            and a run folder for each method.
        resume: continue the comparison in the folder, if there is one.

    Returns:
        The contents of ``results.json``.

    Raises:
        ValueError: illegal input, before anything is trained or written; or the folder
            holds another comparison.
        Interrupted: SIGINT or SIGTERM was received in training; see `loop.train`.
    """
    task = find_task(config.data)
    if not task.label_words:
        raise ValueError(f"task: {task.name} has no classes to compare calibration on")
    # Twice: names and values are checked before the model is loaded.
    jobs_of(config, task.preset, num_examples=1)
    on_first_process(lambda: run.check_out(out, resume=resume))
    problem = prepare(next(iter(config.runs().values())))
    config = settled(config, problem.task)
    jobs = jobs_of(config, task.preset, len(problem.splits["train"]))
    on_first_process(
        lambda: run.start(out, config, problem.run_metadata, resume=resume)
    )
    check_shared(out / run.CONFIG)
    rows = run_all(jobs, problem, out)
    results = _results(config, jobs, rows, problem, out)
    on_first_process(lambda: _write_report(out, results, jobs, problem))
    return results


def jobs_of(config: CompareConfig, preset: str, num_examples: int) -> list[Job]:
    """Lists the runs of a comparison, on the same batches.

    Args:
        config: the comparison.
        preset: the task's preset.
        num_examples: size of the training set.

    Raises:
        ValueError: a method is named twice, the batches differ, or a value is out of
            range.
    """
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise ValueError(
            f"methods: {' '.join(config.methods)} are not different methods of"
            f" {', '.join(METHODS)}"
        )
    check("samples", config.samples, AT_LEAST_ONE)
    check("sweep_samples", config.sweep_samples, AT_LEAST_ONE)
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
    return [Job(name, run, _predictors(config, run)) for name, run in runs.items()]


def _predictors(config: CompareConfig, run: TrainConfig) -> tuple[Predictor, ...]:
    """Returns the mean, other points, samples, and the sweeps over tau and pruning.

    All samples share the key, hence the samples' noise, and one compiled program.
    """
    if not METHODS[run.method].spread:
        return (Mean(), *map(Point, METHODS[run.method].points))
    points = [Samples(config.sweep_samples, tau=tau) for tau in config.taus]
    points += [Samples(config.sweep_samples, prune=prune) for prune in config.prunes]
    return tuple(dict.fromkeys([Mean(), Samples(config.samples), *points]))


def _results(
    config: CompareConfig,
    jobs: list[Job],
    rows: dict[str, list[Row]],
    problem: Problem,
    out: Path,
) -> dict[str, Any]:
    """Collects the rows: first those of the main comparison, then the sweep's."""
    ordered = [row for job in jobs for row in rows[job.name][:2]]
    ordered += [row for job in jobs for row in rows[job.name][2:]]
    copied = ("task", "model", "train_examples", "eval_examples")
    return {
        **{name: problem.metadata[name] for name in copied},
        "seed": config.seed,
        "steps": jobs[0].config.hyper.steps,
        "rows": [{k: row[k] for k in ROW if k in row} for row in ordered],
        "seconds": {job.name: _log(out, job)[-1]["seconds"] for job in jobs},
        "versions": run.versions(),
    }


def _log(out: Path, job: Job) -> list[dict[str, Any]]:
    """Reads the lines of a run's metrics."""
    lines = (out / job.name / run.METRICS).read_text().splitlines()
    return [json.loads(line) for line in lines]


def _write_report(
    out: Path, results: dict[str, Any], jobs: list[Job], problem: Problem
) -> None:
    run.write_json(out / "results.json", results)
    logs = {job.name: _log(out, job) for job in jobs}
    lines = [{"method": name, **line} for name in logs for line in logs[name]]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_bytes(out / run.METRICS, text.encode())
    labels = problem.splits[scored_split(jobs[0].config.data)].labels
    figures.training_curves(out / "training.png", logs)
    figures.reliability(out / "reliability.png", _main_predictions(out, jobs), labels)
    figures.trade_off(out / "trade_off.png", results["rows"])
    write_bytes(out / "report.md", _report(results, jobs).encode())


def _main_predictions(
    out: Path, jobs: list[Job]
) -> dict[str, Float[np.ndarray, "n c"]]:
    """Reads the predictions of the main comparison, averaged, by the row's label."""
    found = {}
    for job in jobs:
        for predictor in job.predictors[:2]:
            predictions = run.read_predictions(out / job.name, predictor.name)
            found[tables.label(predictor.row(job.name))] = np.asarray(
                average(jnp.asarray(predictions))
            )
    return found


def _report(results: dict[str, Any], jobs: list[Job]) -> str:
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in results["seconds"].items())
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    return f"""# {results["task"]}: {", ".join(job.name for job in jobs)}

{results["model"]}, {results["train_examples"]} training examples, {results["steps"]}
steps, seed {results["seed"]}; {results["eval_examples"]} evaluation examples.

{tables.table(results["rows"])}

ECE with 10 and 15 equal-width bins of the largest probability. Brier is summed over
classes. Training took {seconds}.

![Training loss](training.png)

![Reliability diagrams](reliability.png)

![Accuracy against calibration](trade_off.png)

{versions}
"""
