"""What is evaluated: a run, or an adapter that no run here has trained."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ivon_jax.posterior import Posterior
from ivon_jax.train import run
from ivon_jax.train.adapters import read_settings
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.prepare import Problem, prepare


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        method: its name in the table of results.
        seed: of the posterior samples.
        problem: the model and the examples.
        posterior: of the adapters.
        facts: fingerprints and counts, recorded with the results.
    """

    method: str
    seed: int
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
    posterior = run.read_posterior(directory, best=best)
    problem = prepare(dataclasses.replace(config, mesh=mesh), test=test)
    for name, value in problem.facts.items():
        if facts.get(name) != value and not (test and name.startswith("eval_")):
            raise ValueError(
                f"{directory}: {name} is now {value}, was {facts.get(name)}"
            )
    return Subject(config.method, config.seed, problem, posterior, problem.facts)


def read_adapter(
    adapter: Path, model: str, data: DataConfig, *, base: Any, mesh: str, test: bool
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
    facts = {k: v for k, v in problem.facts.items() if not k.startswith("train_")}
    posterior = Posterior.point(jax.tree.map(jnp.asarray, problem.start))
    return Subject("adapter", config.seed, problem, posterior, facts)
