"""Help texts of options, and the values of one that has a form of its own."""

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


def steps_of(text: str | None, steps: int) -> range:
    """Reads which steps are to be traced.

    Args:
        text: START:STEPS, from 1; None for no step.
        steps: number of steps of the run.

    Raises:
        ValueError: it is of another form, or not within the run.

    Example:
        >>> steps_of("10:3", 100)
        range(10, 13)
    """
    if text is None:
        return range(0)
    first, colon, count = text.partition(":")
    if not (colon and first.isdecimal() and count.isdecimal()):
        raise ValueError(f"profile: {text} is not START:STEPS, as 10:3")
    traced = range(int(first), int(first) + int(count))
    if not traced or traced.start < 1 or traced.stop > steps + 1:
        raise ValueError(f"profile: {text} is not within the {steps} steps of the run")
    return traced
