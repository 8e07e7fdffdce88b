"""Fields of HF's `config.json`: their types, and one wording for illegal values."""

from collections.abc import Mapping
from typing import Any


def require(holds: bool, field: str, value: object, legal: str) -> None:
    """Raises `ValueError`, naming field, value and legal values, unless `holds`."""
    if not holds:
        raise ValueError(f"config field {field} is {value!r:.80}, expected {legal}")


def number(field: str, value: Any) -> float:
    """Returns a positive number, or raises `ValueError`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    require(is_number and 0 < value < 1e30, field, value, "a positive number")
    return float(value)


def integer(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    """Returns an integer field, or raises `ValueError`; null means the default."""
    value = either(config.get(field), default)
    require(type(value) is int, field, value, "an integer")
    return value


def boolean(config: Mapping[str, Any], field: str) -> bool:
    """Returns a boolean field, false if absent, or raises `ValueError`."""
    value = config.get(field, False)
    require(type(value) is bool, field, value, "true or false")
    return value


def either(value: Any, default: Any) -> Any:
    """Returns the value, or the default for null."""
    return default if value is None else value
