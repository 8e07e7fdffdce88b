"""What is evaluated: a run, or an adapter that no run here has trained."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ivon_jax.models.peft_io import read_settings
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import BaseName, DataConfig, TrainConfig, to_json
from ivon_jax.train.evaluate import Prediction, predict, score
from ivon_jax.train.prepare import Problem, prepare, settled
from ivon_jax.train.runs import run
from ivon_jax.train.step import Streams


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        method: its name in the table of results.
        config: of the run, or what stands for it; its seed draws posterior samples.
        problem: the model and the examples.
        posterior: of the adapters.
        facts: fingerprints and counts, recorded with the results.
    """

    method: str
    config: TrainConfig
    problem: Problem
    posterior: Posterior
    facts: dict[str, Any]


def read_run(
    directory: Path, mesh: str, *, best: bool = False, test: bool = False
) -> Subject:
    """Loads a run, with its model and its examples.

    Args:
        directory: the run's folder.
        mesh: devices to split the base over.
        best: see `run.read_posterior`.
        test: see `prepare.find_examples`.

    Returns:
        The run.

    Raises:
        ValueError: it is no run, or its model or examples are others now.
    """
    config, facts = run.read_config(directory)
    posterior, _ = run.read_posterior(directory, best=best)
    problem = prepare(dataclasses.replace(config, mesh=mesh), test=test)
    for name, value in problem.facts.items():
        if facts.get(name) != value and not (test and name.startswith("eval_")):
            raise ValueError(
                f"{directory}: {name} is now {value}, was {facts.get(name)}"
            )
    return Subject(config.method, config, problem, posterior, problem.facts)


def read_adapter(
    adapter: Path,
    model: str,
    data: DataConfig,
    *,
    base: BaseName,
    mesh: str,
    test: bool,
) -> Subject:
    """Loads an adapter of PEFT, a point without a posterior.

    Args:
        adapter: its folder.
        model: what it is an adapter of.
        data: which examples.
        base: how the model is kept, as of `TrainConfig`.
        mesh: devices to split it over.
        test: see `prepare.find_examples`.

    Returns:
        The adapter, with its model and the examples.

    Raises:
        ValueError: anything wrong with adapter, model or data, or their fit.
    """
    if data.train_file is None:  # of a custom task; nobody trains on it
        data = dataclasses.replace(data, train_file=data.eval_file)
    config = TrainConfig(
        model,
        data=data,
        lora=read_settings(adapter),
        mesh=mesh,
        base=base,
        adapter=adapter,
    )
    problem = prepare(config, test=test)
    config = settled(config, problem.task)
    facts = {k: v for k, v in problem.facts.items() if not k.startswith("train_")}
    posterior = Posterior.point(jax.tree.map(jnp.asarray, problem.start))
    return Subject("adapter", config, problem, posterior, facts)


def write_evaluation(
    subject: Subject,
    hows: Sequence[Prediction],
    out: Path,
    *,
    best: bool,
    test: bool,
    chunk_size: int,
) -> list[dict[str, Any]]:
    """Predicts and scores, and writes both under names that tell how it was done.

    Args:
        subject: what is evaluated.
        hows: the ways to predict; without a posterior the first alone is possible.
        out: folder to write into.
        best: whether the subject is the best state of its run.
        test: whether it is asked the task's own evaluation examples.
        chunk_size: posterior samples at a time.

    Returns:
        A row of a results table for each way.
    """
    problem, posterior = subject.problem, subject.posterior
    key = Streams.from_seed(subject.config.seed).ensemble
    labels = problem.eval.labels
    predictions = {
        how: predict(problem, posterior, how, key, chunk_size=chunk_size)
        for how in (hows if posterior.precision else hows[:1])
    }
    _check_finite(predictions)
    rows = [
        score(subject.method, how, predicted, labels, problem.task.metrics)
        for how, predicted in predictions.items()
    ]
    out.mkdir(parents=True, exist_ok=True)
    of = "-best" * best + "-test" * test
    for how, predicted in predictions.items():
        run.write_predictions(out, how.name + of, predicted, labels)
    values = {
        "config": to_json(subject.config),
        **subject.facts,
        "best": best,
        "test": test,
        "rows": rows,
        "versions": run.versions(),
    }
    # Named after the last row, whose settings are the others' too.
    run.write_json(out / f"evaluation-{how.name}{of}.json", values)
    return rows


def _check_finite(predictions: dict[Prediction, Float[np.ndarray, "_ n c"]]) -> None:
    """Checks that there is something to score."""
    for how, predicted in predictions.items():
        bad = int((~np.isfinite(predicted)).any(axis=(0, 2)).sum())
        if bad:
            raise ValueError(
                f"predictions: not finite of {bad} of {predicted.shape[1]} examples"
                f" ({how.name})"
            )
