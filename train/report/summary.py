"""A run's folder summarised on the terminal, without its model."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ivon_jax.diagnostics import QUANTILES
from ivon_jax.errors import prefixed
from ivon_jax.kinds import Distribution
from ivon_jax.train.config_json import to_json
from ivon_jax.train.data.fields import shown
from ivon_jax.train.inference.calibration import CALIBRATION, Calibration
from ivon_jax.train.report import tables
from ivon_jax.train.report.logs import Log, read_log
from ivon_jax.train.report.posteriors import Entries
from ivon_jax.train.runs import fitted, run, status
from ivon_jax.train.runs.diagnostics import DIAGNOSTICS
from ivon_jax.train.runs.evaluations import latest_evaluations
from ivon_jax.train.trainable import TRAINABLES

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 40


def show(folder: Path, *, best: bool = False) -> None:
    """Prints the state, settings, metrics, posterior and results of a run.

    Args:
        folder: the run's folder; the run need not be finished.
        best: see `run.read_posterior`.

    Raises:
        ValueError: the folder is no run, or damaged.
    """
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    for name, value in summary(folder, best=best):
        grid.add_row(name, Text(value))
    found = list(_results(folder))  # before anything is printed
    Console(highlight=False, markup=False).print(grid)
    for table in found:
        print(f"\n{table}")


def summary(folder: Path, *, best: bool = False) -> Iterator[tuple[str, str]]:
    """Yields the lines of a summary, each with a name.

    Args:
        folder: the run's folder.
        best: see `run.read_posterior`.

    Raises:
        ValueError: the folder is no run, or damaged.
    """
    config, recorded = run.read_config(folder)
    log, made = read_log(folder), fitted.read(folder)
    yield "run", str(folder)
    yield "status", _status(folder, log, recorded)
    counts = (f"{recorded.get(f'{k}_examples', '?')} {k}" for k in ("train", "eval"))
    yield "task", f"{recorded.get('task', config.data.task)}, {', '.join(counts)}"
    yield "model", f"{config.model}, base {config.base}, trains {config.train}"
    if TRAINABLES[config.train].adapters:
        yield "adapter", _settings(to_json(config)["lora"])
    yield "method", f"{config.method}: {_settings(to_json(config)['hyper'])}"
    yield from _fit(made)
    yield from _metrics(log)
    if best or (folder / run.POSTERIOR).exists():
        posterior, metadata = run.read_posterior(folder, best=best)
        file = folder / (run.BEST if best else run.POSTERIOR)
        yield "posterior", _posterior(posterior, metadata, file.stat().st_size)
        yield from _quantiles(posterior)
        yield from _diagnosis(folder)
    else:
        yield "posterior", "none yet"
    if (folder / CALIBRATION).exists():
        text = Calibration.read(folder / CALIBRATION).text
        yield "calibration", text


def sparkline(values: Sequence[float | None], width: int = WIDTH) -> str:
    """Draws a line of blocks, from the lowest to the highest of the values.

    Args:
        values: the values; None or NaN where one is missing.
        width: maximal number of blocks. Each is the mean of the values in its part;
            of none it is blank.

    Example:
        >>> sparkline([4.0, 3.0, None, 1.0])
        '█▆ ▁'
    """
    numbers = np.array([math.nan if x is None else x for x in values], float)
    parts = np.array_split(numbers, min(width, len(numbers)) or 1)
    finite = [part[np.isfinite(part)] for part in parts]
    means = np.array([part.mean() if len(part) else math.nan for part in finite])
    if not np.isfinite(means).any():
        return " " * len(numbers[:width])
    low, high = np.nanmin(means), np.nanmax(means)
    share = (means - low) / ((high - low) or 1.0) * (len(BLOCKS) - 1)
    return "".join(" " if math.isnan(x) else BLOCKS[round(x)] for x in share)


def describe_status(state: status.Status | None) -> str:
    """Says how far a run is."""
    if state is None:
        return "not known: of an older version"
    if state.state == "training":
        return f"training; the newest checkpoint is at step {state.step} of {state.of}"
    return f"{state.state}, step {state.step} of {state.of}"


def _status(folder: Path, log: Log, recorded: Mapping[str, Any]) -> str:
    parts = [describe_status(status.read(folder))]
    if log and log[-1].get("seconds") is not None:
        parts.append(f"{duration(log[-1]['seconds'])} of training")
    if recorded.get("started"):
        parts.append(f"started {recorded['started']}")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """Returns a time in its two largest units.

    >>> duration(0.25), duration(59.6), duration(3725)
    ('0.2 s', '1 min 0 s', '1 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _settings(values: Mapping[str, Any]) -> str:
    """Lists settings; those that are unset are left out."""
    parts = []
    for name, value in values.items():
        if value is None or value in ({}, []):
            continue
        text = f"{value:g}" if isinstance(value, float) else str(value)
        if isinstance(value, list):
            text = " ".join(map(str, value))
        parts.append(f"{name} {shown(text)[1:-1]}")
    return ", ".join(parts)


def _fit(made: fitted.Record | None) -> Iterator[tuple[str, str]]:
    if made is None:
        return
    yield (
        "fit",
        f"{made.method}, in {duration(made.seconds)}; {_settings(made.options)}",
    )
    yield (
        "of",
        "\n".join(
            f"{source['path']} (sha256 {source['sha256'][:12]})"
            for source in made.sources
        ),
    )
    if numbers := _settings({k: v for k, v in made.numbers.items() if _plain(v)}):
        yield "found", numbers
    yield "held out", f"{made.held_out} by the fit"


def _plain(value: Any) -> bool:
    return isinstance(value, int | float | str)


def _metrics(log: Log) -> Iterator[tuple[str, str]]:
    if not log:
        return
    loss = [line.get("loss") for line in log]
    ends = " → ".join("?" if x is None else f"{x:.4g}" for x in (loss[0], loss[-1]))
    yield "loss", f"{sparkline(loss)}  {ends}"
    left_out = {"step", "loss", "seconds"}
    last = {k: v for k, v in log[-1].items() if k not in left_out}
    if last:
        yield "last step", _settings(last)
    scored = [line for line in log if any(k.startswith("eval_") for k in line)]
    if scored and scored[-1] is not log[-1]:
        yield (
            "last score",
            _settings({k: v for k, v in scored[-1].items() if k.startswith("eval_")}),
        )


def _posterior(posterior: Distribution, metadata: Mapping[str, Any], size: int) -> str:
    entries = Entries.of(posterior)
    varying = len(entries.deviation)
    parts = [
        f"{posterior.kind}, {entries.size:,} parameters",
        f"{varying:,} of them vary" if varying else "a point",
    ]
    if posterior.size is not None:
        parts.append(f"{posterior.size} members")
    parts += [f"{name} {value:g}" for name, value in metadata.items()]
    return ", ".join([*parts, f"{size / 1e6:.2f} MB"])


def _quantiles(posterior: Distribution) -> Iterator[tuple[str, str]]:
    found = Entries.of(posterior).quantiles()
    if found:
        head = " ".join(f"{f'{100 * q:g} %':>9}" for q in QUANTILES)
        yield "", head
    for name, values in found.items():
        yield f"  {name}", " ".join(f"{value:9.3g}" for value in values)


def _diagnosis(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields what the run's end said of its hyper-parameters."""
    path = folder / DIAGNOSTICS
    if not path.exists():
        return
    wrong = (ValueError, KeyError, TypeError)
    with prefixed(f"{path}: not the diagnosis of a run", wrong):
        found = json.loads(path.read_text())
        hess = [math.nan if x is None else x for x in found["hess"]]
        advice = found["advice"] or ["none: clip, rates and lambda suit each other"]
        lines = "\n".join(str(line) for line in advice)
        clipped = f"{found['clipped']:.1%} of the last step"
    yield "  h/hess_init", " ".join(f"{value:9.3g}" for value in hess)
    yield "clipped", clipped
    yield "advice", lines


def _results(folder: Path) -> Iterator[str]:
    """Yields a table for each evaluation, but for those of earlier steps."""
    for one in latest_evaluations(folder):
        rows = list(one.rows_by(tables.label).values())
        yield f"{one.path.name}\n{tables.table(rows)}"
