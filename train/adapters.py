"""Adapters in the files of HF PEFT: `adapter_config.json` and one safetensors file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ivon_jax.files import write_bytes
from ivon_jax.lora import LoraConfig
from ivon_jax.models.families import hf_names
from ivon_jax.models.safetensors_io import read_json
from ivon_jax.models.weights import compare_shapes
from ivon_jax.noise import by_path

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
CLASSIFIER = "classifier"  # the layer that makes a model a classifier
_SUFFIXES = {
    "a": "lora_A.weight",
    "b": "lora_B.weight",
    "kernel": "weight",
    "bias": "bias",
}

# Fields that say nothing about what the adapter computes once its tensors are known.
_DESCRIPTION = {
    "alora_invocation_tokens",
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "target_modules",
    "task_type",
}
_OFF: tuple[Any, ...] = (None, False, "none", {}, [])


def save_adapter(folder: Path, adapters: PyTree, config: LoraConfig, base: str) -> None:
    """Writes an adapter that PEFT loads.

    Args:
        folder: where to; must exist.
        adapters: the ``lora`` collection, layers stacked.
        config: it was trained with.
        base: name of the base model, for PEFT's users.
    """
    from safetensors.numpy import save

    names = _names(adapters)
    arrays = {k: np.asarray(v) for k, v in by_path(adapters).items()}
    whole = sorted({_module(path) for path in arrays if _is_whole(path)})
    tensors = {
        name: np.ascontiguousarray(_layer(arrays[path], layer).T)
        for name, (path, layer) in names.items()
    }
    values = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if CLASSIFIER in whole else "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": sorted(
            {_module(path) for path in arrays if not _is_whole(path)}
        ),
        "modules_to_save": whole or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    write_bytes(folder / CONFIG, (json.dumps(values, indent=2) + "\n").encode())


def load_adapter(folder: Path, shapes: PyTree, config: LoraConfig) -> PyTree:
    """Reads an adapter that PEFT, or `save_adapter`, wrote.

    Args:
        folder: where from.
        shapes: the ``lora`` collection that is wanted, as shapes.
        config: what it is to be used with; must agree with the adapter's own.

    Returns:
        The collection, float32, on the host.

    Raises:
        ValueError: not an adapter, one that needs what is not implemented, of other
            settings, or for another base model.
    """
    import jax
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        values = _read_config(folder)
        if any(_is_whole(path) for path in by_path(shapes)):
            values.pop("modules_to_save", None)  # the tensors tell which
        _check_config(values, config)
        if not (folder / WEIGHTS).is_file():
            raise ValueError(_no_weights(folder))
        try:
            found = load_file(folder / WEIGHTS)
        except (SafetensorError, OSError, TypeError, KeyError) as error:
            raise ValueError(f"{WEIGHTS}: {str(error)!a:.160}") from None
        leaves = {k: np.empty(v.shape, np.float32) for k, v in by_path(shapes).items()}
        targets = {
            name: _layer(leaves[path], layer).T
            for name, (path, layer) in _names(shapes).items()
        }
        compare_shapes(
            {name: target.shape for name, target in targets.items()},
            {name: tensor.shape for name, tensor in found.items()},
        )
        for name, target in targets.items():
            kind = found[name].dtype
            if not jax.numpy.issubdtype(kind, jax.numpy.floating):
                raise ValueError(f"tensor {name} is {kind}, expected floating point")
            with np.errstate(over="ignore"):
                target[...] = found[name]
            if not np.isfinite(target).all():
                raise ValueError(f"tensor {name} has NaN or infinite values")
    except ValueError as error:
        raise ValueError(f"adapter {folder}: {error}") from None
    return jax.tree.unflatten(jax.tree.structure(shapes), list(leaves.values()))


def _names(adapters: PyTree) -> dict[str, tuple[str, int | None]]:
    """PEFT's name of every tensor, with the path of its leaf and its layer."""
    names: dict[str, tuple[str, int | None]] = {}
    for path, leaf in by_path(adapters).items():
        module, _, kind = path.rpartition("/")
        stacked = path.startswith("layers/")
        for i, name in enumerate(hf_names(module, len(leaf) if stacked else 1)):
            names[f"base_model.model.{name}.{_SUFFIXES[kind]}"] = (
                path,
                i if stacked else None,
            )
    return names


def _is_whole(path: str) -> bool:
    """Whether a leaf belongs to a layer that is trained whole."""
    return path.endswith(("/kernel", "/bias"))


def _module(path: str) -> str:
    """What PEFT compares the end of a layer's name with."""
    return path.rpartition("/")[0].removeprefix("layers/").replace("/", ".")


def _layer(leaf: np.ndarray, layer: int | None) -> np.ndarray:
    return leaf if layer is None else leaf[layer]


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / CONFIG)
    except ValueError as error:
        raise ValueError(f"{CONFIG}: {error}") from None


def _no_weights(folder: Path) -> str:
    if (folder / PICKLE).exists():
        return (
            f"{PICKLE} is a pickle, which can run code and is never read; save it"
            " again with PEFT's save_pretrained(..., safe_serialization=True)"
        )
    return f"{WEIGHTS} is missing"


def _check_config(values: dict[str, Any], config: LoraConfig) -> None:
    values = dict(values)
    kind = values.pop("peft_type", None)
    if kind != "LORA":
        raise ValueError(f"peft_type is {kind!r:.80}, expected 'LORA'")
    # PiSSA, OLoRA, LoftQ and the like change the base model's weights too.
    init = values.pop("init_lora_weights", True)
    if init not in (True, False, "gaussian"):
        raise ValueError(
            f"init_lora_weights is {init!r:.80}, expected true, false or 'gaussian'"
        )
    agree = {
        "r": ("rank", config.rank),
        "lora_alpha": ("alpha", config.alpha),
        "use_rslora": ("rslora", config.rslora),
    }
    for field, (option, wanted) in agree.items():
        found = values.pop(field, False if field == "use_rslora" else None)
        if found != wanted:
            raise ValueError(f"its {field} is {found!r:.80}, but {option} is {wanted}")
    for field, value in values.items():
        if field not in _DESCRIPTION and value not in _OFF:
            shown = ascii(field)[1:-1][:80]
            raise ValueError(f"{shown} is {value!r:.80}, which is not implemented")
