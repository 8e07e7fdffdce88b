"""The examples of a run, by split."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.errors import prefixed
from ivon_jax.train.config import DataConfig, RunConfig
from ivon_jax.train.data.examples import (
    data_folder,
    fingerprint,
    load_examples,
    subsample,
    validation_split,
)
from ivon_jax.train.data.task import AnyExample, Source, Task
from ivon_jax.train.tasks.custom import custom_task
from ivon_jax.train.tasks.registry import get_task
from ivon_jax.train.tasks.text import text_task

# The evaluation examples must not depend on the run's seed.
EVAL_SEED = 0
DEFAULT_DATA = DataConfig()
# Options of the tasks of one's own data, and of every text task.
ROWS = ("train_file", "eval_file", "dataset", "dataset_splits", "streaming")
OWN = {
    "custom": (*ROWS, "prompt", "labels", "label_field"),
    "text": (*ROWS, "columns"),
}
TEXT = ("learn", "max_length", "too_long")
AnyRun = TypeVar("AnyRun", bound=RunConfig)


def find_task(data: DataConfig) -> Task:
    """Looks up the task, or builds the user's own.

    Raises:
        ValueError: unknown task, or options that do not go together.
    """
    known = None if data.task in OWN else get_task(data.task, data.prompt_style)
    _check_owners(data)
    given = {
        name for name in TEXT if getattr(data, name) != getattr(DEFAULT_DATA, name)
    }
    if given and not (data.task == "text" or (known and known.exchange)):
        raise ValueError(f"{min(given)}: only with a text task, not {data.task}")
    space = {"auto": None, "yes": True, "no": False}[data.leading_space]
    if data.task == "custom":
        assert data.prompt is not None
        return custom_task(
            data.prompt,
            data.labels,
            label_field=data.label_field,
            leading_space=space,
            source=_hub_source(data),
        )
    task = known or text_task(data.columns, _hub_source(data))
    if task.exchange and space is not None:
        raise ValueError(f"leading_space: {task.name} has no label words")
    if task.exchange:
        drop = data.too_long == "drop"
        return dataclasses.replace(
            task, learn=data.learn, max_length=data.max_length, drop_long=drop
        )
    return task if space is None else dataclasses.replace(task, leading_space=space)


def _check_owners(data: DataConfig) -> None:
    """Checks that options and kind of task go together."""
    for name in dict.fromkeys(name for names in OWN.values() for name in names):
        owners = [kind for kind, names in OWN.items() if name in names]
        given = getattr(data, name) != getattr(DEFAULT_DATA, name)
        if given and data.task not in owners:
            raise ValueError(f"{name}: only with --task {' or '.join(owners)}")
    files = () if data.dataset else ("train_file", "eval_file")
    for name in (*files, "prompt", "labels") if data.task == "custom" else ():
        if not getattr(data, name):
            other = " without --dataset" if name in files else ""
            raise ValueError(f"{name}: needed with --task custom{other}")
    if data.task in OWN and bool(data.train_file) == bool(data.dataset):
        raise ValueError(
            f"train_file: --task {data.task} needs it or --dataset, not both"
        )
    if data.dataset and data.eval_file:
        raise ValueError("eval_file: not with --dataset, which has its own splits")
    if data.streaming and not data.dataset:
        raise ValueError("streaming: only with --dataset")
    if data.task in OWN and data.data_dir:
        raise ValueError(
            f"data_dir: not with --task {data.task}, which has its own files"
        )
    if data.task in OWN and data.prompt_style != DEFAULT_DATA.prompt_style:
        raise ValueError(f"prompt_style: not with --task {data.task}")
    if data.max_length is not None:
        check("max_length", data.max_length, AT_LEAST_ONE)


def _hub_source(data: DataConfig) -> Source | None:
    """Returns the data set of the hub that is to be read, if any."""
    if data.dataset is None:
        return None
    name, _, part = data.dataset.partition(":")
    return Source(
        name, part or None, "train", "eval", *data.dataset_splits, data.streaming
    )


def settled(config: AnyRun, task: Task) -> AnyRun:
    """Replaces "auto" by the decision of `load_model` about the task.

    Args:
        config: the run.
        task: the problem's task.
    """
    if task.exchange:
        return config
    space: Any = "yes" if task.leading_space else "no"
    data = dataclasses.replace(config.data, leading_space=space)
    return dataclasses.replace(config, data=data)


def scored_split(data: DataConfig, *, test: bool = False) -> str:
    """Returns the name of the split that a run is scored on.

    Args:
        data: the data options.
        test: whether to score the task's own evaluation examples even if training
            examples are held out for validation.
    """
    return "test" if test or data.validation_examples is None else "validation"


def run_splits(config: RunConfig) -> tuple[str, ...]:
    """Returns the names of the splits that a run reads: to train on, and to score.

    Raises:
        ValueError: it is to be scored in training, and has no examples for it.
    """
    data, scored = config.data, scored_split(config.data)
    if (
        data.task == "text"
        and scored == "test"
        and not (data.eval_file or data.dataset)
    ):
        if config.eval_steps:
            raise ValueError(
                "eval_steps: needs --eval-file or --validation-examples to score"
            )
        return ("train",)
    return ("train", scored)


def find_examples(
    task: Task, data: DataConfig, seed: int, splits: Collection[str]
) -> dict[str, list[AnyExample]]:
    """Loads and draws examples.

    Args:
        task: the task.
        data: the data options.
        seed: seed of the draws from the training examples.
        splits: among "train", "validation" (held-out training examples) and "test" (the
            task's evaluation examples). Files of other splits are not read.

    Returns:
        The examples of each split.

    Raises:
        ValueError: missing or malformed data, fewer examples than asked for, or a
            seed out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed: {seed} is not in [0, 2^32)")
    sources: dict[str, Any] = {
        "data_dir": None if data.task in OWN else data_folder(data.data_dir),
        "train_file": data.train_file,
        "eval_file": data.eval_file,
    }
    found = {}
    if {"train", "validation"} & set(splits):
        with _held_out_of("train" not in splits):
            limit = data.train_examples if data.streaming else None
            train = load_examples(task, "train", **sources, limit=limit)
        if (n := data.train_examples) is not None:
            with prefixed("train_examples"):
                train = subsample(train, n, seed, balanced=task.balanced)
        if (n := data.validation_examples) is not None:
            with prefixed("validation_examples"):
                train, found["validation"] = validation_split(train, n, seed)
        found["train"] = train
    if "test" in splits:
        limit = data.eval_examples if data.streaming else None
        found["test"] = load_examples(task, "eval", **sources, limit=limit)
    scored = "test" if "test" in splits else "validation"
    if (n := data.eval_examples) is not None and scored in found:
        held_out = ", of those held out" if scored == "validation" else ""
        with prefixed(f"eval_examples{held_out}"):
            found[scored] = subsample(
                found[scored], n, EVAL_SEED, balanced=task.balanced
            )
    return {name: found[name] for name in splits}


@contextlib.contextmanager
def _held_out_of(only: bool) -> Iterator[None]:
    """Explains an error of training data that is read for held-out examples only."""
    try:
        yield
    except ValueError as error:
        if not only:
            raise
        raise ValueError(
            f"validation_examples: were held out of the training data: {error}"
        ) from None


def example_metadata(examples: Mapping[str, Sequence[AnyExample]]) -> dict[str, Any]:
    """Returns counts and fingerprints of examples, as recorded by a run.

    The scored split, which is the last one, is called ``eval``.
    """
    names = {name: name if name == "train" else "eval" for name in examples}
    if len(set(names.values())) < len(names):  # both to fit on and to score
        names["validation"] = "validation"
    counts = {f"{names[k]}_examples": len(part) for k, part in examples.items()}
    prints = {
        f"{names[k]}_fingerprint": fingerprint(part) for k, part in examples.items()
    }
    return counts | prints
