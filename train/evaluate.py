"""What is evaluated, a run or an adapter of PEFT, and how its results are written."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ivon_jax.kinds import Distribution
from ivon_jax.models.peft_io import read_settings
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import BaseName, DataConfig, TrainConfig
from ivon_jax.train.config_json import to_json
from ivon_jax.train.keys import Streams
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predict import predict, score
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.predictors.temperature import Scaled, bound, scaled
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.runs import run, status
from ivon_jax.train.runs.progress import say
from ivon_jax.train.splits import (
    example_facts,
    find_examples,
    scored_split,
    settled,
)
from ivon_jax.train.tasks.registry import Task


class Wanted(NamedTuple):
    """How to predict, as the command line says it.

    Attributes:
        samples: posterior samples to average; None for 10, or for all there are.
        tau: their temperature.
        prune: share of entries set to zero.
        dropout_samples: dropout masks to average; 0 for none.
        temperature: whether to scale too, by a temperature fitted on the training
            examples that were held out.
    """

    samples: int | None = None
    tau: float = 1.0
    prune: float = 0.0
    dropout_samples: int = 0
    temperature: bool = False

    def predictors(self, size: int | None = None, *, spread: bool) -> list[Predictor]:
        """Lists the ways to predict, but for a temperature, which is yet to be fitted.

        Args:
            size: number of different draws of the posterior, if there is a limit.
            spread: whether its draws differ.

        Raises:
            ValueError: a number is out of range.
        """
        count = (size or 10) if self.samples is None else self.samples
        found: list[Predictor] = [Mean(self.prune)]
        sampled = Samples(count, self.tau, self.prune)
        if spread:
            found.append(sampled)
        if self.dropout_samples:
            found.append(Dropout(self.dropout_samples))
        return found


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """What is evaluated.

    Attributes:
        method: its name in the table of results.
        config: of the run, or what stands for it; its seed draws posterior samples.
        problem: the model and the examples.
        posterior: of the trained parameters.
        split: the examples that are scored.
        step: of the run that the posterior is of, if it is known.
    """

    method: str
    config: TrainConfig
    problem: Problem
    posterior: Distribution
    split: str
    step: int | None = None


def read_run(
    directory: Path,
    mesh: str,
    wanted: Wanted = Wanted(),  # noqa: B008 -- immutable
    *,
    best: bool = False,
    test: bool = False,
) -> Evaluated:
    """Loads a run, with its model and the examples to score; no training data.

    Args:
        directory: the run's folder.
        mesh: devices to split the base over.
        wanted: how it will be predicted.
        best: see `run.read_posterior`.
        test: see `scored_split`.

    Returns:
        The run.

    Raises:
        ValueError: it is no run, or its model or examples are others now.
    """
    config, recorded = run.read_config(directory)
    posterior, facts = run.read_posterior(directory, best=best)
    step = int(facts["step"]) if "step" in facts else None
    split = scored_split(config.data, test=test)
    splits = [split]
    if wanted.temperature:
        if split != "test" or config.data.validation_examples is None:
            raise ValueError(
                "temperature: is fitted on held-out training examples and judged on"
                " others; needs a run with --validation-examples, and --test"
            )
        splits = ["validation", split]
    problem = prepare(dataclasses.replace(config, mesh=mesh), splits)
    if wanted.temperature:
        _check_training_data(directory, config, problem.task, recorded)
    others = split != scored_split(config.data)
    for name, value in problem.metadata.items():
        known = not name.startswith("validation_")
        if others and name.startswith("eval_"):
            known = False
        if known and recorded.get(name) != value:
            raise ValueError(
                f"{directory}: {name} is now {value}, was {recorded.get(name)}"
            )
    return Evaluated(config.method, config, problem, posterior, split, step)


def _check_training_data(
    directory: Path, config: TrainConfig, task: Task, recorded: Mapping[str, Any]
) -> None:
    """Checks that what is held out now was not trained on."""
    examples = find_examples(task, config.data, config.seed, ["train"])
    for name, value in example_facts(examples).items():
        if recorded.get(name) != value:
            raise ValueError(
                f"{directory}: {name} is now {value}, was {recorded.get(name)}"
            )


def read_adapter(
    adapter: Path,
    model: str,
    data: DataConfig,
    *,
    base: BaseName,
    mesh: str,
    test: bool,
) -> Evaluated:
    """Loads an adapter of PEFT, a point without a posterior.

    Args:
        adapter: its folder.
        model: what it is an adapter of.
        data: which examples.
        base: how the model is kept, as of `TrainConfig`.
        mesh: devices to split it over.
        test: see `scored_split`.

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
    split = scored_split(data, test=test)
    problem = prepare(config, [split])
    config = settled(config, problem.task)
    posterior = Posterior.point(jax.tree.map(jnp.asarray, problem.start))
    return Evaluated("adapter", config, problem, posterior, split)


