"""Contestants that take turns, each in a process of its own.

A contestant does numbered pieces of work. Beside the seconds of each the processor's
time is recorded, its own and that of other programs: one that keeps a core busy slows
torch, whose threads wait for each other, more than XLA.
"""

import dataclasses
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Values = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What a contestant does.

    Attributes:
        work: does a piece of work and returns numbers to record.
        warm: pieces to do before any is measured, as one of each shape.
    """

    work: Callable[[int], Values]
    warm: tuple[int, ...] = ()


class Entry(NamedTuple):
    """How a contestant is made: a function of a module, and its JSON arguments."""

    module: str
    function: str
    arguments: Mapping[str, Any]

    def text(self) -> str:
        """Returns it as the argument of `serve`."""
        return json.dumps(self)


class Process:
    """A process that answers lines with lines of JSON.

    Args:
        module: a module whose function `serve` it runs.
        text: the argument of `serve`.
        env: further variables of its environment.
    """

    def __init__(
        self, module: str, text: str, env: Mapping[str, str] | None = None
    ) -> None:
        code = f"import sys; from {module} import serve; serve(sys.argv[1])"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, text],
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | dict(env or {}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def read(self) -> Any:
        """Reads its next line."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def ask(self, line: str = "") -> Any:
        """Sends a line and reads the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self.read()

    def end(self) -> Any:
        """Ends its input and reads its last line."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.read()

    def kill(self) -> None:
        """Kills it if it still runs."""
        self._process.kill()
        self._process.wait()


def serve(text: str) -> None:
    """Makes a contestant, then does the piece of work of each line of stdin.

    Args:
        text: the `Entry`, as JSON.
    """
    entry = Entry(*json.loads(text))
    start, cpu = time.perf_counter(), time.process_time()
    make = getattr(importlib.import_module(entry.module), entry.function)
    contestant = make(**entry.arguments)
    contestant.work(0)
    first = {
        "first_s": time.perf_counter() - start,
        "first_cpu_s": time.process_time() - cpu,
    }
    for index in contestant.warm:
        contestant.work(index)
    first["warm_s"] = time.perf_counter() - start
    print(json.dumps(first), flush=True)
    for line in sys.stdin:
        start, cpu = time.perf_counter(), time.process_time()
        values = contestant.work(int(line))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        found = {"seconds": seconds, "cpu_s": cpu, **values}
        print(json.dumps(found), flush=True)


class Raced(NamedTuple):
    """Measurements of a contestant: of its start, and of each later piece of work."""

    start: Values
    pieces: list[Values]

    def column(self, name: str) -> list[float]:
        """Returns one number of every piece."""
        return [piece[name] for piece in self.pieces]


def race(entries: Mapping[str, Entry], pieces: int) -> dict[str, Raced]:
    """Lets contestants do the same pieces of work in turn.

    They start one after another, so that none is slowed by another's start.

    Args:
        entries: contestants by name.
        pieces: number of pieces of work.
    """
    processes: dict[str, Process] = {}
    results = {}
    try:
        for name, entry in entries.items():
            processes[name] = Process("benchmarks.contest", entry.text())
            results[name] = Raced(processes[name].read(), [])
        for index in range(pieces):
            for name, process in processes.items():
                before, start = _busy_seconds(), time.perf_counter()
                values = process.ask(str(index))
                busy, seconds = _busy_seconds() - before, time.perf_counter() - start
                values["others_cores"] = max(0.0, busy - values["cpu_s"]) / seconds
                results[name].pieces.append(values)
    finally:
        for process in processes.values():
            process.kill()
    return results


def _busy_seconds() -> float:
    """Returns the seconds that all processors have been busy; Linux only."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, fields)
    ticks = user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def quartiles(values: list[float]) -> dict[str, float]:
    """Returns the median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"q1": low, "median": middle, "q3": high}


def compared(results: Mapping[str, Raced], base: str) -> dict[str, Any]:
    """Summarises a race, with speeds in units of one contestant's.

    Args:
        results: of `race`; at least two pieces of work.
        base: the contestant that has speed 1.
    """
    theirs = results[base].column("seconds")
    found = {}
    for name, raced in results.items():
        own = raced.column("seconds")
        ratios = [them / us for them, us in zip(theirs, own, strict=True)]
        found[name] = {
            **raced.start,
            "seconds": quartiles(own),
            "cpu_s": quartiles(raced.column("cpu_s")),
            f"speedup_over_{base}": quartiles(ratios),
            "others_cores": quartiles(raced.column("others_cores")),
        }
    return found
