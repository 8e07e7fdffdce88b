"""Files and folders that appear whole or not at all."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from ivon_jax.errors import writing


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it and renames it into place.

    Args:
        path: the file; its folder must exist. An existing file is replaced.
        data: its contents.

    Raises:
        OSError: the file cannot be written; an old one is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    with writing(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def remove_unfinished(folder: Path) -> None:
    """Removes temporary files that killed processes left in a folder."""
    for path in folder.glob(f".{'[0-9a-f]' * 16}.tmp"):
        if path.is_file():
            path.unlink()


def is_empty(folder: Path, beside: Collection[str] = ()) -> bool:
    """Returns whether a folder is empty, but for a new volume's ``lost+found``.

    Args:
        folder: the folder.
        beside: names of files that may be there.
    """
    return all(path.name in {"lost+found", *beside} for path in folder.iterdir())


@contextlib.contextmanager
def new_folder(path: str | Path, beside: Collection[str] = ()) -> Iterator[Path]:
    """Makes a folder under a temporary name and moves it into place at the end.

    Args:
        path: the folder. It may exist if it is empty, also as a mounted volume, a link
            or the working directory. Its parents are made.
        beside: names of files that may already be in it.

    Yields:
        The temporary folder to fill; it is removed if anything is raised.

    Raises:
        OSError: it cannot be made, or `path` is a file or not empty.
    """
    path = Path(path)
    exists = os.path.lexists(path)
    if exists and not is_empty(path, beside):
        raise OSError(f"{path}: is not empty; choose a new folder")
    # An existing folder cannot always be replaced, and its parent may be read-only.
    parent = path if exists else path.parent
    temporary = parent / f".{secrets.token_hex(8)}.tmp"
    with writing(path):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        if exists:
            _move_up(temporary)
        else:
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _move_up(folder: Path) -> None:
    """Moves a folder's content into its parent, all of it or nothing."""
    parent = folder.parent
    names = sorted(path.name for path in folder.iterdir())
    taken = [name for name in names if os.path.lexists(parent / name)]
    if taken:
        raise OSError(f"{parent / taken[0]}: was made by another program meanwhile")
    try:
        for name in names:
            (folder / name).rename(parent / name)
        folder.rmdir()
    except BaseException:
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # not moved yet
                (parent / name).rename(folder / name)
        raise
