"""A model as a folder in HF's layout, which transformers and its relatives load."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ivon_jax.files import new_folder, write_bytes
from ivon_jax.models.families import Config
from ivon_jax.models.safetensors_io import INDEX, WEIGHTS
from ivon_jax.models.weights import named_tensors


def save(
    folder: Path,
    config: Config,
    params: Mapping[str, Any],
    tokenizer: Any,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write configuration, safetensors and tokenizer.

    Args:
        folder: Where to; new or empty. It appears whole or not at all.
        config: The model's.
        params: Its parameters, layers stacked; written in their dtype.
        tokenizer: The model's, of transformers.
        shard_bytes: Start another file before one grows beyond this. The host holds
            one file's tensors at a time.

    Raises:
        ValueError: If transformers has no class for the configuration.
        OSError: If the folder holds something or cannot be written.
    """
    values = config.to_hf()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        values[name] = getattr(tokenizer, name, None)
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
        values["dtype"] = str(next(iter(shard.values())).dtype)
        if len(sizes) == 1:
            (out / _shard_name(0)).rename(out / WEIGHTS)
        else:
            index = {"metadata": {"total_size": sum(sizes)}, "weight_map": where}
            write_bytes(out / INDEX, json.dumps(index, indent=2).encode())
        write_bytes(out / "config.json", json.dumps(values, indent=2).encode())
        tokenizer.save_pretrained(out)


def _write(
    out: Path, shard: dict[str, np.ndarray], where: dict[str, str], number: int
) -> int:
    """Write one file, note where its tensors are, and return their size."""
    from safetensors.numpy import save_file

    save_file(shard, out / _shard_name(number), {"format": "pt"})
    where.update(dict.fromkeys(shard, _shard_name(number)))
    return sum(tensor.nbytes for tensor in shard.values())


def _shard_name(number: int) -> str:
    return f"model-{number + 1:05d}.safetensors"
