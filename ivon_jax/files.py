"""Files and folders that are either whole or absent."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it and renames it into place.

    Args:
        path: the file; its folder must exist. An existing file is replaced.
        data: its contents.

    Raises:
        OSError: the folder cannot be written to or the disk is full; it names the
            file. The old one, if any, is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with naming(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Names the file that cannot be written: the system names none, or another."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"{path}: cannot be written ({reason})") from error


def remove_unfinished(folder: Path) -> None:
    """Removes what processes that were killed had begun to write to a folder."""
    for path in folder.glob(f".{'[0-9a-f]' * 16}.tmp"):
        if path.is_file():
            path.unlink()


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Makes a folder under a temporary name and renames it into place at the end.

    Args:
        path: the folder; it may exist if it is empty. Its parents are made.

    Yields:
        The temporary folder to fill; it is removed if anything is raised.

    Raises:
        OSError: it cannot be made, or `path` is a file or not empty.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
