"""Files that are either whole or absent."""

import os
import secrets
from pathlib import Path


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file under a temporary name beside it and renames it into place.

    Args:
        path: the file; its folder must exist. An existing file is replaced.
        data: its contents.

    Raises:
        OSError: the folder cannot be written to or the disk is full; the old file,
            if any, is untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
