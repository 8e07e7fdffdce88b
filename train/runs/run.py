"""A run's folder: configuration, metrics and results."""

import datetime
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

import ivon_jax
from ivon_jax._posterior_file import Metadata
from ivon_jax.errors import prefixed, writing
from ivon_jax.files import is_empty, remove_unfinished, write_bytes
from ivon_jax.kinds import Distribution, load_posterior
from ivon_jax.train.config import CompareConfig, TrainConfig
from ivon_jax.train.config_json import ConfigType, from_json, to_json
from ivon_jax.train.runs import identity
from ivon_jax.train.runs.checkpoint import check_path
from ivon_jax.train.runs.progress import say

CONFIG, METRICS, POSTERIOR = "config.json", "metrics.jsonl", "posterior.safetensors"
BEST = "best.safetensors"
CHECKPOINTS = "checkpoints"
PACKAGES = ("jax", "flax", "optax", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions that can change a result."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "ivon-jax": ivon_jax.__version__,
        "python": platform.python_version(),
        **found,
    }


def write_json(path: Path, values: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_bytes(path, (json.dumps(values, indent=2) + "\n").encode())


def check_new(out: Path, beside: Collection[str] = ()) -> None:
    """Checks that a folder can become that of a new run, without making it.

    Args:
        out: the folder.
        beside: names of files that may already be in it.

    Raises:
        ValueError: it exists and is not an empty folder, or could not be made.
    """
    if out.parts and re.fullmatch(r"[a-z][a-z0-9+.-]+:", out.parts[0]):
        raise ValueError(f"{out}: is a URL; choose a folder of a mounted file system")
    there = next(path for path in (out, *out.parents) if os.path.lexists(path))
    if not there.is_dir():
        found = "a dangling link" if there.is_symlink() else "a file"
        raise ValueError(f"{out}: {there} is {found}; choose a new folder")
    if there == out and not is_empty(out, beside):
        raise ValueError(f"{out}: holds another run; choose a new folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{out}: {there} cannot be written to; choose a new folder")


def check_out(out: Path, *, resume: bool) -> None:
    """Checks the folder of a run before anything is loaded.

    Args:
        out: the folder.
        resume: whether it may hold a run to resume.

    Raises:
        ValueError: it cannot be the folder of a new or resumed run.
    """
    if resume and (out / CONFIG).exists():
        if not os.access(out, os.W_OK | os.X_OK):
            raise ValueError(f"{out}: cannot be written to")
    else:
        if resume and out.is_dir():
            remove_unfinished(out)
        check_new(out)
    check_path(out / CHECKPOINTS)


def create(out: Path) -> None:
    """Makes the folder of a new run.

    Raises:
        ValueError: it exists and is not empty, or cannot be made.
    """
    check_new(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{out}: cannot be made ({error.strerror})") from None


def start(
    out: Path,
    config: TrainConfig | CompareConfig,
    metadata: dict[str, Any],
    *,
    resume: bool,
) -> None:
    """Makes a run's folder, or checks that it is this run's.

    Args:
        out: the folder.
        config: configuration of a training run, resolved, or of a comparison.
        metadata: fingerprints and counts.
        resume: whether to resume the run in the folder, if there is one.

    Raises:
        ValueError: it holds other files, or a run of other settings or data.
    """
    if resume:
        remove_unfinished(out)
    if resume and (out / CONFIG).exists():
        old, recorded = _read_config(out, type(config))
        before = identity.describe(old, recorded)
        identity.check_same(out, before, identity.describe(config, metadata))
        metadata = metadata | {"started": recorded.get("started")}
    else:
        create(out)
    write_config(out, config, **metadata)


def cut_metrics(folder: Path, steps: int) -> None:
    """Keeps the whole lines of the first `steps` steps; later ones are taken again.

    A host that failed may have lost lines, or a part of one, of steps that are in a
    checkpoint. Nothing that is trained depends on them: it is said, and no more.
    """
    path = folder / METRICS
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if _step_of(line) in range(1, steps + 1)]
    write_bytes(path, b"".join(kept))
    if lost := steps - len(kept):
        say(f"{path}: the lines of {lost} of the first {steps} steps are lost")


def _step_of(line: bytes) -> int | None:
    """Returns the step of a line of metrics; None if it is not whole."""
    with suppress(ValueError, TypeError, KeyError):
        if line.endswith(b"\n"):
            return int(json.loads(line)["step"])
    return None


def keep_metrics(folder: Path) -> None:
    """Waits until the lines of all steps so far are on the disk.

    Raises:
        OSError: they cannot be written.
    """
    path = folder / METRICS
    with writing(path), path.open("rb") as file:
        os.fsync(file.fileno())


def write_config(
    folder: Path, config: TrainConfig | CompareConfig, **metadata: Any
) -> None:
    """Writes the run's configuration and metadata.

    Args:
        folder: the run's folder.
        config: configuration of a training run, resolved, or of a comparison.
        **metadata: fingerprints and counts.
    """
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    values = {"config": to_json(config), "started": started, "versions": versions()}
    write_json(folder / CONFIG, values | metadata)


def read_config(folder: Path) -> tuple[TrainConfig, dict[str, Any]]:
    """Reads a run's configuration and metadata.

    Raises:
        ValueError: the folder is no run, or its configuration is damaged.
    """
    return _read_config(folder, TrainConfig)


def _read_config(
    folder: Path, cls: type[ConfigType]
) -> tuple[ConfigType, dict[str, Any]]:
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict) or "config" not in values:
            raise ValueError("it has no key 'config'")
        return from_json(completed(values.pop("config")), cls), values
    except OSError:
        raise ValueError(f"{folder}: not a run ({CONFIG} is missing)") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not the configuration of a run ({error})") from None


