"""The metrics of a run's steps."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ivon_jax.errors import prefixed
from ivon_jax.train.report.intervals import Z
from ivon_jax.train.runs import run

Log = Sequence[Mapping[str, Any]]


class Block(NamedTuple):
    """Some steps in a row.

    Attributes:
        first: the first step.
        last: the last step.
        mean: the mean of a metric over them.
        low: lower end of the mean's 95 % interval, as if steps were independent.
        high: its upper end.
    """

    first: int
    last: int
    mean: float
    low: float
    high: float


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Reads the lines of a run's metrics; none if it was not trained here.

    Args:
        folder: the run's folder. It may be training: a last line without an end is
            left out.

    Raises:
        ValueError: a line is damaged.
    """
    path = folder / run.METRICS
    text = path.read_text() if path.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()
    with prefixed(f"{path}: not the metrics of a run"):
        found = [json.loads(line) for line in lines]
        if not all(isinstance(line, dict) and "step" in line for line in found):
            raise ValueError("a line has no step")
    return found


def values_of(log: Log, name: str) -> list[tuple[int, float]]:
    """Returns the steps that have a metric, with its value.

    A loss that was not finite is null in the file, and has no value.
    """
    return [(line["step"], line[name]) for line in log if line.get(name) is not None]


def blocks(values: Sequence[tuple[int, float]], fewest: int = 15) -> list[Block]:
    """Averages a metric over steps in a row: four at least, if there are many.

    Args:
        values: steps and values.
        fewest: number of blocks before steps share one; there are at most four times
            as many blocks.

    Example:
        >>> [b[:3] for b in blocks([(1, 4.0), (2, 2.0), (3, 1.0)], fewest=2)]
        [(1, 2, 3.0), (3, 3, 1.0)]
    """
    found = []
    count = min(max(len(values) // 4, fewest), 4 * fewest, len(values))
    for part in np.array_split(np.arange(len(values)), max(count, 1)):
        if not len(part):
            continue
        numbers = np.array([values[i][1] for i in part], np.float64)
        spread = float(numbers.std(ddof=1)) if len(part) > 1 else 0.0
        mean, error = float(numbers.mean()), Z * spread / math.sqrt(len(part))
        ends = (values[part[0]][0], values[part[-1]][0])
        found.append(Block(*ends, mean, mean - error, mean + error))
    return found
