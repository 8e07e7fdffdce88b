"""Help texts of options."""

from collections.abc import Mapping
from typing import Any

import tyro

Presets = Mapping[str, Mapping[str, Any]]


def unset(metavar: str, meaning: str) -> Any:
    """Describes an option whose default is None.

    Args:
        metavar: type of the value, as shown.
        meaning: effective default.

    Returns:
        An annotation for tyro.
    """
    hint = f"(default: {meaning})"
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


def preset(metavar: str, presets: Presets, name: str) -> Any:
    """Describes a hyper-parameter whose default depends on the task.

    Args:
        metavar: type of the value, as shown.
        presets: values by preset and hyper-parameter.
        name: the hyper-parameter.

    Returns:
        An annotation for tyro.
    """
    shown = [
        f"{key}: {values[name]:g}" for key, values in presets.items() if name in values
    ]
    return unset(metavar, "; ".join(shown) or "none")
