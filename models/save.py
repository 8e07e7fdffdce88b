"""Saves a model as a folder in HF's layout, as transformers and others load it."""

import json
import re
import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from ivon_jax.files import new_folder, write_bytes
from ivon_jax.models.families import Config, family_of
from ivon_jax.models.safetensors_io import INDEX, WEIGHTS, read_json
from ivon_jax.models.weights import named_tensors

# Patterns, in lower case, of the files beside the weights in a model's folder.
_COMPANIONS = (
    *("*.json", "*.jinja", "*.model", "tokenizer*", "vocab.txt", "merges.txt"),
    *("license*", "licence*", "notice*", "use_policy*"),
)
# Files not to copy: the configuration, indices of weights, adapters.
_REPLACED = r"config\.json|.*\.index\.json|adapter_.*"
_LABELS = ("id2label", "label2id")
_OF_OLD_HEAD = ("num_labels", "problem_type", "finetuning_task")


def save(
    folder: Path,
    config: Config,
    params: Mapping[str, Any],
    tokenizer: Any,
    base: Path | None = None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes configuration, weights, tokenizer, and the base's other files.

    Args:
        folder: a new or empty folder. It appears whole or not at all.
        config: the model's configuration.
        params: its parameters, layers stacked; written in their dtype.
        tokenizer: its tokenizer, of transformers.
        base: folder of the base model, if it was read from one. Changed fields of its
            `config.json` are replaced; its other files (tokenizer, generation settings,
            licences) are copied.
        shard_bytes: maximal size of a file. The host holds the tensors of one file at a
            time.

    Raises:
        ValueError: transformers has no class for the configuration.
        OSError: the folder is not empty or cannot be written.
    """
    if base is None:
        values = config.to_hf()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            values[name] = getattr(tokenizer, name, None)
    else:
        values = _kept_config(base, config)
    with new_folder(folder) as out:
        where: dict[str, str] = {}
        shard: dict[str, np.ndarray] = {}
        sizes: list[int] = []
        for name, tensor in named_tensors(config, params):
            size = sum(held.nbytes for held in shard.values())
            if shard and size + tensor.nbytes > shard_bytes:
                sizes.append(_write(out, shard, where, len(sizes)))
                shard = {}
            shard[name] = tensor
        sizes.append(_write(out, shard, where, len(sizes)))
        dtype = str(next(iter(shard.values())).dtype)
        # The old name too if the base has it, for older programs.
        values |= {
            k: dtype for k in ("dtype", "torch_dtype") if k in {"dtype", *values}
        }
        if len(sizes) == 1:
            (out / _shard_name(0)).rename(out / WEIGHTS)
        else:
            index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
            write_bytes(out / INDEX, json.dumps(index, indent=2).encode())
        write_bytes(out / "config.json", json.dumps(values, indent=2).encode())
        if base is None or not (base / "tokenizer.json").is_file():
            tokenizer.save_pretrained(out)
        if base is not None:
            _copy_along(base, out)


def _kept_config(base: Path, config: Config) -> dict[str, Any]:
    """Returns the base's `config.json`, with the model's own head if there is one."""
    values = read_json(base / "config.json")
    # Refers to code in the base's folder, which is not copied.
    values.pop("auto_map", None)
    if family_of(config).head:
        ours = config.to_hf()
        values |= {name: ours[name] for name in ("architectures", *_LABELS)}
        for name in _OF_OLD_HEAD:
            values.pop(name, None)
    return values


def _copy_along(base: Path, out: Path) -> None:
    """Copies a model's files that are neither weights nor replaced."""
    for path in sorted(base.iterdir()):
        wanted = any(fnmatch(path.name.lower(), p) for p in _COMPANIONS)
        if wanted and path.is_file() and not re.fullmatch(_REPLACED, path.name):
            shutil.copyfile(path, out / path.name)


def _write(
    out: Path, shard: dict[str, np.ndarray], where: dict[str, str], number: int
) -> int:
    """Writes one file, adds its tensors to `where`, and returns their size."""
    from safetensors.numpy import save_file

    save_file(shard, out / _shard_name(number), {"format": "pt"})
    where.update(dict.fromkeys(shard, _shard_name(number)))
    return sum(tensor.nbytes for tensor in shard.values())


def _shard_name(number: int) -> str:
    return f"model-{number + 1:05d}.safetensors"
