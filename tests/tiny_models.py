"""Small random models for the tests, in the files other programs would write."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Rows are multiples of 32, the block length of GGUF's quantised types.
CONFIG = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}


def tensors(layers: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights for `CONFIG` under HF's names, linear ones as (out, in)."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (50, 32),
        "model.norm.weight": (32,),
    }
    for i in range(layers):
        shapes |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (32,),
                "self_attn.q_proj": (32, 32),
                "self_attn.k_proj": (16, 32),
                "self_attn.v_proj": (16, 32),
                "self_attn.o_proj": (32, 32),
                "post_attention_layernorm": (32,),
                "mlp.gate_proj": (64, 32),
                "mlp.up_proj": (64, 32),
                "mlp.down_proj": (32, 64),
            }.items()
        }
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_folder(folder: Path, weights: dict, **changes: object) -> Path:
    """Write `CONFIG` (with changes) and the weights in HF's layout."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(weights, folder / "model.safetensors")
    return folder


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
