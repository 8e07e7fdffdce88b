"""Evaluation of a run or a PEFT adapter, to rows and files."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.kinds import Distribution
from ivon_jax.models.peft_io import read_settings
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import BaseName, DataConfig, TrainConfig
from ivon_jax.train.config_json import to_json
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.keys import Streams
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predict import predict, score
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.predictors.linearised import Linearised
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.predictors.temperature import Scaled, bound, scaled
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.runs import run, status
from ivon_jax.train.runs.progress import say
from ivon_jax.train.splits import (
    example_metadata,
    find_examples,
    scored_split,
    settled,
)


class Wanted(NamedTuple):
    """The predictors to evaluate, as options of the command line.

    Attributes:
        samples: posterior samples to average; None for 10, or for all there are.
        tau: temperature of the samples.
        prune: share of entries set to zero.
        dropout_samples: dropout masks to average; 0 for none.
        temperature: whether to scale each predictor too, by a temperature fitted on
            the held-out training examples.
        linearised: the predictor of the linearised model, if it is wanted.
    """

    samples: int | None = None
    tau: float = 1.0
    prune: float = 0.0
    dropout_samples: int = 0
    temperature: bool = False
    linearised: Linearised | None = None

    def predictors(self, size: int | None = None, *, spread: bool) -> list[Predictor]:
        """Returns the predictors without temperature scaling, which must be fitted.

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
        if self.linearised:
            found.append(self.linearised)
        return found


class AdapterSource(NamedTuple):
    """A PEFT adapter to evaluate instead of a run; all defaults with a run.

    Attributes:
        adapter: its folder.
        model: its base model.
        data: the data options.
        base: number format of the base, as in `TrainConfig`.
        out: new folder for the results.
    """

    adapter: Path | None = None
    model: str | None = None
    data: DataConfig = DataConfig()
    base: BaseName = "f32"
    out: Path | None = None

    def options(self) -> dict[str, Any]:
        """Returns the values that belong to an adapter only, by option."""
        own = {"model": self.model, "out": self.out, "base": self.base}
        return own | vars(self.data)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """A run or an adapter, loaded for evaluation.

    Attributes:
        method: name in the table of results.
        config: the run's configuration; its seed draws posterior samples.
        problem: the model and the examples.
        posterior: posterior of the trained parameters.
        split: name of the split that is scored.
        step: training step of the posterior, if known.
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
    """Loads a run, its model and the examples to score, without training data.

    Args:
        directory: the run's folder.
        mesh: devices to split the base over.
        wanted: the predictors that will be evaluated.
        best: see `run.read_posterior`.
        test: see `scored_split`.

    Returns:
        The run.

    Raises:
        ValueError: the folder is no run, or its model or examples have changed.
    """
    config, recorded = run.read_config(directory)
    status.read(directory)  # a damaged one is refused before the work, not after it
    posterior, metadata = run.read_posterior(directory, best=best)
    step = int(metadata["step"]) if "step" in metadata else None
    split = scored_split(config.data, test=test)
    splits = [split]
    if wanted.temperature:
        if split != "test" or config.data.validation_examples is None:
            raise ValueError(
                "temperature: is fitted on held-out training examples and scored on"
                " others; needs a run with --validation-examples, and --test"
            )
        splits = ["validation", split]
    problem = prepare(dataclasses.replace(config, mesh=mesh), splits)
    if wanted.temperature:  # held-out examples must not have been trained on
        examples = find_examples(problem.task, config.data, config.seed, ["train"])
        _check_unchanged(directory, example_metadata(examples), recorded)
    unrecorded: tuple[str, ...] = ("validation_",)
    if split != scored_split(config.data):  # the run recorded another split
        unrecorded += ("eval_",)
    now = {k: v for k, v in problem.metadata.items() if not k.startswith(unrecorded)}
    _check_unchanged(directory, now, recorded)
    return Evaluated(config.method, config, problem, posterior, split, step)


def _check_unchanged(
    directory: Path, now: Mapping[str, Any], recorded: Mapping[str, Any]
) -> None:
    """Checks model and examples against those that the run recorded."""
    for name, value in now.items():
        if recorded.get(name) != value:
            raise ValueError(
                f"{directory}: {name} is now {value}, was {recorded.get(name)}"
            )


def read_adapter(source: AdapterSource, mesh: str, *, test: bool) -> Evaluated:
    """Loads a PEFT adapter, a point without a posterior.

    Args:
        source: the adapter, with its model and data.
        mesh: devices to split the base over.
        test: see `scored_split`.

    Returns:
        The adapter, with its model and the examples.

    Raises:
        ValueError: anything wrong with adapter, model or data, or their fit.
    """
    assert source.adapter and source.model
    data = source.data
    if data.train_file is None:  # required of a custom task, but not read here
        data = dataclasses.replace(data, train_file=data.eval_file)
    config = TrainConfig(
        source.model,
        data=data,
        lora=read_settings(source.adapter),
        mesh=mesh,
        base=source.base,
        adapter=source.adapter,
    )
    split = scored_split(data, test=test)
    problem = prepare(config, [split])
    config = settled(config, problem.task)
    posterior = Posterior.point(jax.tree.map(jnp.asarray, problem.start))
    return Evaluated("adapter", config, problem, posterior, split)


def predictors_for(
    evaluated: Evaluated, wanted: Wanted, chunk_size: int = 1
) -> list[Predictor]:
    """Returns the predictors that the posterior allows.

    Args:
        evaluated: the run or adapter.
        wanted: the options.
        chunk_size: draws at a time, used where a temperature is fitted.

    Raises:
        ValueError: a number is out of range, or the task cannot be scaled.
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
    found = _predict(evaluated, held_out, predictor, chunk_size)
    fitted = scaled(predictor, found, held_out.labels)
    on_first_process(lambda: _report_bound(fitted, len(held_out)))
    return fitted


