"""The evaluations in a run's folder, read back."""

import functools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ivon_jax.errors import prefixed
from ivon_jax.train.runs import run

Key = TypeVar("Key")


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        path: its file.
        values: everything in it: the rows, and what they are of.
    """

    path: Path
    values: Mapping[str, Any]

    @property
    def of(self) -> tuple[bool | None, int | None]:
        """Whether the posterior is the best one, and its training step.

        Version 0.1.0 recorded neither.
        """
        return self.values.get("best"), self.values.get("step")

    @property
    def foreign(self) -> str:
        """Name of the foreign examples that it scored too; empty if there are none."""
        return self.path.stem.partition("-ood-")[2]

    def rows_by(self, key: Callable[[dict[str, Any]], Key]) -> dict[Key, Any]:
        """Returns the rows by a function of them; of equal keys, the first.

        Raises:
            ValueError: a row lacks what the function reads.
        """
        found: dict[Key, Any] = {}
        with _named(self.path):
            for row in self.values["rows"]:
                found.setdefault(key(row), row)
        return found


def read_evaluations(folder: Path) -> Iterator[Evaluation]:
    """Reads the evaluations of a run, by file name.

    Args:
        folder: the run's folder.

    Raises:
        ValueError: a file is damaged.
    """
    for path in sorted(folder.glob("evaluation-*.json")):
        with _named(path):
            values = json.loads(path.read_text())
            if not isinstance(values["rows"], list):
                raise ValueError("rows is not a list")
        yield Evaluation(path, values)


def latest_evaluations(folder: Path) -> Iterator[Evaluation]:
    """Reads the evaluations of a run's posteriors, without those of earlier steps.

    Args:
        folder: the run's folder.

    Raises:
        ValueError: a file is damaged.
    """
    step_of = functools.cache(functools.partial(_step, folder))
    for one in read_evaluations(folder):
        best, step = one.of
        if best is None or step == step_of(best):
            yield one


def _step(folder: Path, best: bool) -> int | float | None:
    """Returns the step of the last or the best posterior, if it is known."""
    if not (folder / (run.BEST if best else run.POSTERIOR)).exists():
        return None
    return run.read_posterior(folder, best=best)[1].get("step")


def _named(path: Path) -> Any:
    wrong = (OSError, ValueError, KeyError, TypeError, AttributeError)
    return prefixed(f"{path}: not an evaluation", wrong)
