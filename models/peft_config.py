"""Conversion between `LoraConfig` and HF PEFT's `adapter_config.json`.

PEFT's patterns are regular expressions for dotted names of single layers, ours for
paths in a tree of stacked layers. Patterns are not rewritten: the rules of one side
give each layer's value, which is then written layer by layer for the other.
"""

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ivon_jax.errors import prefixed
from ivon_jax.lora import LoraConfig
from ivon_jax.models.axes import LAYERS
from ivon_jax.models.families import tree_path
from ivon_jax.models.pretrained import split_revision
from ivon_jax.models.safetensors_io import read_json

CONFIG = "adapter_config.json"
CLASSIFIER = "classifier"  # the layer that makes a model a classifier

# Fields that `lora_config` reads, or that follow from the tensors.
_HONOURED = {
    "lora_alpha",
    "lora_dropout",
    "alpha_pattern",
    "exclude_modules",
    "modules_to_save",
    "r",
    "rank_pattern",
    "target_modules",
    "use_rslora",
}
# Fields that do not change an adapter's output. The settings of an initialisation count
# only together with it, and PEFT transposes no linear layer.
_DESCRIPTION = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "task_type",
}
# Initialisations that do not change the base model's weights. PiSSA, OLoRA, CorDA,
# LoftQ and LoRA-GA do, so the adapter belongs to another base.
_INITS: tuple[Any, ...] = (True, False, "gaussian", "eva", "orthogonal", "mica")
# Values that switch the other fields off.
_OFF: tuple[Any, ...] = (None, "none", {}, [])
_Value = TypeVar("_Value", int, float)


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the fields of an adapter's configuration.

    Raises:
        ValueError: it is missing, damaged, or has an unimplemented setting.
    """
    with prefixed(CONFIG):
        values = read_json(folder / CONFIG)
    if (peft_type := values.get("peft_type")) != "LORA":
        raise ValueError(f"peft_type is {peft_type!r:.80}, expected 'LORA'")
    init = values.get("init_lora_weights", True)
    if init not in _INITS:
        legal = ", ".join(map(repr, _INITS))
        raise ValueError(f"init_lora_weights is {init!r:.80}, expected one of {legal}")
    known = _HONOURED | _DESCRIPTION | {"peft_type", "init_lora_weights"}
    for field, value in values.items():
        # Equality is not enough: 0 equals False.
        if field not in known and value is not False and value not in _OFF:
            shown = ascii(field)[1:-1][:80]
            raise ValueError(f"{shown} is {value!r:.80}, which is not implemented")
    return values


def base_name(values: Mapping[str, Any]) -> str | None:
    """Returns the name of an adapter's base model.

    Args:
        values: fields of `read_config`.

    Returns:
        A folder, or a hub id with its revision if that is recorded; None if PEFT left
        it out.

    Raises:
        ValueError: it is not a name.
    """
    name, revision = values.get("base_model_name_or_path"), values.get("revision")
    for field, value in (("base_model_name_or_path", name), ("revision", revision)):
        if not isinstance(value, str | None) or "\0" in (value or ""):
            raise ValueError(f"{field} is {value!r:.80}, expected a name")
    return f"{name}@{revision}" if name and revision else name


def lora_config(
    values: Mapping[str, Any], adapted: Iterable[str], full: Iterable[str]
) -> LoraConfig:
    """Converts PEFT's fields to a `LoraConfig`.

    Args:
        values: fields of `read_config`.
        adapted: HF's names of the layers with an adapter.
        full: HF's names of the layers trained in full.

    Returns:
        The configuration, with full paths of layers.

    Raises:
        ValueError: a value is illegal, layers stacked in one array have different ranks
            or alphas, or a layer is in no known architecture.
    """
    paths = {name: _tree_path(name) for name in adapted}
    rank = _number("r", values.get("r"), int)
    alpha = _number("lora_alpha", values.get("lora_alpha"), float)
    return LoraConfig(
        rank=rank,
        alpha=alpha,
        dropout=_number("lora_dropout", values.get("lora_dropout", 0.0), float),
        targets=tuple(sorted(set(paths.values()))),
        rslora=_flag("use_rslora", values.get("use_rslora", False)),
        modules_to_save=tuple(sorted({_tree_path(name) for name in full})),
        rank_pattern=_pattern("rank_pattern", values, paths, rank),
        alpha_pattern=_pattern("alpha_pattern", values, paths, alpha),
    )


def peft_config(
    config: LoraConfig, adapted: Iterable[str], full: Iterable[str], base: str
) -> dict[str, Any]:
    """Returns the fields of `adapter_config.json`.

    Args:
        config: the configuration.
        adapted: paths of the layers with an adapter.
        full: paths of the layers trained in full.
        base: name of the base model, with or without a hub revision.

    Returns:
        The fields.
    """
    paths = {path: tuple(path.split("/")) for path in sorted(adapted)}
    ranks = {_regex(path): config.rank_at(parts) for path, parts in paths.items()}
    alphas = {_regex(path): config.alpha_at(parts) for path, parts in paths.items()}
    saved = sorted(map(_dotted, full))
    name, revision = split_revision(base)
    fields = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if CLASSIFIER in saved else "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "rank_pattern": {k: r for k, r in ranks.items() if r != config.rank},
        "alpha_pattern": {k: a for k, a in alphas.items() if a != config.alpha},
        "target_modules": sorted(map(_dotted, paths)),
        "modules_to_save": saved or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    # Only if there are any: older versions of PEFT lack the field.
    return fields | ({"exclude_modules": others} if (others := _others(paths)) else {})


def _tree_path(name: str) -> str:
    try:
        return tree_path(name)
    except KeyError:
        raise ValueError(
            f"layer {ascii(name)[1:-1]:.120} is in no supported model"
        ) from None


def _pattern(
    field: str, values: Mapping[str, Any], paths: Mapping[str, str], default: _Value
) -> tuple[tuple[str, _Value], ...]:
    """Returns PEFT's values by pattern, as paths and values other than the default."""
    pattern = values.get(field) or {}
    if not isinstance(pattern, dict):
        raise ValueError(f"{field} is {pattern!r:.80}, expected an object")
    pattern = {k: _number(field, v, type(default)) for k, v in pattern.items()}
    found: dict[str, _Value] = {}
    for name, path in paths.items():
        value = next((v for k, v in pattern.items() if _fits(field, k, name)), default)
        if found.setdefault(path, value) != value:
            raise ValueError(
                f"{field} gives single layers of {path} {found[path]} and {value};"
                " layers stacked in one array need one value"
            )
    return tuple((path, value) for path, value in found.items() if value != default)


