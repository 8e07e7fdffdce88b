"""Comparisons of several seeds as one small file: every number, settings, versions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ivon_jax.errors import prefixed
from ivon_jax.train.config_json import to_json
from ivon_jax.train.report import tables
from ivon_jax.train.runs import run

# Digits after the point: more than the chance of a run leaves.
DIGITS = 6


def write(path: Path, directories: Sequence[Path], note: str = "") -> None:
    """Writes the numbers of comparisons that differ by seed.

    Args:
        path: the JSON file; one that exists is replaced.
        directories: folders written by ``ivon-jax compare``.
        note: kept in the file, as the commit that was measured.

    Raises:
        ValueError: see `tables.read_comparisons`; or a run's folder is missing.
    """
    run.write_json(path, collected(directories, note))


def collected(directories: Sequence[Path], note: str = "") -> dict[str, Any]:
    """Returns the contents of the file; see `write`.

    ``rows`` has for each row its name and, by column, a list of the seeds' numbers.
    ``hyper`` has the resolved hyper-parameters of each method of the first seed.
    """
    runs = tables.read_comparisons(directories)
    with prefixed("directories: not the results of comparisons", (OSError, KeyError)):
        results = [json.loads((x / "results.json").read_text()) for x in directories]
        trained = {
            k: run.read_config(directories[0] / k)[0] for k in results[0]["seconds"]
        }
    first = to_json(next(iter(trained.values())))
    rows = [
        {k: v if k == "row" else [round(x, DIGITS) for x in v] for k, v in row.items()}
        for row in tables.over_seeds(runs)
    ]
    return {
        **{name: results[0][name] for name in tables.ALIKE},
        "seeds": [one["seed"] for one in results],
        "note": note,
        "versions": results[0]["versions"],
        "data": {k: v for k, v in first["data"].items() if v not in (None, [])},
        "lora": first["lora"],
        "base": first["base"],
        "hyper": {name: to_json(config)["hyper"] for name, config in trained.items()},
        "rows": rows,
    }
