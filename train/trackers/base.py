"""The protocol of trackers, and what they share."""

import importlib.util
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from ivon_jax.files import write_bytes

# The project of runs in trackers that have projects, unless theirs is set.
PROJECT = "ivon-jax"
IDENTITIES = "trackers.json"


@runtime_checkable
class Tracker(Protocol):
    """Takes a run's numbers; constructed with the run's folder."""

    def start(self, config: Mapping[str, Any], step: int) -> None:
        """Starts, or resumes after a step.

        Args:
            config: the run's configuration and metadata, see `identity.describe`.
            step: number of previous steps.
        """
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a step's numbers, which may be not finite."""
        ...

    def finish(self) -> None:
        """Ends, also after an error."""
        ...


class Optional(Tracker, Protocol):
    """A tracker that is a package of its own, which may be absent.

    Attributes:
        package: the module to import; the extra has the tracker's name.
    """

    package: ClassVar[str]

    def __init__(self, out: Path) -> None: ...


def check_installed(names: Sequence[str], trackers: Mapping[str, Any]) -> None:
    """Checks that trackers are known, named once and installed.

    Args:
        names: names of trackers.
        trackers: the trackers by name.

    Raises:
        ValueError: one is not.
    """
    for name in names:
        if name not in trackers:
            legal = ", ".join(trackers)
            raise ValueError(f"trackers: {name!r} is not one of {legal}")
        if names.count(name) > 1:
            raise ValueError(f"trackers: {name} is named twice")
        if importlib.util.find_spec(trackers[name].package) is None:
            raise ValueError(
                f"trackers: {name} is not installed; pip install ivon-jax[{name}]"
            )


def identity(
    out: Path, name: str, new: Callable[[], str] = lambda: uuid.uuid4().hex[:12]
) -> str:
    """Returns a tracker's name of a run, the same when the run is resumed.

    Args:
        out: the run's folder.
        name: the tracker.
        new: makes the name of a new run.
    """
    path = out / IDENTITIES
    known = json.loads(path.read_text()) if path.exists() else {}
    if name not in known:
        known[name] = new()
        write_bytes(path, (json.dumps(known) + "\n").encode())
    return str(known[name])
