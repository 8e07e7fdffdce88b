"""Finished runs and PEFT adapters, loaded to be evaluated or fitted."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ivon_jax.kinds import Distribution
from ivon_jax.lora import LoraConfig
from ivon_jax.models.peft_io import check_base, load_adapter, read_settings
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import BaseName, DataConfig, TrainConfig
from ivon_jax.train.keys import Streams
from ivon_jax.train.predict import draws
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.runs import fitted, identity, run, status
from ivon_jax.train.runs.fitted import HeldOut
from ivon_jax.train.splits import (
    example_metadata,
    find_examples,
    scored_split,
    settled,
)


class AdapterSource(NamedTuple):
    """PEFT adapters beside runs, or instead of one.

    Attributes:
        adapters: their folders.
        model: without a run: their base model.
        data: without a run: the data options.
        base: without a run: number format of the base, as in `TrainConfig`.
    """

    adapters: Sequence[Path] = ()
    model: str | None = None
    data: DataConfig = DataConfig()
    base: BaseName = "f32"

    @property
    def scored(self) -> DataConfig:
        """The data options where no training examples are read.

        A custom task then needs no file of them.
        """
        if self.data.train_file is not None:
            return self.data
        return dataclasses.replace(self.data, train_file=self.data.eval_file)

    def check(self, *, runs: bool) -> None:
        """Checks that the adapters have a model, their own or that of a run.

        Args:
            runs: whether there are runs.

        Raises:
            ValueError: there is none, or there are two.
        """
        own = {"model": self.model, "base": self.base} | vars(self.data)
        defaults = {"model": None, "base": "f32"} | vars(DataConfig())
        for name, value in own.items():
            if runs and value != defaults[name]:
                raise ValueError(f"{name}: only with --adapter; a run has its own")
        if not runs and self.model is None:
            raise ValueError("model: needed with --adapter")


@dataclasses.dataclass(frozen=True)
class Source:
    """A run or an adapter, with its model and examples.

    Attributes:
        method: name in tables of results.
        config: the run's configuration; its seed draws posterior samples.
        problem: the model and the examples.
        posterior: posterior of the trained parameters.
        split: name of the split that is scored.
        step: training step of the posterior, if known.
        path: the file of the posterior, or folder of the adapter, if there is one.
        predictors: those that a fitted run is for.
        held_out: how its held-out examples were used.
        recorded: the run's metadata; None for those of the problem.
    """

    method: str
    config: TrainConfig
    problem: Problem
    posterior: Distribution
    split: str
    step: int | None = None
    path: Path | None = None
    predictors: Sequence[Predictor] = ()
    held_out: HeldOut = "unseen"
    recorded: Mapping[str, Any] | None = None

    def predict(
        self, split: str, predictors: Sequence[Predictor], chunk_size: int | None = 1
    ) -> dict[Predictor, Float[np.ndarray, "_ n c"]]:
        """Predicts a split with the run's own random streams.

        Draws are computed once for all predictors that use them.

        Args:
            split: name of the split.
            predictors: the predictors.
            chunk_size: draws at a time; None for all.

        Returns:
            Log-probabilities or numbers of each predictor; see `Predictor.finish`.

        Raises:
            ValueError: a predictor cannot use the posterior.
        """
        encoded = self.problem.splits[split]
        streams = Streams.from_seed(self.config.seed)
        drawn: dict[Predictor, Any] = {}
        for base in dict.fromkeys(predictor.base for predictor in predictors):
            longer = next((other for other in drawn if base.starts(other)), None)
            drawn[base] = (
                draws(
                    self.problem,
                    encoded,
                    self.posterior,
                    base,
                    streams,
                    chunk_size=chunk_size,
                )
                if longer is None
                else drawn[longer][: base.passes]
            )
        return {p: p.finish(drawn[p.base]) for p in dict.fromkeys(predictors)}


def read_run(
    directory: Path,
    mesh: str,
    splits: Sequence[str] | None = None,
    *,
    best: bool = False,
    test: bool = False,
) -> Source:
    """Loads a run, its model and examples.

    Args:
        directory: the run's folder.
        mesh: devices to split the base over.
        splits: the examples to load; None for those to score.
        best: see `run.read_posterior`.
        test: see `scored_split`.

    Returns:
        The run.

    Raises:
        ValueError: the folder is no run, its model or examples have changed, or the
            examples must not be used.
    """
    config, recorded = run.read_config(directory)
    # Damaged files are refused before the work, not after it.
    status.read(directory)
    run.read_posterior(directory, best=best)
    made = fitted.read(directory)
    split = scored_split(config.data, test=test)
    if splits is None:
        splits = [split]
        if split == "validation" and made and made.held_out != "unseen":
            raise ValueError(
                f"test: the held-out examples of {directory} were {made.held_out};"
                " score others with --test"
            )
    elif "validation" in splits:
        _check_held_out(directory, config, made)
    # Meshes and kernels are those of this machine.
    here = dataclasses.replace(config, mesh=mesh, attention="auto")
    problem = prepare(here, splits)
    _check_unchanged(directory, problem, config, recorded)
    return source_of(directory, problem, split, best=best)


def source_of(
    directory: Path, problem: Problem, split: str, *, best: bool = False
) -> Source:
    """Reads a run whose model and examples are loaded.

    Args:
        directory: the run's folder.
        problem: the model and the examples.
        split: name of the split to score.
        best: see `run.read_posterior`.

    Raises:
        ValueError: the folder is no run, or damaged.
    """
    config, recorded = run.read_config(directory)
    posterior, metadata = run.read_posterior(directory, best=best)
    source = Source(
        config.method,
        config,
        problem,
        posterior,
        split,
        int(metadata["step"]) if "step" in metadata else None,
        directory / (run.BEST if best else run.POSTERIOR),
        recorded=recorded,
    )
    made = fitted.read(directory)
    if made is None:
        return source
    return dataclasses.replace(
        source,
        method=made.method,
        predictors=made.predictors,
        held_out=made.held_out,
    )


def _check_held_out(
    directory: Path, config: TrainConfig, made: fitted.Record | None
) -> None:
    """Checks that a run has held-out examples that are unknown to its parameters."""
    if config.data.validation_examples is None:
        raise ValueError(
            f"validation_examples: {directory} held out no training examples to fit on"
        )
    if made and made.held_out == "trained on":
        raise ValueError(
            f"validation_examples: those of {directory} were trained on by a member"
        )


def _check_unchanged(
    directory: Path,
    problem: Problem,
    config: TrainConfig,
    recorded: Mapping[str, Any],
) -> None:
    """Checks model and examples against those that the run recorded."""
    # The model's name may be that of another place; it has a fingerprint.
    now = {k: v for k, v in problem.metadata.items() if k != "model"}
    unrecorded = ["validation_"]
    if "tokenizer_fingerprint" not in recorded:  # by an older version
        unrecorded.append("tokenizer_")
    if "test" in problem.splits and scored_split(config.data) == "validation":
        unrecorded.append("eval_")
        if "validation" in problem.splits:
            # Then all of them are read, also beyond `eval_examples`.
            train = find_examples(problem.task, config.data, config.seed, ["train"])
            now = now | example_metadata(train)
    for name, value in now.items():
        if not name.startswith(tuple(unrecorded)) and recorded.get(name) != value:
            raise ValueError(
                f"{directory}: {name} is now {value}, was {recorded.get(name)}"
            )


def read_adapter(
    source: AdapterSource,
    mesh: str,
    splits: Sequence[str] | None = None,
    *,
    test: bool = False,
) -> Source:
    """Loads the first PEFT adapter, a point without a posterior.

    Args:
        source: the adapter, with its model and data.
        mesh: devices to split the base over.
        splits: the examples to load; None for those to score.
        test: see `scored_split`.

    Returns:
        The adapter, with its model and the examples.

    Raises:
        ValueError: anything wrong with adapter, model or data, or their fit.
    """
    assert source.adapters and source.model
    adapter = source.adapters[0]
    trained = {"train", "validation"} & set(splits or ())
    data = source.data if trained else source.scored
    config = TrainConfig(
        source.model,
        data=data,
        lora=read_settings(adapter),
        mesh=mesh,
        base=source.base,
        adapter=adapter,
    )
    if splits is not None and "validation" in splits:
        _check_held_out(adapter, config, None)
    split = scored_split(data, test=test)
    problem = prepare(config, [split] if splits is None else splits)
    config = settled(config, problem.task)
    posterior = Posterior.point(jax.tree.map(jnp.asarray, problem.start))
    return Source("adapter", config, problem, posterior, split, path=adapter)


def _with_scored(source: Source) -> Source:
    """Records the examples that an adapter's fitted run will be scored on."""
    problem, config = source.problem, source.config
    scored = find_examples(problem.task, config.data, config.seed, [source.split])
    recorded = problem.run_metadata | example_metadata(scored)
    return dataclasses.replace(source, recorded=recorded)


