"""A run's status file, for queues and people."""

import json
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from ivon_jax.files import write_bytes

STATUS = "status.json"
State = Literal["new", "training", "interrupted", "trained", "evaluated"]


class Status(NamedTuple):
    """The progress of a run.

    Attributes:
        step: steps taken; in training, those up to the newest checkpoint.
        of: total number of steps.
        state: its state; a run that was killed stays at "training".
    """

    step: int
    of: int
    state: State


def read(folder: Path) -> Status | None:
    """Reads a run's status; None if it has none, as in older versions.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / STATUS
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


def write(folder: Path, step: int, of: int, state: State) -> None:
    """Writes a run's status, whole or not at all.

    An evaluated run stays "evaluated" when it is resumed after its last step.
    """
    if state == "trained" and (old := read(folder)) == Status(step, of, "evaluated"):
        state = old.state
    values = Status(step, of, state)._asdict()
    write_bytes(folder / STATUS, (json.dumps(values) + "\n").encode())


def evaluated(folder: Path) -> None:
    """Sets a run's state to "evaluated", if it was "trained"."""
    status = read(folder)
    if status is not None and status.state == "trained":
        write(folder, status.step, status.of, "evaluated")
