"""Trackers of a run's metrics: one class and one registration each."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from ivon_jax.errors import writing
from ivon_jax.train.runs import run


@runtime_checkable
class Tracker(Protocol):
    """Logs a run's metrics; constructed with the run's folder."""

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Starts, or resumes after a step.

        Args:
            config: the run's configuration and metadata, see `run.describe`.
            step: number of previous steps.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Logs a step's metrics, which may be not finite."""
        ...

    def finish(self) -> None:
        """Ends, also after an error."""
        ...


class Jsonl:
    """One line per step in ``metrics.jsonl``, part of every run."""

    def __init__(self, out: Path) -> None:
        self._out, self._path = out, out / run.METRICS
        self._file: BinaryIO | None = None

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Removes the lines of steps that will be taken again."""
        run.cut_metrics(self._out, step)
        self._file = self._path.open("ab", buffering=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a line; null for a number that is not finite."""
        assert self._file is not None
        # JSON has no infinity and no NaN.
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        text = json.dumps({"step": step, **finite}).encode() + b"\n"
        with writing(self._path):
            if self._file.write(text) < len(text):
                raise OSError("no space left for the whole line")

    def finish(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


TRACKERS: dict[str, type[Jsonl]] = {"jsonl": Jsonl}


@contextmanager
def tracking(
    names: Sequence[str], out: Path, config: Mapping[str, Any], step: int
) -> Iterator[list[Tracker]]:
    """Starts trackers, and finishes all of them at the end.

    Args:
        names: names in `TRACKERS`.
        out: the run's folder.
        config: see `Tracker.start`.
        step: see `Tracker.start`.

    Yields:
        The trackers.
    """
    with ExitStack() as stack:
        trackers: list[Tracker] = []
        for name in names:
            tracker = TRACKERS[name](out)
            tracker.start(config, step)
            stack.callback(tracker.finish)
            trackers.append(tracker)
        yield trackers
