"""The diagnosis of a run's hyper-parameters, in its folder and on stderr."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ivon_jax.diagnostics import QUANTILES, Diagnosis
from ivon_jax.train.runs import run
from ivon_jax.train.runs.progress import say

DIAGNOSTICS = "diagnostics.json"


def record(folder: Path, diagnosis: Diagnosis) -> None:
    """Writes a diagnosis to ``diagnostics.json``, and prints it with its advice.

    Args:
        folder: the run's folder.
        diagnosis: that of the last step.
    """
    found: Diagnosis = jax.tree.map(np.asarray, jax.device_get(diagnosis))
    values = {name: _json(value) for name, value in found._asdict().items()}
    advice = {"quantiles": QUANTILES, "advice": found.advice()}
    run.write_json(folder / DIAGNOSTICS, values | advice)
    say("\n".join(found.lines()))


def _json(value: Any) -> Any:
    """Returns a number or a list; null for what is not finite."""
    if value.ndim:
        return [_json(entry) for entry in value]
    return value.item() if math.isfinite(value) else None
