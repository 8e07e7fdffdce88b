"""Configuration and weights from a GGUF file, the format of llama.cpp.

The header is parsed here rather than by `gguf.GGUFReader`, which trusts it: a
damaged count makes that reader loop for ever. Of the `gguf` package only the tables of
tensor types and the dequantisation are used.
"""

import dataclasses
import math
import mmap
import re
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ivon_jax.models.llama_config import LlamaConfig
from ivon_jax.models.rope_config import Llama3Rope
from ivon_jax.models.rotary import stretched
from ivon_jax.models.weights import Tensors

_SCALARS = dict(enumerate("BbHhIif?", start=0)) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_ROW = 2**13  # entries; a power of 2 that no block exceeds

# Mistral's models are stored as llama.
ARCHITECTURES = ("llama", "qwen2", "qwen3")

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FIELDS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}

# The fields of each `rope.scaling.type`.
_ROPE_FIELDS = {
    "linear": {"factor": "factor"},
    "yarn": {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    },
}
_FACTORS = "rope_freqs.weight"


@dataclasses.dataclass(frozen=True)
class _Entry:
    """A tensor as described in the header; `shape` is torch's (out, in)."""

    tensor_type: int
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclasses.dataclass(frozen=True)
class _Header:
    fields: dict[str, Any]
    tensors: dict[str, _Entry]


