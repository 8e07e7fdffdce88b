"""The record of a fit, in the folder of the run that it made."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from ivon_jax.errors import prefixed
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.registry import predictor_of
from ivon_jax.train.runs.run import versions, write_json

FIT = "fit.json"
# How a run's held-out examples were used.
HeldOut = Literal["unseen", "fitted on", "trained on"]


class Record(NamedTuple):
    """The record of a fit.

    Attributes:
        fit: name of the fit.
        method: name of the fitted run in tables, as ``temperature(adam)``.
        options: options of the fit.
        sources: path and sha256 of the posterior of each source.
        seconds: time of fitting.
        numbers: what was found, as JSON values.
        predictors: the ways to predict that the fit is for.
        held_out: how the held-out examples of the first source were used.
    """

    fit: str
    method: str
    options: Mapping[str, Any]
    sources: Sequence[Mapping[str, str]]
    seconds: float
    numbers: Mapping[str, Any]
    predictors: Sequence[Predictor]
    held_out: HeldOut


def write(folder: Path, record: Record) -> None:
    """Writes the record, whole or not at all."""
    rows = [predictor.row(record.method) for predictor in record.predictors]
    values = record._asdict() | {"predictors": rows, "versions": versions()}
    write_json(folder / FIT, values)


def read(folder: Path) -> Record | None:
    """Reads the record of a run's folder; None if the run was trained.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FIT
    if not path.exists():
        return None
    wrong = (ValueError, KeyError, TypeError, AttributeError)
    with prefixed(f"{path}: not the record of a fit", wrong):
        values = json.loads(path.read_text())
        values.pop("versions")
        values["predictors"] = [predictor_of(row) for row in values["predictors"]]
        record = Record(**values)
        if record.held_out not in get_args(HeldOut):
            raise ValueError(f"held_out is {record.held_out!r}")
    return record
