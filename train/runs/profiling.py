"""A trace of some steps, for XProf or Perfetto."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

FOLDER = "profile"


class Profile:
    """Traces steps of the first process, named "train" with their number.

    Args:
        folder: the run's folder.
        traced: the steps.
    """

    def __init__(self, folder: Path, traced: range) -> None:
        # Processes that end a trace in the same second would write one file.
        first = jax.process_index() == 0
        self._folder, self._traced = folder / FOLDER, traced if first else range(0)
        self._on = False

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Takes a step; its first one begins the trace.

        Args:
            number: the step's number.
        """
        if number not in self._traced:
            yield
            return
        if not self._on:
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._on = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def taken(self, number: int, results: Any) -> None:
        """Ends the trace after the last of its steps, when they are computed.

        Args:
            number: the step's number.
            results: arrays of the step.
        """
        if self._on and number + 1 not in self._traced:
            jax.block_until_ready(results)
            self.finish()

    def finish(self) -> None:
        """Writes the trace, if one has begun."""
        if self._on:
            self._on = False
            jax.profiler.stop_trace()

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()
