"""The model card of an exported folder: what it is, how good, and how to use it."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

import ivon_jax
from ivon_jax.ensemble import pool
from ivon_jax.errors import prefixed
from ivon_jax.files import write_bytes
from ivon_jax.models.known import hub_id
from ivon_jax.models.pretrained import split_revision
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.data.task import Task
from ivon_jax.train.export.recipes import recipes
from ivon_jax.train.inference.calibration import CALIBRATION, Calibration
from ivon_jax.train.predictors.base import Row
from ivon_jax.train.predictors.registry import predictor_of
from ivon_jax.train.report import figures
from ivon_jax.train.report.intervals import with_intervals
from ivon_jax.train.report.tables import METRICS, common_columns, label, markdown
from ivon_jax.train.runs import fitted, run
from ivon_jax.train.runs.evaluations import read_evaluations
from ivon_jax.train.splits import find_task

CARD, FIGURE = "README.md", "reliability.png"


class Exported(NamedTuple):
    """What an exported folder holds, and the run that it is of.

    Attributes:
        directory: the run's folder.
        config: the run's configuration.
        learned: metadata of the posterior: step and lambda.
        best: whether it is the best scored posterior.
        format: "peft" or "hf".
        samples: number of adapters drawn from the posterior.
        tau: temperature of the samples.
        prune: share of entries set to zero.
    """

    directory: Path
    config: TrainConfig
    learned: dict[str, Any]
    best: bool
    format: str
    samples: int = 0
    tau: float = 1.0
    prune: float = 0.0

    @property
    def base(self) -> str:
        """The base model's name for other programs, without a revision."""
        return split_revision(hub_id(self.config.model))[0]


class Results(NamedTuple):
    """Scores of one set of examples.

    Attributes:
        of: the name of the examples.
        split: their split, see `find_examples`.
        size: their number.
        rows: a row of results for each way to predict.
        log_probs: the predictions of each row; None if they are not of classes.
        labels: the right classes.
    """

    of: str
    split: str
    size: int
    rows: list[Row]
    log_probs: Float[np.ndarray, "m n c"] | None
    labels: Int[np.ndarray, " n"] | None


def write_card(folder: Path, exported: Exported) -> None:
    """Writes ``README.md`` to an exported folder, and a figure if there are results.

    Args:
        folder: the folder, complete but for them.
        exported: what it holds.

    Raises:
        ValueError: results in the run's folder are damaged.
    """
    task = find_task(exported.config.data)
    results = read_results(exported, task)
    parts = [
        f"---\n{_front(exported, task, results)}\n---\n",
        f"# {_title(exported, task)}\n",
        _about(exported, task),
        *(_table(found) for found in results),
    ]
    for found in results[:1]:
        if found.log_probs is not None and found.labels is not None:
            names = [label(row) for row in found.rows]
            drawn = dict(zip(names, found.log_probs, strict=True))
            figures.reliability(folder / FIGURE, drawn, found.labels)
            parts.append(
                f"![Reliability: accuracy by confidence, of {found.of}]({FIGURE})\n"
            )
    calibration = exported.directory / CALIBRATION
    if calibration.exists():
        text = Calibration.read(calibration).text
        parts.append(
            "## Calibration\n\nOf the run, and not part of this folder:\n\n"
            + "\n".join(f"* {line}" for line in text.splitlines())
            + "\n"
        )
    data = exported.config.data
    parts += recipes(folder, exported.base, task, data, exported.samples)
    write_bytes(folder / CARD, "\n".join(parts).encode())


def read_results(exported: Exported, task: Task) -> list[Results]:
    """Reads what ``ivon-jax evaluate`` found of the exported posterior.

    Args:
        exported: what is exported; results of other steps are left out.
        task: its task.

    Returns:
        The results of each set of examples, the task's own evaluation examples first.
    """
    directory, data = exported.directory, exported.config.data
    found: dict[bool, dict[str, Row]] = {}
    counts: dict[bool, int] = {}
    # Results with foreign examples repeat those without.
    files = sorted(read_evaluations(directory), key=lambda one: bool(one.foreign))
    for one in files:
        if one.of != (exported.best, exported.learned.get("step")):
            continue
        own = bool(one.values.get("test")) or data.validation_examples is None
        with prefixed(f"{one.path}: not an evaluation", (KeyError,)):
            counts[own] = one.values["eval_examples"]
        for name, row in one.rows_by(label).items():
            found.setdefault(own, {}).setdefault(name, row)
    return [
        _with_predictions(
            exported,
            Results(
                "the task's evaluation examples" if own else "held-out examples",
                "test" if own else "validation",
                counts[own],
                list(found[own].values()),
                None,
                None,
            ),
            classes=task.answer == "class",
            test=own and data.validation_examples is not None,
        )
        for own in sorted(found, reverse=True)
    ]


