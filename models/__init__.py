"""Language models in Flax Linen, with HF's weights."""

from ivon_jax.models.deberta import Deberta
from ivon_jax.models.deberta_config import DebertaConfig
from ivon_jax.models.kv_cache import KVCache
from ivon_jax.models.llama import Llama
from ivon_jax.models.llama_config import LlamaConfig
from ivon_jax.models.pretrained import Pretrained, load

__all__ = [
    "Deberta",
    "DebertaConfig",
    "KVCache",
    "Llama",
    "LlamaConfig",
    "Pretrained",
    "load",
]
