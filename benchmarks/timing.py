"""Interleaved timing, and a description of the machine."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ivon_jax.train.runs.run import versions


def interleave(
    contestants: dict[str, Callable[[], None]], rounds: int
) -> dict[str, list[float]]:
    """Times every contestant once per round, so that drift affects all alike.

    Args:
        contestants: functions that block until their work is done; each is called once
            unmeasured.
        rounds: number of rounds.

    Returns:
        Seconds of each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()
    for _ in range(rounds):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def summary(seconds: list[float]) -> dict[str, float]:
    """Returns median and quartiles in milliseconds."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"median_ms": 1e3 * middle, "q1_ms": 1e3 * low, "q3_ms": 1e3 * high}


def machine() -> dict[str, Any]:
    """Describes the machine and the versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "versions": versions(),
    }


def write(path: Path, results: dict[str, Any]) -> None:
    """Prints the results and writes them as JSON."""
    text = json.dumps(results, indent=2)
    print(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
