"""Examples of another distribution, of which a model should be less sure.

Shapes: s draws, n own and m foreign examples, c classes.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ivon_jax import metrics
from ivon_jax.ensemble import average
from ivon_jax.metrics import ood
from ivon_jax.train.config import DataConfig
from ivon_jax.train.data.examples import (
    converted,
    data_folder,
    load_examples,
    subsample,
)
from ivon_jax.train.data.rows import read_rows
from ivon_jax.train.data.task import Task
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.sources import Source
from ivon_jax.train.splits import EVAL_SEED
from ivon_jax.train.tasks.registry import get_task

# Metrics of foreign examples that have labels of the run's task.
SHIFTED = ("accuracy", "ece", "nll")


class Foreign(NamedTuple):
    """Examples of another distribution.

    Attributes:
        name: of their task or file.
        examples: the examples.
        labelled: whether their labels are classes of the run's task.
    """

    name: str
    examples: Sequence[Any]
    labelled: bool

    def at_most(self, count: int) -> "Foreign":
        """Draws at most `count` examples, the same for every run."""
        if len(self.examples) <= count:
            return self
        return self._replace(examples=subsample(self.examples, count, EVAL_SEED))


def find(
    task: Task, data: DataConfig, other: str | None, file: Path | None
) -> Foreign | None:
    """Reads foreign examples.

    Args:
        task: the run's task.
        data: its data options.
        other: name of a task, whose evaluation examples are asked by its own prompt.
        file: file of rows that are asked by the run's prompt, with or without labels.

    Returns:
        The examples; None if neither is named.

    Raises:
        ValueError: both are named, the examples are missing or illegal, or a task asks
            for something else than a class.
    """
    if other is None and file is None:
        return None
    if other is not None and file is not None:
        raise ValueError("ood_task: not together with --ood-file")
    if task.answer != "class":
        raise ValueError(f"ood: needs classes, which {task.name} does not ask for")
    if file is not None:
        return _of_file(task, file)
    assert other is not None
    if other == task.name:
        raise ValueError(f"ood_task: {other} is the run's own task")
    found = get_task(other, data.prompt_style)
    if found.answer != "class":
        raise ValueError(f"ood_task: {other} does not ask for a class")
    examples = load_examples(found, "eval", data_dir=data_folder(data.data_dir))
    return Foreign(other, examples, found.label_words == task.label_words)


def _of_file(task: Task, file: Path) -> Foreign:
    rows = list(read_rows(file))
    if not rows:
        raise ValueError(f"{file}: no rows")
    examples = [converted(task.question, place, row) for place, row in rows]
    with contextlib.suppress(ValueError):
        kept = [task.example(row) for _, row in rows]
        if None not in kept:
            return Foreign(file.stem, kept, labelled=True)
    return Foreign(file.stem, examples, labelled=False)


def score_foreign(
    source: Source,
    predictors: Sequence[Predictor],
    foreign: Foreign,
    chunk_size: int | None = 1,
) -> list[dict[str, float]]:
    """Computes how well each predictor's uncertainty detects foreign examples.

    Args:
        source: the run or adapter, with its own examples.
        predictors: the predictors.
        foreign: the foreign examples.
        chunk_size: draws at a time.

    Returns:
        For each predictor AUROC, AUPR and FPR95 by the entropy, by one minus the
        confidence and by the mutual information of its draws; of labelled examples
        also the metrics of `SHIFTED`.

    Raises:
        ValueError: an example is too long, or a prediction is not finite.
    """
    problem = source.problem
    encoded = problem.encode(foreign.examples)
    splits = {**problem.splits, "foreign": encoded}
    with_both = dataclasses.replace(
        source, problem=dataclasses.replace(problem, splits=splits)
    )
    # A scaled predictor has no draws; those that it scales disagree.
    wanted = [*predictors, *(predictor.base for predictor in predictors)]
    own, other = (
        with_both.predict(split, wanted, chunk_size)
        for split in (source.split, "foreign")
    )
    rows = []
    for predictor in predictors:
        final, draws = (
            tuple(jnp.asarray(part[which]) for part in (own, other))
            for which in (predictor, predictor.base)
        )
        if not np.isfinite(final[1]).all():
            raise ValueError(f"ood: a prediction of {predictor.name} is not finite")
        row = {k: float(v) for k, v in detection(final, draws).items()}
        if foreign.labelled:
            shifted = problem.objective.score(other[predictor], encoded.labels)
            row |= {f"ood_{name}": shifted[name] for name in SHIFTED}
        rows.append(row)
    return rows


@jax.jit
def detection(
    final: tuple[Float[Array, "_ n c"], Float[Array, "_ m c"]],
    draws: tuple[Float[Array, "s n c"], Float[Array, "s m c"]],
) -> dict[str, Float[Array, ""]]:
    """Computes the detection metrics by each score.

    Args:
        final: log-probabilities of own and of foreign examples.
        draws: those of each draw, for the mutual information.
    """
    means = [average(log_probs) for log_probs in final]
    scores = {
        "": [metrics.entropy(mean) for mean in means],
        "_confidence": [-mean.max(axis=1) for mean in means],
        "_mutual_information": [metrics.mutual_information(part) for part in draws],
    }
    measures = {"auroc": ood.auroc, "aupr": ood.aupr, "fpr95": ood.fpr95}
    return {
        f"ood_{name}{by}": measure(*pair)
        for by, pair in scores.items()
        for name, measure in measures.items()
    }
