"""A run's numbers, to its folder and to the trackers that it names."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ivon_jax.errors import one_line, prefixed, writing
from ivon_jax.train.runs import run
from ivon_jax.train.runs.progress import say
from ivon_jax.train.trackers.base import Tracker
from ivon_jax.train.trackers.registry import TRACKERS


class Jsonl:
    """One line per step in ``metrics.jsonl``, part of every run."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / run.METRICS
        self._file: BinaryIO | None = None

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Removes the lines of steps that will be taken again."""
        run.cut_metrics(self._folder, step)
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


class _Lenient:
    """A tracker whose errors after its start do not end the run, and are said once."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._failed = False

    def start(self, config: Mapping[str, Any], step: int) -> None:
        with prefixed(f"trackers: {self._name} does not start", (Exception,)):
            self._tracker.start(config, step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if not self._failed:
            try:
                self._tracker.log(step, values)
            except Exception as error:
                self._failed = True
                say(
                    f"{self._name} has failed at step {step} and gets no more numbers;"
                    f" training continues: {one_line(error)}"
                )

    def finish(self) -> None:
        try:
            self._tracker.finish()
        except Exception as error:
            if not self._failed:
                say(f"{self._name} has failed at its end: {one_line(error)}")


@contextmanager
def tracking(
    names: Sequence[str], folder: Path, config: Mapping[str, Any], step: int
) -> Iterator[list[Tracker]]:
    """Starts trackers, and finishes all of them at the end.

    Args:
        names: names in `TRACKERS`; the numbers are written to the folder anyway.
        folder: the run's folder.
        config: see `Tracker.start`.
        step: see `Tracker.start`.

    Yields:
        The trackers.

    Raises:
        ValueError: one does not start.
    """
    chosen = [_Lenient(name, TRACKERS[name](folder)) for name in names]
    trackers: list[Tracker] = [Jsonl(folder), *chosen]
    with ExitStack() as stack:
        for tracker in trackers:
            stack.callback(tracker.finish)
            tracker.start(config, step)
        yield trackers
