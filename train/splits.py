"""The examples of a run, by split."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ivon_jax.errors import prefixed
from ivon_jax.train.config import DataConfig, RunConfig
from ivon_jax.train.data.examples import (
    data_folder,
    fingerprint,
    load_examples,
    subsample,
    validation_split,
)
from ivon_jax.train.data.task import Example, Task
from ivon_jax.train.tasks.custom import custom_task
from ivon_jax.train.tasks.registry import get_task

# The evaluation examples must not depend on the run's seed.
EVAL_SEED = 0
AnyRun = TypeVar("AnyRun", bound=RunConfig)


def find_task(data: DataConfig) -> Task:
    """Looks up the task, or builds the user's own.

    Raises:
        ValueError: unknown task, or options that do not go together.
    """
    space = {"auto": None, "yes": True, "no": False}[data.leading_space]
    if data.task != "custom":
        task = get_task(data.task, data.prompt_style)
        if space is not None:
            task = dataclasses.replace(task, leading_space=space)
        for name in ("train_file", "eval_file", "prompt", "labels"):
            if getattr(data, name):
                raise ValueError(f"{name}: only with --task custom")
        return task
    for name in ("train_file", "eval_file", "prompt", "labels"):
        if not getattr(data, name):
            raise ValueError(f"{name}: needed with --task custom")
    if data.data_dir:
        raise ValueError("data_dir: not with --task custom, which has its own files")
    assert data.prompt is not None
    return custom_task(data.prompt, data.labels, leading_space=space)


def settled(config: AnyRun, task: Task) -> AnyRun:
    """Replaces "auto" by the decision of `load_model` about the task.

    Args:
        config: the run.
        task: the problem's task.
    """
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


def find_examples(
    task: Task, data: DataConfig, seed: int, splits: Collection[str]
) -> dict[str, list[Example]]:
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
    sources = {
        "data_dir": data_folder(data.data_dir),
        "train_file": data.train_file,
        "eval_file": data.eval_file,
    }
    found = {}
    if {"train", "validation"} & set(splits):
        with _held_out_of("train" not in splits):
            train = load_examples(task, "train", **sources)
        if (n := data.train_examples) is not None:
            with prefixed("train_examples"):
                train = subsample(train, n, seed, balanced=task.balanced)
        if (n := data.validation_examples) is not None:
            with prefixed("validation_examples"):
                train, found["validation"] = validation_split(train, n, seed)
        found["train"] = train
    if "test" in splits:
        found["test"] = load_examples(task, "eval", **sources)
    scored = "test" if "test" in splits else "validation"
    if (n := data.eval_examples) is not None and scored in found:
        with prefixed("eval_examples"):
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


def example_metadata(examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
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
