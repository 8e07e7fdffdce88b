"""Small random models for the tests, in the files other programs would write."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ivon_jax.testing.tiny import CONFIG as CONFIG
from ivon_jax.testing.tiny import tensors as tensors
from ivon_jax.testing.tiny import write_folder as write_folder


def write_gguf(
    path: Path,
    weights: dict,
    kinds: dict | None = None,
    add: Callable | None = None,
    theta: float = 10000.0,
) -> Path:
    """Write weights as llama.cpp's converter does, with tensor types by name."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(theta)
    writer.add_rope_dimension_count(8)
    writer.add_token_list([f"<{i}>" for i in range(50)])
    if add is not None:
        add(writer)
    for name, tensor in weights.items():
        kind = (kinds or {}).get(name, GGMLQuantizationType.F32)
        rows = quantize(interleave(name, tensor), kind)
        writer.add_tensor(gguf_name(name), rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def interleave(name: str, tensor: np.ndarray) -> np.ndarray:
    """Reorder the rows of q and k to the adjacent pairs llama.cpp rotates."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return tensor
    rows = [
        head * 8 + half * 4 + i
        for head in range(heads)
        for i in range(4)
        for half in range(2)
    ]
    return tensor[np.array(rows)]


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor, by the gguf package's own table."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    table = get_tensor_name_map(MODEL_ARCH.LLAMA, 2)
    found = table.get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None
    return found


def gguf_with(path, add, architecture="llama"):
    """A GGUF file with a few fields or tensors more."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(128)
    writer.add_tensor("token_embd.weight", np.ones((50, 32), np.float32))
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
