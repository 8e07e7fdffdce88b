"""Configurations as JSON: written, read back with every part checked."""

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from ivon_jax.train.config import CompareConfig, Hypers, TrainConfig
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.methods.registry import DEFAULT, METHODS

Kind = TypeVar("Kind")


def to_json(config: TrainConfig | CompareConfig) -> dict[str, Any]:
    """Returns the configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_json(values: Any, kind: type[Kind]) -> Kind:
    """Rebuilds a configuration.

    Args:
        values: what `to_json` gave.
        kind: of a training run, or of a comparison.

    Raises:
        ValueError: an unknown key, or a value of the wrong type or out of range.
    """
    return _build(kind, values, "config")


def _fields(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The type of every field; a run's hyper-parameters are its method's."""
    hints = {
        field.name: hint
        for field in dataclasses.fields(kind)
        for hint in [typing.get_type_hints(kind)[field.name]]
    }
    if kind is TrainConfig:
        name = values.get("method", DEFAULT)
        if isinstance(name, str) and name in METHODS:
            hints["hyper"] = METHODS[name].hyper_type
    return hints


def _upgraded(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Brings what version 0.1.0 wrote into today's form.

    There every run had the hyper-parameters of all methods, those of others None, and
    `noise` beside them; a comparison had the methods beside everything else.
    """
    values = dict(values)
    if kind is TrainConfig and "noise" in values:
        noise, hyper = values.pop("noise"), values.get("hyper", {})
        if isinstance(hyper, dict) and noise != "shared":
            values["hyper"] = hyper | {"noise": noise}
    if kind is CompareConfig and "hyper" not in values:
        known = [field.name for field in dataclasses.fields(Hypers)]
        values["hyper"] = {k: values.pop(k) for k in known if k in values}
    if issubclass(kind, Hyper):
        own = {field.name for field in dataclasses.fields(kind)}
        values = {k: v for k, v in values.items() if k in own or v is not None}
    return values


def _build(kind: Any, values: Any, where: str) -> Any:
    """Makes a value of a type from its JSON, checking every part."""
    if dataclasses.is_dataclass(kind) and isinstance(values, dict):
        values = _upgraded(kind, values)
        hints = _fields(kind, values)
        unknown = sorted(values.keys() - hints.keys())
        if unknown:
            raise ValueError(f"{where}: unknown key {unknown[0]!r}")
        parts = {k: _build(hints[k], v, f"{where}.{k}") for k, v in values.items()}
        return kind(**parts)  # type: ignore[operator]
    # Of a literal it is typing.Union, else types.UnionType.
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # an optional value
        return None if values is None else _build(kind.__args__[0], values, where)
    if typing.get_origin(kind) is tuple and isinstance(values, list):
        first, *others = kind.__args__
        kinds = [first] * len(values) if others == [...] else [first, *others]
        if len(kinds) == len(values):
            pairs = zip(kinds, values, strict=True)
            return tuple(_build(kind, value, where) for kind, value in pairs)
    if typing.get_origin(kind) is Literal and values in kind.__args__:
        return values
    if kind is Path and isinstance(values, str):
        return Path(values)
    # By exact type: in Python true and false are integers too.
    is_number = type(values) in (int, float)
    fits = type(values) is kind or (kind is float and is_number)
    # NaN is not, nor are integers that no float can hold.
    if fits and (not is_number or abs(values) <= sys.float_info.max):
        return values
    raise ValueError(f"{where}: {values!r:.80} is not a legal value")
