"""Comparisons of several seeds as one small file: every number, settings, versions."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ivon_jax.errors import prefixed
from ivon_jax.train.config_json import to_json
from ivon_jax.train.report import tables
from ivon_jax.train.runs import identity, run

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


def unlike(directories: Sequence[Path]) -> Iterator[str]:
    """Yields a line for each setting that comparisons do not share, besides the seed.

    Nothing is known of comparisons without the folders of their runs.

    Args:
        directories: folders written by ``ivon-jax compare``, whose results were read.
    """
    first, *others = map(_settings, directories)
    for directory, found in zip(directories[1:], others, strict=True):
        for name in [x for x in found if x in first and found[x] != first[x]]:
            was = f"{first[name]} of {directories[0]}"
            yield f"{name}: {found[name]} of {directory}, {was}"


def _settings(directory: Path) -> dict[str, Any]:
    """Returns what the runs of a comparison depend on, by method and name."""
    methods = json.loads((directory / "results.json").read_text())["seconds"]
    found: dict[str, Any] = {}
    for method in methods:
        with contextlib.suppress(ValueError):
            config, recorded = run.read_config(directory / method)
            kept = {"model_fingerprint": recorded.get("model_fingerprint")}
            if config.data.validation_examples is None:  # else they are of the seed
                kept["eval_fingerprint"] = recorded.get("eval_fingerprint")
            for name, value in identity.describe(config, kept).items():
                if name != "seed" and name not in identity.MAY_CHANGE:
                    found[f"{method} {name.rpartition('.')[2]}"] = value
    return found
