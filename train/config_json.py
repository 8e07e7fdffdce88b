"""Configurations as JSON, with every part checked on reading."""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from ivon_jax.train.config import CompareConfig, Hypers, RunConfig, TrainConfig
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.methods.registry import DEFAULT_METHOD, METHODS

ConfigType = TypeVar("ConfigType")


def to_json(options: Any) -> dict[str, Any]:
    """Returns a configuration, or other options, as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(options), default=str))


def from_json(values: Any, cls: type[ConfigType]) -> ConfigType:
    """Rebuilds a configuration.

    Args:
        values: values from `to_json`.
        cls: class of the configuration.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or out of range.
    """
    return value_of(cls, values, "config")


def field_types(cls: Any) -> dict[str, Any]:
    """Returns the type of every field of a dataclass."""
    hints = typing.get_type_hints(cls)  # those of class variables too
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _fields(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Returns the type of every field; `hyper` has the method's own type."""
    hints = field_types(cls)
    if cls is TrainConfig:
        name = values.get("method", DEFAULT_METHOD)
        if isinstance(name, str) and name in METHODS:
            hints["hyper"] = METHODS[name].hyper_type
    return hints


def _upgraded(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Converts configurations of older versions.

    Those of 0.1.0 had the hyper-parameters of all methods in every run, those of other
    methods None, and `noise` beside them; in a comparison the methods were top-level
    fields. Until rows had no padding any more, `pack` was the number of texts in one.
    """
    values = dict(values)
    if issubclass(cls, RunConfig):
        values.pop("pack", None)
    if cls is TrainConfig and "noise" in values:
        noise, hyper = values.pop("noise"), values.get("hyper", {})
        has_noise = hasattr(_fields(cls, values)["hyper"], "noise")
        if isinstance(hyper, dict) and (has_noise or noise != "shared"):
            values["hyper"] = hyper | {"noise": noise}
    if cls is CompareConfig and "hyper" not in values:
        known = [field.name for field in dataclasses.fields(Hypers)]
        values["hyper"] = {k: values.pop(k) for k in known if k in values}
    if issubclass(cls, Hyper):
        own = {field.name for field in dataclasses.fields(cls)}
        values = {k: v for k, v in values.items() if k in own or v is not None}
    return values


def value_of(cls: Any, values: Any, where: str) -> Any:
    """Builds a value of a type from JSON, checking every part.

    Args:
        cls: the type.
        values: the value as JSON.
        where: its name in errors.

    Raises:
        ValueError: see `from_json`.
    """
    if dataclasses.is_dataclass(cls) and isinstance(values, dict):
        values = _upgraded(cls, values)
        hints = _fields(cls, values)
        unknown = sorted(values.keys() - hints.keys())
        if unknown:
            raise ValueError(
                f"{where}: unknown key {unknown[0]!r}; legal: {', '.join(hints)}"
            )
        parts = {k: value_of(hints[k], v, f"{where}.{k}") for k, v in values.items()}
        return cls(**parts)  # type: ignore[operator]
    # typing.Union for literals, else types.UnionType.
    if typing.get_origin(cls) in (types.UnionType, typing.Union):  # an optional value
        return None if values is None else value_of(cls.__args__[0], values, where)
    if typing.get_origin(cls) is tuple and isinstance(values, list):
        first, *others = cls.__args__
        element_types = [first] * len(values) if others == [...] else [first, *others]
        if len(element_types) == len(values):
            pairs = zip(element_types, values, strict=True)
            return tuple(value_of(cls, value, where) for cls, value in pairs)
    if typing.get_origin(cls) is Literal and values in cls.__args__:
        return values
    if cls is Path and isinstance(values, str):
        return Path(values)
    # By exact type, because bool is a subclass of int.
    is_number = type(values) in (int, float)
    fits = type(values) is cls or (cls is float and is_number)
    # NaN is illegal, and so are integers beyond the range of floats.
    if fits and (not is_number or abs(values) <= sys.float_info.max):
        return values
    raise ValueError(f"{where}: {values!r:.80} is not a legal value")
