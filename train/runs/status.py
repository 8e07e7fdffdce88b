"""How far a run has come, in a file for queues and people."""

import json
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ivon_jax.files import write_bytes

STATUS = "status.json"
State = Literal["new", "training", "interrupted", "trained", "evaluated"]


class Status(NamedTuple):
    """How far a run has come.

    Attributes:
        step: steps taken; while it trains, up to the newest checkpoint.
        of: steps that it is to take.
        state: "training" is also what a run that was killed leaves.
    """

    step: int
    of: int
    state: State


def read(out: Path) -> Status | None:
    """Reads a run's status; None if it has none, as runs of older versions.

    Raises:
        ValueError: the file is damaged.
    """
    path = out / STATUS
    try:
        values = json.loads(path.read_text())
        status = Status(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not the status of a run ({error})") from None
    if status.state not in get_args(State):
        legal = ", ".join(get_args(State))
        raise ValueError(f"{path}: state {status.state!r} is none of {legal}")
    return status


def write(out: Path, step: int, of: int, state: State) -> None:
    """Writes a run's status, whole or not at all.

    A finished run that was evaluated stays so when it is resumed, which changes
    nothing.
    """
    if state == "trained" and (old := read(out)) == Status(step, of, "evaluated"):
        state = old.state
    values = Status(step, of, state)._asdict()
    write_bytes(out / STATUS, (json.dumps(values) + "\n").encode())


def evaluated(out: Path) -> None:
    """Notes that a run was evaluated, if it had been trained to its end."""
    status = read(out)
    if status is not None and status.state == "trained":
        write(out, status.step, status.of, "evaluated")
