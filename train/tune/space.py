"""The hyper-parameters to search, and their values."""

import dataclasses
import itertools
import json
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.config_json import field_types, value_of
from ivon_jax.train.data.fields import shown

# Groups of a run's configuration whose fields can be searched.
GROUPS = ("hyper", "lora")


class Values(NamedTuple):
    """Values to choose from."""

    values: tuple[Any, ...]

    @property
    def corners(self) -> tuple[Any, ...]:
        """All of them."""
        return self.values


class Range(NamedTuple):
    """An interval, both ends of which are legal.

    Attributes:
        low: the lower end.
        high: the upper end.
        log: whether it is even in the logarithm.
    """

    low: float
    high: float
    log: bool

    @property
    def corners(self) -> tuple[float, float]:
        """Its ends."""
        return self.low, self.high


Space = Mapping[str, Values | Range]


def read_space(search: Sequence[str], config: TrainConfig) -> Space:
    """Reads what is to be searched.

    Args:
        search: NAME=V1,V2,... for values, NAME=LOW..HIGH for an interval, with :log at
            its end for one that is even in the logarithm.
        config: the run; its method's hyper-parameters, and the adapters', are legal.

    Returns:
        The values by name.

    Raises:
        ValueError: a name is unknown or there twice, or a value is illegal.

    Example:
        >>> read_space(["rank=4,8"], TrainConfig())
        {'rank': Values(values=(4, 8))}
        >>> read_space(["learning_rate=1e-4..1e-2:log"], TrainConfig())
        {'learning_rate': Range(low=0.0001, high=0.01, log=True)}
    """
    types = {k: v for group in GROUPS for k, v in field_types_of(config, group).items()}
    found: dict[str, Values | Range] = {}
    for text in search:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if name not in types:
            raise ValueError(f"search: {shown(name)} is none of {', '.join(types)}")
        if not (equals and values) or name in found:
            raise ValueError(f"search: {text} is not one NAME=VALUES of {name}")
        found[name] = _choice(name, values, types[name])
    if not found:
        raise ValueError("search: name at least one hyper-parameter")
    return found


def field_types_of(config: TrainConfig, group: str) -> dict[str, Any]:
    """Returns the types of a group's fields that have a single value."""
    hints = field_types(type(getattr(config, group)))
    return {k: v for k, v in hints.items() if typing.get_origin(v) is not tuple}


def _choice(name: str, text: str, hint: Any) -> Values | Range:
    if ".." not in text:
        values = tuple(_value(name, part, hint) for part in text.split(","))
        return Values(tuple(dict.fromkeys(values)))
    low, _, rest = text.partition("..")
    high, colon, scale = rest.partition(":")
    ends = [_value(name, part, hint) for part in (low, high)]
    numbers = all(type(end) in (int, float) for end in ends)
    if not numbers or ends[0] >= ends[1] or (colon and scale != "log"):
        raise ValueError(f"search: {name}: {text} is not LOW..HIGH or LOW..HIGH:log")
    if colon and ends[0] <= 0:
        raise ValueError(f"search: {name}: {text} has no logarithm at {low}")
    return Range(ends[0], ends[1], log=bool(colon))


def _value(name: str, text: str, hint: Any) -> Any:
    """Reads a value; none is that of the task's preset."""
    text = text.strip()
    try:
        value = None if text.lower() == "none" else json.loads(text)
    except ValueError:
        value = text
    value = value_of(hint, value, f"search: {name}")
    is_float = float in (hint, *typing.get_args(hint))
    return float(value) if is_float and type(value) is int else value


def place(config: TrainConfig, point: Mapping[str, Any]) -> TrainConfig:
    """Returns the run of a point.

    Args:
        config: the run.
        point: values by name.
    """
    groups = {}
    for group in GROUPS:
        own = {k: v for k, v in point.items() if k in field_types_of(config, group)}
        groups[group] = dataclasses.replace(getattr(config, group), **own)
    return dataclasses.replace(config, **groups)


def name_of(method: str, point: Mapping[str, Any]) -> str:
    """Returns the name of a point's folder.

    >>> name_of("adam", {"learning_rate": 1e-4, "rank": 8})
    'adam-learning_rate-0.0001-rank-8'
    """
    return "-".join([method, *(f"{k}-{v}" for k, v in point.items())])


def grid_of(space: Space) -> Iterator[dict[str, Any]]:
    """Yields the points of a grid.

    Raises:
        ValueError: a hyper-parameter has an interval, which has no grid.
    """
    for name, choice in space.items():
        if isinstance(choice, Range):
            raise ValueError(f"search: {name}: a grid has values, not an interval")
    for values in itertools.product(*(choice.corners for choice in space.values())):
        yield dict(zip(space, values, strict=True))


def check_space(
    space: Space, config: TrainConfig, preset: str, *, grid: bool, most: int = 10_000
) -> None:
    """Checks every value, before anything is loaded: of a grid, every point.

    Args:
        space: what is searched.
        config: the run.
        preset: the task's preset.
        grid: whether it is a grid.
        most: limit of a grid's points.

    Raises:
        ValueError: a value is out of range, or two do not go together.
    """
    if grid:
        points = grid_of(space)
        if (size := math.prod(len(x.corners) for x in space.values())) > most:
            raise ValueError(f"search: a grid of {size} points, at most {most}")
    else:
        first = {name: choice.corners[0] for name, choice in space.items()}
        points = (
            first | {name: value}
            for name, choice in space.items()
            for value in choice.corners
        )
    for point in points:
        resolve(place(config, point), preset, num_examples=1)