class _Cursor:
    """Reads little-endian values one after another, never past the end."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise ValueError("not a whole GGUF file: it ends within its header")
        self.at += count
        return self.data[self.at - count : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode()

    def texts(self, count: int) -> list[bytes]:
        # A tokenizer has a hundred thousand, hence no call for each.
        data, at, found = self.data, self.at, []
        for _ in range(count):
            start = at + 8
            at = start + int.from_bytes(data[at:start], "little")
            if at > len(data):
                break
            found.append(data[start:at])
        self.take(at - self.at)
        return found

    def value(self, value_type: int, keep_array: bool = False) -> Any:
        if value_type == _STRING:
            return self.string()
        if value_type == _ARRAY:
            return self.array() if keep_array else self.skip_array()
        if value_type not in _SCALARS:
            raise ValueError(
                f"the GGUF header has a field of unknown type {value_type}"
            )
        return self.scalar(_SCALARS[value_type])

    def array(self) -> list[Any]:
        item_type, length = self.scalar("I"), self.scalar("Q")
        if item_type == _STRING:
            return [text.decode() for text in self.texts(length)]
        code = self.item_code(item_type)
        raw = self.take(length * struct.calcsize("<" + code))
        return list(struct.unpack(f"<{length}{code}", raw))

    def skip_array(self) -> str:
        # Only tokenizers have arrays, and they are seldom wanted; error messages show
        # the text where a single value was expected.
        item_type, length = self.scalar("I"), self.scalar("Q")
        if item_type == _STRING:
            self.texts(length)
        else:
            self.take(length * struct.calcsize("<" + self.item_code(item_type)))
        return f"array of {length}"

    def item_code(self, item_type: int) -> str:
        if item_type == _ARRAY:
            raise ValueError("the GGUF header has an array of arrays")
        if item_type not in _SCALARS:
            raise ValueError(
                f"the GGUF header has an array of unknown type {item_type}"
            )
        return _SCALARS[item_type]


def read_gguf(path: Path) -> tuple[LlamaConfig, Tensors]:
    """Opens a GGUF file of a Llama, Mistral or Qwen model.

    Args:
        path: the file. It stays mapped while the tensors are in use.

    Returns:
        The configuration, and the tensors under HF's names, dequantised to float32
        when read.

    Raises:
        ValueError: the file is damaged or not GGUF, or its model or a setting is not
            implemented.
        OSError: the file cannot be opened.
    """
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    header = _parse(data)
    config = _config(header)
    if _FACTORS in header.tensors:
        factors = _dequantize(data, header.tensors.pop(_FACTORS))
        rope = _recognised(factors, config)
        config = dataclasses.replace(config, rope_scaling=rope)
    original = {_hf_name(name): name for name in header.tensors}

    def read(name: str) -> np.ndarray:
        tensor = _dequantize(data, header.tensors[original[name]])
        if header.fields["general.architecture"] == "llama":
            return _undo_permutation(name, tensor, config)
        return tensor

    shapes = {name: header.tensors[source].shape for name, source in original.items()}
    return config, Tensors(shapes, read)


def read_fields(path: Path, arrays: Collection[str]) -> dict[str, Any]:
    """Reads the fields of a GGUF file's header.

    Args:
        path: the file.
        arrays: names of array fields to read as lists; others become a text with their
            length.

    Returns:
        The fields by name.

    Raises:
        ValueError: the file is damaged or not GGUF.
        OSError: the file cannot be opened.
    """
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        return _parse(data, arrays).fields


def _parse(data: mmap.mmap, arrays: Collection[str] = ()) -> _Header:
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise ValueError("not a GGUF file")
    version, tensor_count, field_count = map(cursor.scalar, "IQQ")
    if version not in (2, 3):
        raise ValueError(f"GGUF version is {version}, expected 2 or 3, little-endian")
    fields: dict[str, Any] = {}
    for _ in range(field_count):
        name = cursor.string()
        fields[name] = cursor.value(cursor.scalar("I"), name in arrays)
    raw = {}
    for _ in range(tensor_count):
        name = cursor.string()
        dims = [cursor.scalar("Q") for _ in range(cursor.scalar("I"))]
        raw[name] = (cursor.scalar("I"), tuple(reversed(dims)), cursor.scalar("Q"))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0:
        raise ValueError(f"general.alignment is {alignment!r}, expected a power of 2")
    start = -(-cursor.at // alignment) * alignment
    tensors = {
        name: _entry(name, tensor_type, shape, start + offset, len(data))
        for name, (tensor_type, shape, offset) in raw.items()
    }
    return _Header(fields, tensors)


def _entry(
    name: str, tensor_type: int, shape: tuple[int, ...], offset: int, limit: int
) -> _Entry:
    from gguf.constants import GGML_QUANT_SIZES

    if tensor_type not in GGML_QUANT_SIZES:
        raise ValueError(f"tensor {name!a:.80} has the unknown type {tensor_type}")
    block, block_bytes = GGML_QUANT_SIZES[tensor_type]
    if len(shape) not in (1, 2) or shape[-1] % block or 0 in shape:
        raise ValueError(f"tensor {name!a:.80} has the impossible shape {shape!s:.80}")
    size = math.prod(shape) // block * block_bytes
    if offset + size > limit:
        raise ValueError(f"tensor {name!a:.80} reaches beyond the end of the file")
    return _Entry(tensor_type, shape, offset, size)


def _config(header: _Header) -> LlamaConfig:
    fields, tensors = header.fields, header.tensors
    # 0 is what llama-gguf-split --merge writes.
    if (parts := fields.get("split.count", 0)) not in (0, 1):
        raise ValueError(
            f"split.count is {parts!r:.80}, expected 0 or 1; join the parts with"
            " llama-gguf-split --merge"
        )
    model_type = fields.get("general.architecture")
    if model_type not in ARCHITECTURES:
        legal = " or ".join(ARCHITECTURES)
        raise ValueError(
            f"general.architecture is {model_type!r:.80}, expected {legal}"
        )
    if "token_embd.weight" not in tensors:
        raise ValueError("tensor token_embd.weight is missing")
    own = {
        name.removeprefix(f"{model_type}."): value
        for name, value in fields.items()
        if name.startswith(f"{model_type}.")
    }
    if (name := "attention.head_count_kv") not in own:  # the number of heads if absent
        own[name] = own.get("attention.head_count")
    config = LlamaConfig.from_hf(
        {hf: own.pop(name) for name, hf in _FIELDS.items() if name in own}
        | {
            "model_type": model_type,
            "vocab_size": tensors["token_embd.weight"].shape[0],
            "tie_word_embeddings": "output.weight" not in tensors,
            "attention_bias": "blk.0.attn_q.bias" in tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in tensors,
            "rope_scaling": _rope_scaling(own),
        }
    )
    # Settings with one implemented value; others would change the result.
    neutral = {
        "vocab_size": config.vocab_size,
        "rope.dimension_count": config.head_dim,
        "attention.value_length": config.head_dim,
        "expert_count": 0,
        "expert_used_count": 0,
        "attention.causal": True,
    }
    for name, value in own.items():
        if name not in neutral or value != neutral[name]:
            legal = repr(neutral.get(name, "it absent: it is not implemented"))
            field = ascii(f"{model_type}.{name}")[1:-1][:80]
            raise ValueError(f"{field} is {value!r:.80}, expected {legal}")
    return config


def _rope_scaling(own: dict[str, Any]) -> dict[str, Any]:
    """Takes HF's `rope_scaling` out of the fields."""
    rope_type = own.pop("rope.scaling.type", "none")
    own.pop("rope.scaling.finetuned", None)  # changes nothing
    if rope_type == "none":
        return {}
    found = {
        hf: own.pop(f"rope.scaling.{name}")
        for name, hf in _ROPE_FIELDS.get(rope_type, {}).items()
        if f"rope.scaling.{name}" in own
    }
    return {"rope_type": rope_type, **found}


