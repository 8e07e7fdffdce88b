"""Ranges of arguments: one wording for all."""

import math
from collections.abc import Callable
from typing import NamedTuple

from jax.typing import ArrayLike


class Rule(NamedTuple):
    """A range: how it reads in a message, and the test."""

    wanted: str
    legal: Callable[[float], bool]


POSITIVE = Rule("> 0", lambda value: value > 0)
NOT_NEGATIVE = Rule(">= 0", lambda value: value >= 0)
AT_LEAST_ONE = Rule(">= 1", lambda value: value >= 1)
DECAY = Rule("in [0, 1)", lambda value: 0 <= value < 1)
RATIO = Rule("in [0, 1]", lambda value: 0 <= value <= 1)
FINITE_POSITIVE = Rule("a number > 0", lambda value: 0 < value < math.inf)
FINITE_NOT_NEGATIVE = Rule("a number >= 0", lambda value: 0 <= value < math.inf)


def check(name: str, value: ArrayLike, rule: Rule) -> None:
    """Checks a Python number; a traced or injected one cannot be looked at.

    Args:
        name: of the argument or field.
        value: what was given.
        rule: its range.

    Raises:
        ValueError: the number is outside of the range.

    Example:
        >>> check("rate", 0.5, POSITIVE)
    """
    if isinstance(value, int | float) and not rule.legal(value):
        raise ValueError(f"{name}: {value} is not {rule.wanted}")
