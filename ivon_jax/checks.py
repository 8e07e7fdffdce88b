"""Range checks of arguments, in one wording."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike


class Rule(NamedTuple):
    """A range: its text in messages, and its test."""

    wanted: str
    legal: Callable[[float], bool]


POSITIVE = Rule("> 0", lambda value: value > 0)
NOT_NEGATIVE = Rule(">= 0", lambda value: value >= 0)
AT_LEAST_ONE = Rule(">= 1", lambda value: value >= 1)
AT_LEAST_TWO = Rule(">= 2", lambda value: value >= 2)
DECAY = Rule("in [0, 1)", lambda value: 0 <= value < 1)
INSIDE = Rule("in (0, 1)", lambda value: 0 < value < 1)
RATIO = Rule("in [0, 1]", lambda value: 0 <= value <= 1)
SHARE = Rule("in (0, 1]", lambda value: 0 < value <= 1)
FINITE_POSITIVE = Rule("a number > 0", lambda value: 0 < value < math.inf)
FINITE_NOT_NEGATIVE = Rule("a number >= 0", lambda value: 0 <= value < math.inf)


def check(name: str, value: ArrayLike, rule: Rule) -> None:
    """Checks a number of Python or NumPy; traced and injected values are not checked.

    Args:
        name: name of the argument or field.
        value: its value.
        rule: its range.

    Raises:
        ValueError: the number is out of range.

    Example:
        >>> check("rate", 0.5, POSITIVE)
    """
    numbers = int | float | np.integer | np.floating
    if isinstance(value, numbers) and not rule.legal(float(value)):
        raise ValueError(f"{name}: {value} is not {rule.wanted}")
