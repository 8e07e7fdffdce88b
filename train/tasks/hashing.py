"""Choices of scripted tasks, the same on every platform and with every library."""

import hashlib


def choose(count: int, *key: object) -> int:
    """Returns a number below `count`, a hash of the key.

    Example:
        >>> choose(10, "sums", 3) == choose(10, "sums", 3)
        True
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8], "big") % count