def predictors_for(
    evaluated: Evaluated, wanted: Wanted, chunk_size: int = 1
) -> list[Predictor]:
    """Lists the ways to predict that the posterior allows.

    Args:
        evaluated: what is evaluated.
        wanted: how.
        chunk_size: draws at a time, where a temperature is fitted.

    Raises:
        ValueError: a number is out of range, or there is nothing to do it with.
    """
    posterior = evaluated.posterior
    found = wanted.predictors(posterior.size, spread=posterior.spread)
    if wanted.temperature:
        found += [_scaled(evaluated, predictor, chunk_size) for predictor in found]
    return found


def _scaled(evaluated: Evaluated, predictor: Predictor, chunk_size: int) -> Scaled:
    """Fits a predictor's temperature on the held-out training examples."""
    problem, held_out = evaluated.problem, evaluated.problem.splits["validation"]
    if problem.objective.answer != "class":
        raise ValueError("temperature: only for classes, the task asks for a number")
    streams = Streams.from_seed(evaluated.config.seed)
    found = predict(
        problem,
        held_out,
        evaluated.posterior,
        predictor,
        streams,
        chunk_size=chunk_size,
    )
    fitted = scaled(predictor, found, held_out.labels)
    on_first_process(lambda: _report_bound(fitted, len(held_out)))
    return fitted


def _report_bound(fitted: Scaled, count: int) -> None:
    """Says so if no temperature is best."""
    side = bound(fitted.temperature)
    if not side:
        return
    why = "all right" if side < 0 else "worse than chance"
    mixed = f", mixed with 1/{count + 1} of the uniform distribution"
    say(
        f"temperature of {fitted.of.name}: predictions of the {count} held-out examples"
        f" are {why}, so that none is best; T is the bound"
        f" {fitted.temperature:.3g}{mixed if fitted.uniform else ''}"
    )


def evaluate(
    evaluated: Evaluated,
    predictors: Sequence[Predictor],
    out: Path,
    *,
    best: bool = False,
    test: bool = False,
    chunk_size: int = 1,
) -> list[dict[str, Any]]:
    """Predicts and scores, and writes both under names that tell how it was done.

    Args:
        evaluated: what is evaluated.
        predictors: the ways to predict.
        out: folder to write into.
        best: whether it is the best state of its run.
        test: whether it is asked the task's own evaluation examples.
        chunk_size: draws at a time.

    Returns:
        A row of a results table for each way.

    Raises:
        ValueError: a predictor cannot use the posterior, or a prediction is not
            finite.
    """
    problem, encoded = evaluated.problem, evaluated.problem.splits[evaluated.split]
    streams = Streams.from_seed(evaluated.config.seed)
    predictions: dict[Predictor, Float[np.ndarray, "_ n c"]] = {}
    for predictor in predictors:
        whole = next((p for p in predictions if predictor.starts(p)), None)
        predictions[predictor] = (
            predict(
                problem,
                encoded,
                evaluated.posterior,
                predictor,
                streams,
                chunk_size=chunk_size,
            )
            if whole is None
            else predictions[whole][: predictor.passes]
        )
    rows = [
        score(problem, evaluated.method, predictor, found, encoded)
        for predictor, found in predictions.items()
    ]
    of = "-best" * best + "-test" * test
    values = {
        "config": to_json(evaluated.config),
        **problem.metadata,
        "best": best,
        "test": test,
        "step": evaluated.step,
        "rows": rows,
        "versions": run.versions(),
    }

    def write() -> None:
        out.mkdir(parents=True, exist_ok=True)
        answer, labels = problem.objective.answer, encoded.labels
        for predictor, found in predictions.items():
            run.write_predictions(out, predictor.name + of, answer, found, labels)
        # Named after the last row, whose settings are the others' too.
        run.write_json(out / evaluation_name(predictors, of), values)
        status.evaluated(out)

    on_first_process(write)
    return rows


def evaluation_name(predictors: Sequence[Predictor], of: str = "") -> str:
    """Names the file of the rows that predictors make."""
    return f"evaluation-{predictors[-1].name}{of}.json"
