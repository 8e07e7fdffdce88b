"""Adapters in the files of HF PEFT: `adapter_config.json` and one safetensors file."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from ivon_jax._tree import by_path
from ivon_jax.errors import prefixed
from ivon_jax.files import write_bytes
from ivon_jax.lora import LoraConfig
from ivon_jax.models.axes import LAYERS
from ivon_jax.models.families import hf_names, tree_path
from ivon_jax.models.known import hub_id
from ivon_jax.models.peft_config import (
    CONFIG,
    base_name,
    lora_config,
    peft_config,
    read_config,
)
from ivon_jax.models.pretrained import is_gguf, split_revision
from ivon_jax.models.safetensors_io import read_json
from ivon_jax.models.weights import compare_shapes

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
RUN = "ivon_jax.json"  # beside our adapters: the settings and metadata of their run
_PREFIX = "base_model.model."
_SUFFIXES = {
    "a": ".lora_A.weight",
    "b": ".lora_B.weight",
    "kernel": ".weight",
    "bias": ".bias",
}
# Parts of the names of PEFT's other tensors, and their features.
_OTHERS = {
    ".lora_magnitude_vector": "of DoRA",
    ".lora_embedding_": "an adapter of embeddings",
    ".trainable_tokens_": "of trainable tokens",
    ".lora_B.bias": "of lora_bias",
    ".base_layer.": "of the base model",
    ".modules_to_save.": "of a model's state_dict",
}


def save_adapter(folder: Path, adapters: PyTree, config: LoraConfig, base: str) -> None:
    """Writes an adapter in PEFT's format.

    Args:
        folder: an existing folder.
        adapters: the ``lora`` collection, layers stacked.
        config: configuration they were trained with.
        base: name of the base model, for PEFT's users.
    """
    from safetensors.numpy import save

    arrays = {k: np.asarray(v) for k, v in by_path(adapters).items()}
    tensors = {
        name: np.ascontiguousarray(_layer(arrays[path], layer).T)
        for name, (path, layer) in _names(adapters).items()
    }
    adapted, full = _modules(adapters, "a"), _modules(adapters, "kernel", "bias")
    values = peft_config(config, adapted, full, base)
    write_bytes(folder / WEIGHTS, save(tensors, {"format": "pt"}))
    write_bytes(folder / CONFIG, (json.dumps(values, indent=2) + "\n").encode())


def read_settings(folder: Path) -> LoraConfig:
    """Reads the configuration of an adapter of PEFT; its layers are those with tensors.

    Raises:
        ValueError: it is not an adapter, or has an unimplemented setting.
    """
    with prefixed(f"adapter {folder}"):
        values = read_config(folder)
        return _settings(values, _read_tensors(folder))


def load_adapter(folder: Path, shapes: PyTree, config: LoraConfig) -> PyTree:
    """Reads an adapter written by PEFT or `save_adapter`.

    Args:
        folder: the adapter's.
        shapes: shapes of the ``lora`` collection.
        config: configuration of the run; must agree with the adapter's own.

    Returns:
        The collection, float32, on the host. Layers trained in full are absent if the
        adapter has none of their tensors: they are then the base model's.

    Raises:
        ValueError: it is not an adapter, has unimplemented or other settings, or
            belongs to another base model.
    """
    import jax

    with prefixed(f"adapter {folder}"):
        values = read_config(folder)
        found = _read_tensors(folder)
        _check_agreement(_settings(values, found), config, _modules(shapes, "a"))
        names = _names(shapes)
        held = {path for name, (path, _) in names.items() if name in found}
        leaves = {
            path: np.empty(leaf.shape, np.float32)
            for path, leaf in by_path(shapes).items()
            if path in held or not _is_full(path)
        }
        targets = {
            name: _layer(leaves[path], layer).T
            for name, (path, layer) in names.items()
            if path in leaves
        }
        compare_shapes(
            {name: target.shape for name, target in targets.items()},
            {name: tensor.shape for name, tensor in found.items()},
        )
        for name, target in targets.items():
            dtype = found[name].dtype
            if not jax.numpy.issubdtype(dtype, jax.numpy.floating):
                raise ValueError(f"tensor {name} is {dtype}, expected floating point")
            with np.errstate(over="ignore"):
                target[...] = found[name]
            if not np.isfinite(target).all():
                raise ValueError(f"tensor {name} has NaN or infinite values")
    return unflatten_dict(leaves, sep="/")


def check_base(folder: Path, model: str, fingerprint: str) -> None:
    """Checks that an adapter was trained on the base model it is used with.

    Fingerprints decide if the adapter records ours and both are of the same file
    format. Otherwise only names can be compared, and people rename folders: if they
    differ, a line on stderr says so.

    Args:
        folder: the adapter's.
        model: name of the base model.
        fingerprint: of the base model's files.

    Raises:
        ValueError: it was trained on another base, or is not an adapter.
    """
    import jax

    with prefixed(f"adapter {folder}"):
        values = read_config(folder)
        if (folder / RUN).exists():
            trained_on, theirs = _recorded_base(folder)
            if theirs == fingerprint:
                return
            if is_gguf(trained_on) == is_gguf(model):
                raise ValueError(
                    f"it was trained on model {trained_on!a:.160} ({theirs!a:.14}), and"
                    f" model {model!a:.160} ({fingerprint!a:.14}) has other files; if"
                    f" they hold the same weights, remove its {RUN}"
                )
        name = base_name(values)
    if name and not _alike(name, model) and jax.process_index() == 0:
        print(
            f"adapter {folder}: it names {name!a:.160} as its base, and model is"
            f" {model!a:.160}; make sure that they are the same",
            file=sys.stderr,
        )


def _recorded_base(folder: Path) -> tuple[str, str]:
    """Returns name and fingerprint of the base of an adapter that we exported."""
    with prefixed(RUN):
        metadata = read_json(folder / RUN)
        name, fingerprint = metadata.get("model"), metadata.get("model_fingerprint")
        if not (isinstance(name, str) and isinstance(fingerprint, str)):
            raise ValueError("it has no model and model_fingerprint")
    return name, fingerprint


def _alike(theirs: str, ours: str) -> bool:
    """Returns whether PEFT's and our name of a model mean the same."""
    name, revision = split_revision(theirs)
    our_name, our_revision = split_revision(hub_id(ours))
    # PEFT seldom records a revision.
    same = revision in (None, our_revision or "main")
    return same and os.path.realpath(name) == os.path.realpath(our_name)


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (folder / WEIGHTS).is_file():
        raise ValueError(_no_weights(folder))
    try:
        return load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, TypeError, KeyError) as error:
        raise ValueError(f"{WEIGHTS}: {str(error)!a:.160}") from None