def _fits(field: str, key: str, name: str) -> bool:
    """Returns whether PEFT's `get_pattern_key` applies a pattern to a layer."""
    try:
        return bool(re.match(rf"(.*\.)?({key})$", name))
    except re.error as error:
        raise ValueError(
            f"{field}: {key!r:.80} is not a regular expression ({error})"
        ) from None


def _number(field: str, value: Any, wanted: type[_Value]) -> _Value:
    # By exact type, as true is an integer; integers too large for a float are illegal.
    legal = type(value) is wanted or (wanted is float and type(value) is int)
    if not legal or not abs(value) <= sys.float_info.max:
        name = "a number" if wanted is float else "an integer"
        raise ValueError(f"{field} is {value!r:.80}, expected {name}")
    return wanted(value)


def _flag(field: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{field} is {value!r:.80}, expected true or false")
    return value


def _dotted(path: str) -> str:
    """Returns the suffix by which PEFT matches a layer's name."""
    return path.removeprefix("layers/").replace("/", ".")


def _others(paths: Iterable[str]) -> list[str]:
    """Returns layers PEFT would also match by suffix; they must be excluded."""
    ours = set(map(_dotted, paths))
    return sorted(
        name
        for name in map(_dotted, LAYERS)
        if name not in ours and any(name.endswith(f".{end}") for end in ours)
    )


def _regex(path: str) -> str:
    """Returns PEFT's pattern for one of our layers, at any index of its stack."""
    number = r"\d+\." if path.startswith("layers/") else ""
    return number + re.escape(_dotted(path))
