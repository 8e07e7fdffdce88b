"""Several processes, one run: how they meet, who writes, how all learn of an error."""

import dataclasses
from collections.abc import Callable
from typing import Annotated

import jax
import numpy as np
import tyro
from jax.experimental import multihost_utils

_one = tyro.conf.arg(metavar="...", help_behavior_hint="(default: one process)")

# A process that has not been heard of for so long is taken for dead, and the others
# stop. Compiling does not stop a process from being heard.
HEARTBEAT_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """Which process of several this is.

    Attributes:
        coordinator: HOST:PORT of process 0, the same for all; or "auto" where the
            cluster tells (TPU pods, GKE, SLURM, Open MPI).
        processes: how many there are, with HOST:PORT.
        process: which one this is, from 0, with HOST:PORT.
    """

    coordinator: Annotated[str | None, _one] = None
    processes: Annotated[int | None, _one] = None
    process: Annotated[int | None, _one] = None

    def __post_init__(self) -> None:
        """Checks that the three go together."""
        count, index = self.processes, self.process
        if self.coordinator in (None, "auto"):
            if (count, index) != (None, None):
                raise ValueError("processes: only with --coordinator HOST:PORT")
        elif count is None or index is None:
            raise ValueError("coordinator: HOST:PORT needs --processes and --process")
        elif not 0 <= index < count:
            raise ValueError(f"process: {index} is not in [0, {count})")


ALONE = ProcessConfig()


def join(config: ProcessConfig) -> None:
    """Makes this process one of several; to be called before JAX is used.

    Raises:
        ValueError: the others cannot be found.
    """
    if config.coordinator is None:
        return
    try:
        jax.distributed.initialize(
            None if config.coordinator == "auto" else config.coordinator,
            config.processes,
            config.process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"coordinator: {config.coordinator}: {error}") from None


def on_first_process(act: Callable[[], None]) -> None:
    """Lets the first process alone touch the file system; the others wait for it.

    Args:
        act: what to do.

    Raises:
        ValueError: another process failed.
        Exception: what `act` raised, on the first process.
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
            raise ValueError("process 0 could not go on; its own message says why")
    if error is not None:
        raise error