def _with_predictions(
    exported: Exported, found: Results, *, classes: bool, test: bool
) -> Results:
    """Adds predictions of classes, and the standard errors of what they score."""
    if not classes:
        return found
    suffix = "-best" * exported.best + "-test" * test
    names = [predictor_of(row).name + suffix for row in found.rows]
    parts = [run.read_predictions(exported.directory, name) for name in names]
    log_probs = np.stack([pool(draws) for draws, _ in parts])
    labels = parts[0][1]
    rows = with_intervals(found.rows, log_probs, labels, seed=0)
    return found._replace(rows=rows, log_probs=log_probs, labels=labels)


def _title(exported: Exported, task: Task) -> str:
    name = exported.base.rsplit("/", 1)[-1]
    return f"{name} for {task.name}, {_method(exported)}"


def _method(exported: Exported) -> str:
    made = fitted.read(exported.directory)
    return made.method if made else exported.config.method


def _front(exported: Exported, task: Task, results: Sequence[Results]) -> str:
    """Returns the front matter, in YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    adapter = exported.format == "peft"
    kind = "text-generation" if task.answer == "text" else "text-classification"
    scores = [
        EvalResult(
            task_type=kind,
            dataset_type=task.name,
            dataset_name=f"{task.name} ({found.of})",
            dataset_split=found.split,  # sets of one split would be joined
            metric_type=name,
            metric_value=row[name],
            metric_name=f"{name}, {label(row)}",
        )
        for found in results
        for row in found.rows
        for name in METRICS
        if name in row and not name.startswith("ood_")
    ]
    # A folder is no name that others know.
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+", exported.base)
    values = ModelCardData(
        library_name="peft" if adapter else "transformers",
        base_model=exported.base if hub and not Path(exported.base).exists() else None,
        base_model_relation="adapter" if adapter else "finetune",
        tags=["ivon-jax", "lora", "bayesian", "uncertainty", _method(exported)],
        metrics=sorted({score.metric_type for score in scores}) or None,
        model_name=_title(exported, task) if scores else None,
        eval_results=scores or None,
    )
    return values.to_yaml()


def _about(exported: Exported, task: Task) -> str:
    """Returns what the folder holds, as text and a table of settings."""
    config, learned = exported.config, exported.learned
    what = "The base model with an adapter merged in"
    if exported.format == "peft":
        what = "A LoRA adapter at the mean of its posterior"
        if exported.samples:
            what += f", and {exported.samples} samples of it in `sample-N`"
    pissa = config.lora.init == "pissa" and exported.format == "peft"
    rows = {
        "base model": exported.base,
        "task": task.name,
        "labels": ", ".join(task.label_words),
        "prompt": json.dumps(config.data.prompt) if config.data.prompt else "",
        "method": _method(exported),
        "training step": learned.get("step", ""),
        "lambda (`ess`)": f"{learned['ess']:g}" if "ess" in learned else "",
        "rank, alpha": f"{config.lora.rank}, {config.lora.alpha:g}",
        "start": "PiSSA, hence twice the rank in PEFT's files" if pissa else "",
        "tau of the samples": f"{exported.tau:g}" if exported.samples else "",
        "pruned share": f"{exported.prune:g}" if exported.prune else "",
        "seed": config.seed,
        "ivon-jax": ivon_jax.__version__,
    }
    cells = [["", ""], *([k, str(v)] for k, v in rows.items() if v != "")]
    return f"{what}.\n\n{markdown(cells)}\n"


def _table(found: Results) -> str:
    """Returns a table of scores, with standard errors where they are known."""
    columns = common_columns(METRICS, found.rows)
    cells = [["", *(title for title, *_ in columns.values())]]
    for row in found.rows:
        line = [label(row)]
        for name, (_, scale, digits) in columns.items():
            error = row.get("errors", {}).get(name)
            more = "" if error is None else f" ± {scale * error:.{digits}f}"
            line.append(f"{scale * row[name]:.{digits}f}{more}")
        cells.append(line)
    errors = (
        " ± is the standard error over them." if found.log_probs is not None else ""
    )
    return (
        f"## Results on {found.of}\n\n{found.size} examples.{errors} @mean is the"
        f" posterior mean.\n\n{markdown(cells)}\n"
    )