def completed(config: Any) -> Any:
    """Adds settings that an older run's configuration does not have."""
    for name, value in identity.BEFORE.items():
        part, key = name.split(".")
        if isinstance(config, dict) and isinstance(config.get(part), dict):
            config = config | {part: {key: value} | config[part]}
    return config


def read_posterior(
    folder: Path, *, best: bool = False
) -> tuple[Distribution, Metadata]:
    """Reads a run's posterior.

    Args:
        folder: the run's folder.
        best: whether to read the best scored posterior instead of the last one.

    Returns:
        The posterior and its metadata: step, and lambda (`ess`) if the method has one.

    Raises:
        ValueError: the run has none.
    """
    if best and not (folder / BEST).exists():
        raise ValueError(f"best: {folder} has no {BEST}; train with --eval-steps")
    return load_posterior(folder / (BEST if best else POSTERIOR))


def write_predictions(
    folder: Path,
    name: str,
    answer: str,
    predictions: Float[np.ndarray, "s n c"],
    labels: Int[np.ndarray, "*n"] | Float[np.ndarray, " n"],
) -> None:
    """Writes the predictions of each draw, and the labels.

    Args:
        folder: the run's folder.
        name: name of predictor and split, part of the file's name.
        answer: the kind of answer, "class", "number" or "text".
        predictions: log-probabilities of the classes or tokens, or numbers, of each
            draw.
        labels: the right classes, numbers or tokens.
    """
    from safetensors.numpy import save

    tensors = {
        "numbers" if answer == "number" else "log_probs": predictions,
        "labels": labels,
    }
    write_bytes(folder / f"predictions-{name}.safetensors", save(tensors))


def read_predictions(
    folder: Path, name: str
) -> tuple[Float[np.ndarray, "s n c"], Int[np.ndarray, "*n"] | Float[np.ndarray, " n"]]:
    """Reads the predictions of each draw, and the labels.

    Args:
        folder: the run's folder.
        name: as in `write_predictions`.

    Raises:
        ValueError: the file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    path = folder / f"predictions-{name}.safetensors"
    wrong = (OSError, SafetensorError, KeyError, StopIteration)
    with prefixed(f"{path}: not the predictions of a run", wrong):
        tensors = load_file(path)
        labels = tensors.pop("labels")
        return next(iter(tensors.values())), labels