def read_sources(
    directories: Sequence[Path],
    adapters: AdapterSource,
    mesh: str,
    splits: Sequence[str],
    *,
    best: bool = False,
) -> list[Source]:
    """Loads runs and adapters of the same base and task, and their model once.

    Args:
        directories: folders of runs.
        adapters: adapters; beside runs, on the first one's model and data.
        mesh: devices to split the base over.
        splits: the examples to load, of the first one.
        best: see `run.read_posterior`.

    Returns:
        The runs, then the adapters.

    Raises:
        ValueError: there are none, they do not go together, or see `read_run` and
            `read_adapter`.
    """
    if not (directories or adapters.adapters):
        raise ValueError("directories: name a run, or an adapter with --adapter")
    adapters.check(runs=bool(directories))
    _check_alike(directories)
    if directories:
        first = read_run(directories[0], mesh, splits, best=best)
        others, more = directories[1:], adapters.adapters
    else:
        first = _with_scored(read_adapter(adapters, mesh, splits))
        others, more = (), adapters.adapters[1:]
    return [
        first,
        *(source_of(x, first.problem, first.split, best=best) for x in others),
        *(_adapter_beside(first, adapter) for adapter in more),
    ]


# What runs must agree in so that their posteriors are of the same parameters, and their
# predictions of the same classes; by name of a run's description.
ALIKE = (
    *("model_fingerprint", "tokenizer_fingerprint", "task", "train", "base"),
    *(f"lora.{field.name}" for field in dataclasses.fields(LoraConfig)),
    *("data.prompt_style", "data.prompt", "data.labels", "data.leading_space"),
)


