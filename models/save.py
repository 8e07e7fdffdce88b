"""A model as a folder in HF's layout, which transformers and its relatives load."""

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

# By name in lower case, what a model's folder holds beside its weights.
_COMPANIONS = (
    *("*.json", "*.jinja", "*.model", "tokenizer*", "vocab.txt", "merges.txt"),
    *("license*", "licence*", "notice*", "use_policy*"),
)
# Another configuration, an index of weights, an adapter to be loaded on top.
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
    """Writes configuration, safetensors, tokenizer, and what else the base comes with.

    Args:
        folder: where to; new or empty. It appears whole or not at all.
        config: the model's.
        params: its parameters, layers stacked; written in their dtype.
        tokenizer: the model's, of transformers.
        base: folder of the model that this one was made of, if it was read from one.
            Its `config.json` is kept but for what changed; its other files are copied
            as they are: those of the tokenizer, settings for generation, licences.
        shard_bytes: start another file before one grows beyond this. The host holds
            one file's tensors at a time.

    Raises:
        ValueError: transformers has no class for the configuration.
        OSError: the folder holds something or cannot be written.
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
        # The old name too where the base has it: older programs know no other.
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
    """The base's own `config.json`, with the head that the model has now, if any."""
    values = read_json(base / "config.json")
    # Of code beside the base, which is not copied: these are classes of transformers.
    values.pop("auto_map", None)
    if family_of(config).head:
        ours = config.to_hf()
        values |= {name: ours[name] for name in ("architectures", *_LABELS)}
        for name in _OF_OLD_HEAD:
            values.pop(name, None)
    return values


def _copy_along(base: Path, out: Path) -> None:
    """Copies the files of a model's folder that are neither weights nor replaced."""
    for path in sorted(base.iterdir()):
        wanted = any(fnmatch(path.name.lower(), p) for p in _COMPANIONS)
        if wanted and path.is_file() and not re.fullmatch(_REPLACED, path.name):
            shutil.copyfile(path, out / path.name)


def _write(
    out: Path, shard: dict[str, np.ndarray], where: dict[str, str], number: int
) -> int:
    """Writes one file, note where its tensors are, and return their size."""
    from safetensors.numpy import save_file

    save_file(shard, out / _shard_name(number), {"format": "pt"})
    where.update(dict.fromkeys(shard, _shard_name(number)))
    return sum(tensor.nbytes for tensor in shard.values())


def _shard_name(number: int) -> str:
    return f"model-{number + 1:05d}.safetensors"
