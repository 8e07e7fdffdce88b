"""Checks of configuration fields, and errors as one line."""

from collections.abc import Mapping
from typing import Any


def check(holds: bool, field: str, value: object, legal: str) -> None:
    """Raise a `ValueError` that gives the field, its value and what is legal."""
    if not holds:
        raise ValueError(f"config field {field} is {value!r:.80}, expected {legal}")


def number(field: str, value: Any) -> float:
    """Return a positive number, or raise `ValueError`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    check(is_number and 0 < value < 1e30, field, value, "a positive number")
    return float(value)


def integer(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """Return an integer field, or raise `ValueError`; null means the default."""
    value = either(config.get(field), default)
    check(type(value) is int, field, value, "an integer")
    return value


def boolean(config: Mapping[str, Any], field: str) -> bool:
    """Return a boolean field, false if absent, or raise `ValueError`."""
    value = config.get(field, False)
    check(type(value) is bool, field, value, "true or false")
    return value


def either(value: Any, default: Any) -> Any:
    """Return the value, or the default for null."""
    return default if value is None else value


def one_line(error: BaseException, limit: int = 600) -> str:
    r"""Puts an error's whole text, of whichever library, on one line.

    The cause often stands below a first line that says little.

    Args:
        error: The error.
        limit: Length beyond which the text is cut, which `...` then shows.

    Returns:
        The text, or the error's type if it has none.

    Example:
        >>> one_line(ValueError("none of these:\n  a\n\n  b"))
        'none of these: a b'
    """
    text, name = " ".join(str(error).split()), type(error).__name__
    if not text or isinstance(error, KeyError):  # whose text is the key only
        text = f"{name}: {text}".rstrip(": ")
    return text if len(text) <= limit else f"{text[: limit - 4].rstrip()} ..."
