"""Checks of configuration fields: each failure is one line that names the field."""

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