def _predict(
    evaluated: Evaluated, encoded: Encoded, predictor: Predictor, chunk_size: int
) -> Float[np.ndarray, "_ n c"]:
    """Predicts a split with the run's own random streams."""
    return predict(
        evaluated.problem,
        encoded,
        evaluated.posterior,
        predictor,
        Streams.from_seed(evaluated.config.seed),
        chunk_size=chunk_size,
    )


def _report_bound(fitted: Scaled, count: int) -> None:
    """Prints a note if the fit ended at a bound, where no temperature is best."""
    side = bound(fitted.temperature)
    if not side:
        return
    why = "all correct" if side < 0 else "worse than chance"
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
    """Predicts and scores, and writes both to files named by the settings.

    Args:
        evaluated: the run or adapter.
        predictors: the predictors.
        out: folder to write into.
        best: whether the posterior is the best state of its run.
        test: whether the task's own evaluation examples are scored.
        chunk_size: draws at a time.

    Returns:
        A row of a results table for each predictor.

    Raises:
        ValueError: a predictor cannot use the posterior, or a prediction is not
            finite.
    """
    problem, encoded = evaluated.problem, evaluated.problem.splits[evaluated.split]
    predictions: dict[Predictor, Float[np.ndarray, "_ n c"]] = {}
    for predictor in predictors:
        longer = next((p for p in predictions if predictor.starts(p)), None)
        predictions[predictor] = (
            _predict(evaluated, encoded, predictor, chunk_size)
            if longer is None
            else predictions[longer][: predictor.passes]
        )
    rows = [
        score(problem, evaluated.method, predictor, values, encoded)
        for predictor, values in predictions.items()
    ]
    suffix = "-best" * best + "-test" * test
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
        for predictor, values_of in predictions.items():
            name = predictor.name + suffix
            run.write_predictions(out, name, answer, values_of, labels)
        # Named by the last row, whose settings are also those of the others.
        run.write_json(out / evaluation_name(predictors, suffix), values)
        status.evaluated(out)

    on_first_process(write)
    return rows


def evaluate_folder(
    directory: Path | None,
    source: AdapterSource,
    wanted: Wanted,
    mesh: str,
    *,
    chunk_size: int = 1,
    best: bool = False,
    test: bool = False,
) -> list[dict[str, Any]]:
    """Evaluates a run's folder, or an adapter.

    Args:
        directory: the run's folder; None for an adapter.
        source: the adapter; unset for a run.
        wanted: the predictors to evaluate.
        mesh: devices to split the base over.
        chunk_size: draws at a time.
        best: see `run.read_posterior`.
        test: see `scored_split`.

    Returns:
        A row of a results table for each predictor.

    Raises:
        ValueError: an option is out of range, missing or not applicable; or see
            `read_run`, `read_adapter`, `predictors_for` and `evaluate`.
    """
    # Everything that can be checked is checked before the model is loaded.
    check("chunk_size", chunk_size, AT_LEAST_ONE)
    wanted.predictors(spread=True)
    if (directory is None) == (source.adapter is None):
        raise ValueError("directory: name a run, or an adapter with --adapter")
    if directory:
        defaults = AdapterSource().options()
        for name, value in source.options().items():
            if value != defaults[name]:
                raise ValueError(f"{name}: only with --adapter; a run has its own")
        evaluated = read_run(directory, mesh, wanted, best=best, test=test)
        out = directory
    else:
        if not (source.model and source.out) or best or wanted.temperature:
            raise ValueError(
                "adapter: needs --model and --out, and has no --best or --temperature"
            )
        run.check_new(source.out)
        evaluated = read_adapter(source, mesh, test=test)
        out = source.out
    predictors = predictors_for(evaluated, wanted, chunk_size)
    return evaluate(
        evaluated, predictors, out, best=best, test=test, chunk_size=chunk_size
    )


def evaluation_name(predictors: Sequence[Predictor], of: str = "") -> str:
    """Returns the name of the file that holds the predictors' rows."""
    return f"evaluation-{predictors[-1].name}{of}.json"
