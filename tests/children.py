"""Real processes of the command line, as a user's shell starts them."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from ivon_jax.train.runs.run import METRICS

COMMAND_LINE = ("-m", "ivon_jax.train.cli")


def free_address() -> str:
    """An address where process 0 of several can be met."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def start(
    *words: object,
    devices: int = 1,
    limit: str = "",
    program: tuple[object, ...] = COMMAND_LINE,
) -> subprocess.Popen:
    """Start a command; `limit` is said to the shell before it, as `ulimit -f 4`."""
    # Of a repeated flag the last counts. With the others of the tests, a child finds
    # what they have compiled.
    flags = os.environ["XLA_FLAGS"]
    flags += f" --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"XLA_FLAGS": flags}
    command = [sys.executable, *map(str, program), *map(str, words)]
    if limit:
        command = ["bash", "-c", f'{limit}; exec "$@"', "-", *command]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(*children: subprocess.Popen, timeout: float = 240) -> list[str]:
    """Wait for all, or kill them; return what each wrote to stderr."""
    try:
        return [child.communicate(timeout=timeout)[1] for child in children]
    finally:
        kill(*children)


def kill(*children: subprocess.Popen) -> None:
    """End what still runs, with no chance to tidy up."""
    for child in children:
        child.kill()
        child.communicate()


def taken(out: Path) -> int:
    """Number of steps in a run's metrics."""
    path = out / METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_steps(out: Path, steps: int, *children: subprocess.Popen) -> None:
    """Wait until so many steps are taken, or one of the processes has ended."""
    while all(child.poll() is None for child in children) and taken(out) < steps:
        time.sleep(0.005)
