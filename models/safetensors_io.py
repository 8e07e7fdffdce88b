"""Configuration and weights of a folder in HF's layout, in safetensors files."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ivon_jax.errors import prefixed
from ivon_jax.models import families
from ivon_jax.models.weights import Tensors

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16")


def read_config(folder: Path) -> families.Config:
    """Reads only `config.json`.

    Raises:
        ValueError: it is missing, damaged, or not implemented.
    """
    with prefixed("config.json"):
        return families.read_config(read_json(folder / "config.json"))


def read_folder(folder: Path) -> tuple[families.Config, Tensors]:
    """Opens `config.json` and `model.safetensors`, or the shards of its index.

    Args:
        folder: a folder written by transformers' `save_pretrained`.

    Returns:
        The configuration, and the tensors, which are read on access.

    Raises:
        ValueError: a file is missing, damaged, or not implemented.
    """
    config = read_config(folder)
    handles = {file.name: _open(file) for file in weight_files(folder)}
    where = _locations(folder, {file: set(h.keys()) for file, h in handles.items()})
    shapes = _shapes(where, handles, families.family_of(config).unused)

    def read(name: str) -> Any:
        # Reopened: pages read from a mapped file count as ours until it is unmapped.
        return _open(folder / where[name]).get_slice(name)

    return config, Tensors(shapes, read)


def weight_files(folder: Path) -> list[Path]:
    """Returns the sorted safetensors files of a model: the single one, or every shard.

    Raises:
        ValueError: there are none, or the index is damaged or names files outside of
            the folder.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise ValueError(
            f"{WEIGHTS} and {INDEX} are missing; pickles (pytorch_model.bin) are never"
            " read: use a revision of the hub with safetensors (ID@refs/pr/1), or save"
            " them again with transformers' save_pretrained"
        )
    names = set(_weight_map(folder).values())
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{INDEX}: its file {name!a:.80} is missing")
    return [folder / name for name in sorted(names)]


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file with one JSON object.

    Raises:
        ValueError: the file is missing, or its content is something else.
    """
    if not path.is_file():
        raise ValueError("no such file")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error!s:.80})") from error
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found a {type(content).__name__}")
    return content


def _weight_map(folder: Path) -> Mapping[str, str]:
    with prefixed(INDEX):
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError("it has no weight_map")
        for name in weight_map.values():
            if not isinstance(name, str) or Path(name).name != name:
                raise ValueError(f"{name!r:.80} is not a file name")
    return weight_map


def _locations(folder: Path, names: Mapping[str, set[str]]) -> Mapping[str, str]:
    """Returns the file of every tensor, given the tensors of every file."""
    if WEIGHTS in names:
        return dict.fromkeys(names[WEIGHTS], WEIGHTS)
    where = _weight_map(folder)
    for name, file in where.items():
        if name not in names[file]:
            raise ValueError(f"{file}: tensor {name!a:.80} of {INDEX} is not in it")
    return where


def _open(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="numpy")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file.name}: {str(error)!a:.160}") from error


def _shapes(
    where: Mapping[str, str], handles: Mapping[str, Any], unused: str
) -> dict[str, tuple[int, ...]]:
    """Returns the shape of every tensor, except unused ones of other dtypes."""
    shapes = {}
    for name, file in where.items():
        part = handles[file].get_slice(name)
        if part.get_dtype() in DTYPES:
            shapes[name] = tuple(part.get_shape())
        elif not re.fullmatch(unused, name):
            legal = ", ".join(DTYPES)
            raise ValueError(
                f"{file}: tensor {name!a:.80} is {part.get_dtype()}, expected {legal}"
            )
    return shapes
