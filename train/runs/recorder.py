"""Counts and metrics of a run's steps."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable

import jax
from jaxtyping import Array, Float

# A step's metrics are fetched while at most LAG later steps run.
LAG = 2


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of the steps taken, and their time."""

    step: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    seconds: float = 0.0

    def after(self, *, bad: bool, seconds: float) -> "Counts":
        """Counts one more step."""
        return Counts(
            self.step + 1,
            self.skipped + bad,
            bad * (self.skipped_in_row + 1),
            seconds,
        )


class Recorder:
    """Fetches the metrics of steps while later steps run, and logs them.

    Args:
        counts: counts of the previous steps.
        log: called with the counts after a step, and its metrics.
    """

    def __init__(
        self, counts: Counts, log: Callable[[Counts, dict[str, float]], None]
    ) -> None:
        self.counts = counts
        self._log = log
        self._start = time.monotonic() - counts.seconds
        self._waiting: deque[dict[str, Float[Array, ""]]] = deque()

    def push(self, logs: dict[str, Float[Array, ""]]) -> None:
        """Queues a step's metrics, still being computed; fetches older ones."""
        self._waiting.append(logs)
        while len(self._waiting) > LAG:
            self._fetch()

    def drain(self, further: Callable[[], dict[str, float]] = dict) -> dict[str, float]:
        """Waits for all steps.

        Args:
            further: computes more metrics of the last step.

        Returns:
            The last step's metrics; empty if all were fetched before.
        """
        while len(self._waiting) > 1:
            self._fetch()
        return self._fetch(further) if self._waiting else {}

    def _fetch(
        self, further: Callable[[], dict[str, float]] = dict
    ) -> dict[str, float]:
        logs = jax.device_get(self._waiting.popleft())
        values = {name: float(value) for name, value in logs.items()}
        seconds = time.monotonic() - self._start
        self.counts = self.counts.after(bad=not values.pop("finite"), seconds=seconds)
        values |= further()
        self._log(self.counts, values)
        return values