def _no_weights(folder: Path) -> str:
    if (folder / PICKLE).exists():
        return (
            f"{PICKLE} is a pickle, which can run code and is never read; save it"
            " again with PEFT's save_pretrained(..., safe_serialization=True)"
        )
    return f"{WEIGHTS} is missing"


def _settings(values: dict[str, Any], found: dict[str, np.ndarray]) -> LoraConfig:
    """Returns the configuration of an adapter's fields and tensors."""
    layers: dict[str, list[str]] = {leaf: [] for leaf in _SUFFIXES}
    for name in sorted(found):
        try:
            leaf, module = _part(name)
        except ValueError as error:
            shown = ascii(name)[1:-1]
            raise ValueError(f"tensor {shown:.120} {error}") from None
        layers[leaf].append(module)
    adapted, full = layers["a"] + layers["b"], layers["kernel"] + layers["bias"]
    if not adapted:
        raise ValueError(f"{WEIGHTS} has no tensor that ends in {_SUFFIXES['a']}")
    if both := sorted(set(adapted) & set(full)):
        raise ValueError(
            f"layer {both[0]:.120} has an adapter and tensors of its own (.weight,"
            " .bias), which is not implemented"
        )
    return lora_config(values, adapted, full)


def _part(name: str) -> tuple[str, str]:
    """Returns the leaf of a tensor and HF's name of its layer.

    Raises:
        ValueError: the tensor is not supported; the text lacks its name.
    """
    for text, feature in _OTHERS.items():
        if text in name:
            raise ValueError(f"is {feature}, which is not implemented")
    if found := re.search(r"\.lora_[AB]\.(.+)\.weight$", name):
        raise ValueError(
            f"has the adapter's name, {found[1]!a:.40}, within its own, as in a model's"
            " state_dict, which is not implemented; save it with PEFT's save_pretrained"
        )
    leaf = next((k for k, s in _SUFFIXES.items() if name.endswith(s)), None)
    if leaf is None or not name.startswith(_PREFIX):
        ends = ", ".join(_SUFFIXES.values())
        raise ValueError(
            f"is not implemented, expected {_PREFIX}LAYER with one of {ends}"
        )
    module = name.removeprefix(_PREFIX).removesuffix(_SUFFIXES[leaf])
    try:
        path = f"/{tree_path(module)}"
    except KeyError:
        raise ValueError("is of a layer that is in no supported model") from None
    linear = [layer for layer in LAYERS if layer != "lm_head"]
    if path.endswith(("/embed_tokens", "/lm_head")):
        raise ValueError(
            "is of the embeddings or the output layer, for which neither adapters nor"
            " trained weights are implemented; if they are the base's, save without"
            " them (save_embedding_layers=False of PEFT's save_pretrained)"
        )
    if not path.endswith(tuple(f"/{layer}" for layer in linear)):
        raise ValueError(
            f"is not implemented, expected a linear layer: {', '.join(linear)}"
        )
    return leaf, module