def _recognised(factors: np.ndarray, config: LlamaConfig) -> Llama3Rope:
    """Returns the scaling that a file's factors, one for each frequency, stem from.

    The file has no other settings. All of Meta's models have the same borders, and
    differ only in the largest factor.
    """
    rope = Llama3Rope(float(factors.max()), 1.0, 4.0, 8192.0)
    plain = config.rope_theta ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    wanted = plain / stretched(plain, rope)
    fits = factors.shape == wanted.shape and np.allclose(factors, wanted, rtol=1e-3)
    if config.rope_scaling is not None or not fits:
        raise ValueError(
            f"tensor {_FACTORS} does not stretch the rotary frequencies as Llama 3.1 to"
            " 3.3 do, which is not implemented"
        )
    return rope


def _hf_name(name: str) -> str:
    """Returns HF's name of a tensor; unknown names stay, and are then unexpected."""
    stem, _, suffix = name.rpartition(".")
    if stem in _TENSORS:
        prefix = _TENSORS[stem]
        return f"{prefix}.{suffix}"
    if (match := re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)) is None:
        return name
    layer, part = match.groups()
    return f"model.layers.{layer}.{_LAYER_TENSORS.get(part, part)}.{suffix}"


def _dequantize(data: mmap.mmap, entry: _Entry) -> np.ndarray:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    raw = np.frombuffer(data, np.uint8, entry.size, entry.offset)
    tensor_type = GGMLQuantizationType(entry.tensor_type)
    # Blocks are independent of each other, and `dequantize` takes 16 rows at a time.
    block, block_bytes = GGML_QUANT_SIZES[tensor_type]
    row = math.gcd(math.prod(entry.shape), _ROW) // block * block_bytes
    try:
        with np.errstate(all="ignore"):  # non-finite values are reported by name later
            values = dequantize(raw.reshape(-1, row), tensor_type)
    except NotImplementedError as error:
        raise ValueError(
            f"tensor type {tensor_type.name} is not implemented"
        ) from error
    return values.reshape(entry.shape)


def _undo_permutation(name: str, tensor: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Reorders rows of q and k from interleaved pairs to HF's two halves."""
    if "q_proj" in name:
        heads = config.num_attention_heads
    elif "k_proj" in name:
        heads = config.num_key_value_heads
    else:
        return tensor
    pairs = tensor.reshape(heads, config.head_dim // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)
