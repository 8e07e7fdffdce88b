"""The file of a posterior: safetensors with a format, version and checksum header."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ivon_jax.files import write_bytes

FORMAT = "ivon-jax posterior"
VERSION = "1"
# The kind of a file without one: the first release wrote no kind.
FIRST_KIND = "gaussian"
FACT = "fact"

Groups = dict[str, dict[str, Any]]
Metadata = dict[str, int | float]


class Saveable:
    """Base class of the kinds of posterior: saving, and defaults.

    Attributes:
        kind: its name in files.
        has_members: whether it has several members, whose averaged parameters are not
            a sensible model.
    """

    kind: ClassVar[str]
    has_members: ClassVar[bool] = False

    @property
    def size(self) -> int | None:
        """Number of different draws; None if there is no limit."""
        return None

    def to_groups(self) -> Groups:
        """Returns the arrays for a file, by group and leaf path."""
        raise NotImplementedError

    def save(self, path: str | Path, **metadata: int | float) -> None:
        """Writes a safetensors file that `ivon_jax.load_posterior` reads.

        Its header has a format, a version and a checksum.

        Args:
            path: the file. It appears whole or not at all.
            **metadata: numbers by name, such as the training step.

        Raises:
            ValueError: the parameters are not trees of nested dicts.
        """
        write(path, self.kind, self.to_groups(), metadata)


def write(path: str | Path, kind: str, groups: Groups, metadata: Metadata) -> None:
    """Writes a posterior; the file appears whole or not at all.

    Args:
        path: the file.
        kind: kind of posterior.
        groups: its arrays by group and leaf path.
        metadata: numbers by name.
    """
    from safetensors.numpy import save

    tensors = {
        f"{group}:{name}": np.asarray(leaf)
        for group, leaves in (groups | {FACT: metadata}).items()
        for name, leaf in leaves.items()
    }
    header = {"format": FORMAT, "version": VERSION, "sha256": _digest(tensors)}
    if kind != FIRST_KIND:
        header["kind"] = kind
    write_bytes(path, _in_order(save(tensors, header)))


def read(path: str | Path) -> tuple[str, Groups, Metadata]:
    """Reads a file of `write`.

    Args:
        path: the file.

    Returns:
        The kind, the arrays by group and leaf path, and the metadata.

    Raises:
        ValueError: the file is missing, not a posterior, of another version, truncated
            or altered.
    """
    kind, tensors = _read_tensors(Path(path))
    groups: Groups = {}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition(":")
        groups.setdefault(group, {})[name] = tensor
    metadata = groups.pop(FACT, {})
    for name, leaf in metadata.items():
        if leaf.shape or not np.isfinite(leaf):
            raise ValueError(f"fact {name!r} is not a finite number")
    return kind, groups, {name: leaf.item() for name, leaf in metadata.items()}


def check_groups(groups: Mapping[str, Any], legal: tuple[str, ...]) -> None:
    """Checks that a file has only the groups of its kind.

    Raises:
        ValueError: it has others.
    """
    for group, leaves in groups.items():
        if group not in legal:
            raise ValueError(f"unknown tensor {f'{group}:{min(leaves)}'!r}")


def check_finite(group: str, leaves: Mapping[str, np.ndarray]) -> None:
    """Checks that arrays are finite.

    Raises:
        ValueError: one has NaN or infinite entries.
    """
    for name, leaf in leaves.items():
        if not np.all(np.isfinite(leaf)):
            raise ValueError(f"{group} of {name!r} is not finite")


def _in_order(data: bytes) -> bytes:
    """Sorts the header, whose order is random: equal posteriors give equal files."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + data[end:]


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), tensor.shape]).encode())
        digest.update(np.ascontiguousarray(tensor).tobytes())
    return digest.hexdigest()


def _read_tensors(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError("not a file" if path.exists() else "no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ValueError(f"not a readable safetensors file ({str(error)!a})") from None
    if header.get("format") != FORMAT:
        raise ValueError(f"not an {FORMAT} file")
    if header.get("version") != VERSION:
        raise ValueError(
            f"version {header.get('version')!r}, this release reads {VERSION!r}"
        )
    if header.get("sha256") != _digest(tensors):
        raise ValueError("checksum differs, the file was altered")
    return header.get("kind", FIRST_KIND), tensors