def _check_agreement(own: LoraConfig, config: LoraConfig, modules: set[str]) -> None:
    """Checks that an adapter's own settings are those of the run."""
    if more := set(own.targets) - modules:
        raise ValueError(f"it adapts {', '.join(sorted(more))}, which targets omit")
    if more := modules - set(own.targets):
        raise ValueError(f"it has no adapter for {', '.join(sorted(more))} of targets")
    if own.rslora != config.rslora:
        raise ValueError(f"its use_rslora is {own.rslora}, but rslora {config.rslora}")
    for module in sorted(modules):
        path = tuple(module.split("/"))
        for name, theirs, ours in (
            ("rank", own.rank_at(path), config.rank_at(path)),
            ("alpha", own.alpha_at(path), config.alpha_at(path)),
        ):
            if theirs != ours:
                raise ValueError(
                    f"its {name} of {module} is {theirs}, but {name} {ours}"
                )


def _names(adapters: PyTree) -> dict[str, tuple[str, int | None]]:
    """Returns the path of the leaf, and the layer, of each tensor by PEFT's name."""
    names: dict[str, tuple[str, int | None]] = {}
    for path, leaf in by_path(adapters).items():
        module, _, name = path.rpartition("/")
        stacked = path.startswith("layers/")
        for i, hf_name in enumerate(hf_names(module, len(leaf) if stacked else 1)):
            full_name = _PREFIX + hf_name + _SUFFIXES[name]
            names[full_name] = (path, i if stacked else None)
    return names


def _modules(adapters: PyTree, *names: str) -> set[str]:
    """Returns the layers that have a leaf of one of these names."""
    parts = [path.rpartition("/") for path in by_path(adapters)]
    return {module for module, _, name in parts if name in names}


def _is_full(path: str) -> bool:
    """Returns whether a leaf belongs to a layer trained in full."""
    return path.endswith(("/kernel", "/bias"))


def _layer(leaf: np.ndarray, layer: int | None) -> np.ndarray:
    return leaf if layer is None else leaf[layer]
