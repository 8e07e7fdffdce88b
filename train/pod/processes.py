"""Runs of several processes: start, shared files and errors."""

import dataclasses
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils
from jaxtyping import Int

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.train.pod import last_words

T = TypeVar("T")

_one = tyro.conf.arg(metavar="...", help_behavior_hint="(default: one process)")

# A process without a heartbeat for this long is taken for dead, and the others stop.
# Compiling does not stop the heartbeat.
HEARTBEAT_SECONDS = 60

_PART = 1024  # items at a time


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The place of this process among several.

    Attributes:
        coordinator: HOST:PORT of process 0, the same for all; or "auto" where the
            cluster provides it (TPU pods, GKE, SLURM, Open MPI).
        processes: number of processes, with HOST:PORT.
        process: index of this process, with HOST:PORT.
        wait_seconds: time to wait for the others at the start.
    """

    coordinator: Annotated[str | None, _one] = None
    processes: Annotated[int | None, _one] = None
    process: Annotated[int | None, _one] = None
    wait_seconds: int = 300

    def __post_init__(self) -> None:
        """Checks each field, and their combination."""
        check("wait_seconds", self.wait_seconds, AT_LEAST_ONE)
        count, index = self.processes, self.process
        if self.coordinator in (None, "auto"):
            if (count, index) != (None, None):
                raise ValueError("processes: only with --coordinator HOST:PORT")
        elif count is None or index is None:
            raise ValueError("coordinator: HOST:PORT needs --processes and --process")
        elif not 0 <= index < count:
            raise ValueError(f"process: {index} is not in [0, {count})")


ALONE = ProcessConfig()


def check_alone() -> None:
    """Checks that this process is the only one.

    Raises:
        ValueError: there are others.
    """
    if (count := jax.process_count()) > 1:
        raise ValueError(
            f"processes: there are {count}, and this is for one; start it once, with"
            " --mesh over the devices of its machine"
        )


def join(config: ProcessConfig, *, stops: bool = True) -> None:
    """Connects this process to the others; to be called before JAX is used.

    Args:
        config: its place among them.
        stops: whether the work asks for signals, as `interrupts.Stop` does. If not, a
            SIGTERM ends the process at once, instead of never.

    Raises:
        ValueError: the others cannot be found.
    """
    if config.coordinator is None:
        return
    _leave_last_words()
    jax.config.update("jax_enable_preemption_service", stops)
    try:
        jax.distributed.initialize(
            None if config.coordinator == "auto" else config.coordinator,
            config.processes,
            config.process,
            initialization_timeout=config.wait_seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"coordinator: {config.coordinator}: {error}") from None


def _leave_last_words() -> None:
    """Passes stderr through a child process; see `last_words`."""
    reader = subprocess.Popen(
        [sys.executable, last_words.__file__], stdin=subprocess.PIPE
    )
    assert reader.stdin is not None
    os.dup2(reader.stdin.fileno(), 2)  # where native code writes


def on_first_process(act: Callable[[], None]) -> None:
    """Runs a function on the first process only; the others wait for it.

    Args:
        act: the function, which may write files.

    Raises:
        ValueError: the first process failed; on the others.
        Exception: the error of `act`, on the first process.
    """
    error = None
    if jax.process_index() == 0:
        try:
            act()
        except Exception as caught:
            error = caught
    if jax.process_count() > 1:
        failed = multihost_utils.broadcast_one_to_all(np.array(error is not None))
        if failed and error is None:
            raise ValueError("process 0 failed; see its own message")
    if error is not None:
        raise error


def check_agreement(values: dict[str, Any]) -> None:
    """Checks that all processes were started with the same values.

    Args:
        values: plain JSON values by name; the names are the same everywhere.

    Raises:
        ValueError: a value differs; raised on every process.
    """
    names = sorted(values)
    own = [zlib.crc32(json.dumps(values[name]).encode()) for name in names]
    everyone = multihost_utils.process_allgather(np.array(own, np.uint32))
    for process, others in enumerate(everyone):
        for name, one, other in zip(names, own, others, strict=True):
            if one != other:
                raise ValueError(
                    f"{name}: is now {values[name]}, but process {process} was"
                    " started with another value"
                )


def check_shared(path: Path) -> None:
    """Checks that all processes see a file of the first one.

    Raises:
        ValueError: a process does not see it; raised on every process.
    """
    everyone = multihost_utils.process_allgather(np.array(path.exists()))
    for process, sees in enumerate(everyone):
        if not sees:
            raise ValueError(
                f"{path}: process {process} does not see it; it must be on a file"
                " system that all processes share"
            )


def divide(
    work: Callable[[Sequence[T]], Sequence[Sequence[int]]], items: Sequence[T]
) -> list[Int[np.ndarray, " _"]]:
    """Divides work between the processes and returns the whole result on each.

    Args:
        work: maps items to one list of integers per item. It is called for a part of
            the items at a time, as lists take ten times the memory of what is kept. An
            error in it ends this process, and with it the others.
        items: the same on every process.

    Returns:
        The integers of each item, int32, in the order of the items.
    """
    count = jax.process_count()
    share = items[jax.process_index() :: count]
    done = [
        np.asarray(row, np.int32)
        for start in range(0, len(share), _PART)
        for row in work(share[start : start + _PART])
    ]
    if count == 1:
        return done
    sizes = _gather(np.array([row.size for row in done], np.int32))
    joined = _gather(np.concatenate([np.empty(0, np.int32), *done]))
    shares = [
        np.split(ids, np.cumsum(lengths))
        for ids, lengths in zip(joined, sizes, strict=True)
    ]
    return [shares[i % count][i // count] for i in range(len(items))]


def _gather(values: Int[np.ndarray, " _"]) -> list[Int[np.ndarray, " _"]]:
    """Returns the values of all processes, which may differ in number."""
    sizes = multihost_utils.process_allgather(np.array(values.size, np.int32))
    padded = np.pad(values, (0, int(sizes.max()) - values.size))
    rows = multihost_utils.process_allgather(padded)
    return [row[:size] for row, size in zip(rows, sizes, strict=True)]