def _check_alike(directories: Sequence[Path]) -> None:
    """Checks that runs have the same base, adapters and task, before any is loaded."""
    found = [
        identity.describe(*run.read_config(directory)) for directory in directories
    ]
    for directory, described in zip(directories[1:], found[1:], strict=True):
        # An older version did not record all of it.
        for name in [x for x in ALIKE if x in described and x in found[0]]:
            if name != "lora.dropout" and described[name] != found[0][name]:
                raise ValueError(
                    f"{name.rpartition('.')[2]}: {described[name]} of {directory}"
                    f" is not {found[0][name]} of {directories[0]}"
                )


def _adapter_beside(first: Source, adapter: Path) -> Source:
    """Reads another adapter of the same base and layers."""
    if (init := first.config.lora.init) != "default":
        raise ValueError(
            f"adapter {adapter}: is of the whole base, and that of the run lacks what"
            f" its adapters started with (--init {init})"
        )
    problem = first.problem
    names = ("model", "model_fingerprint")
    check_base(adapter, *(problem.metadata[name] for name in names))
    params = load_adapter(adapter, problem.shapes, first.config.lora)
    posterior = Posterior.point(jax.tree.map(jnp.asarray, params))
    return Source(
        "adapter", first.config, problem, posterior, first.split, path=adapter
    )
