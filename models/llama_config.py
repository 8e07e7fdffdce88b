"""Sizes and switches of a Llama-like model, read from HF's `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ivon_jax.models.config_fields import boolean, either, integer, number, require
from ivon_jax.models.rope_config import (
    DynamicRope,
    RopeScaling,
    YarnRope,
    read_rope,
    write_rope,
)

MODEL_TYPES = ("llama", "mistral", "ministral", "qwen2", "qwen3")

# Larger sizes (of others, beyond 2**24) come from damaged files, and would exhaust the
# memory.
_LIMITS = {"num_hidden_layers": 2**12, "max_position_embeddings": 2**40}


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Configuration of a Llama-like decoder.

    Names follow HF's `config.json`. `qkv_bias` and `o_bias` split its
    `attention_bias`: Qwen2 has biases on q, k and v but not on the output. With
    `qk_norm` every head's query and key is normalised, as in Qwen3. Layers marked in
    `windowed_layers` attend to the last `sliding_window` tokens, the current included.

    Example:
        >>> config = LlamaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=24,
        ...     num_hidden_layers=2, num_attention_heads=4,
        ...     num_key_value_heads=2, head_dim=4,
        ... )
        >>> config.rope_theta
        10000.0
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    windowed_layers: tuple[bool, ...] = ()
    max_position_embeddings: int = 2048

    def __post_init__(self) -> None:
        """Checks every size.

        Raises:
            ValueError: a size is not positive or implausibly large, or fields
                contradict each other.
        """
        for name, value in vars(self).items():
            if name in ("rms_norm_eps", "rope_theta"):
                number(name, value)
            elif type(value) is int:
                limit = _LIMITS.get(name, 2**24)
                legal = f"an integer from 1 to {limit}"
                require(0 < value <= limit, name, value, legal)
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number")
        require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            self.num_key_value_heads,
            f"a divisor of num_attention_heads = {self.num_attention_heads}",
        )
        if isinstance(self.rope_scaling, DynamicRope):  # its base is a power
            require(self.head_dim > 2, "head_dim", self.head_dim, "more than 2")
        if isinstance(self.rope_scaling, YarnRope):  # it divides by log(theta)
            theta = self.rope_theta
            require(theta != 1, "rope_theta", theta, "a number other than 1 for yarn")
        layers = self.num_hidden_layers if self.sliding_window else 0
        require(
            len(self.windowed_layers) == layers,
            "windowed_layers",
            self.windowed_layers,
            f"{layers} of them (one for each layer if there is a sliding_window)",
        )

    def with_one_layer(self) -> "LlamaConfig":
        """Returns the same configuration with one layer, and no window."""
        return dataclasses.replace(
            self, num_hidden_layers=1, sliding_window=None, windowed_layers=()
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Reads the dictionary in HF's `config.json`.

        Args:
            config: the parsed file. Rotary settings may be at the top (`rope_theta`,
                `rope_scaling`) or, as transformers 5 writes them, in
                `rope_parameters`.

        Returns:
            The configuration.

        Raises:
            ValueError: a field is missing, or asks for an unimplemented feature that
                changes the result.
        """
        _reject_unsupported(config)
        model_type = config["model_type"]
        hidden = integer(config, "hidden_size")
        heads = integer(config, "num_attention_heads")
        # HF's classes differ in their defaults.
        kv_heads = heads if model_type == "llama" else None
        head_dim = 128 if model_type == "qwen3" else hidden // max(heads, 1)
        theta, scaling = read_rope(config)
        bias = model_type in ("llama", "qwen3") and boolean(config, "attention_bias")
        layers = integer(config, "num_hidden_layers")
        window, windowed = _windows(config, layers)
        return cls(
            vocab_size=integer(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=integer(config, "intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=integer(config, "num_key_value_heads", kv_heads),
            head_dim=integer(config, "head_dim", head_dim),
            rms_norm_eps=number("rms_norm_eps", config.get("rms_norm_eps")),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=boolean(config, "tie_word_embeddings"),
            qkv_bias=model_type == "qwen2" or bias,
            o_bias=bias,
            mlp_bias=model_type == "llama" and boolean(config, "mlp_bias"),
            qk_norm=model_type == "qwen3",
            sliding_window=window,
            windowed_layers=windowed,
            max_position_embeddings=integer(config, "max_position_embeddings"),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns the fields of `config.json`, with transformers' class name.

        Raises:
            ValueError: no class of transformers has this configuration.
        """
        own = ("rope_scaling", "qkv_bias", "o_bias", "qk_norm", "windowed_layers")
        values = {k: v for k, v in vars(self).items() if k not in own}
        values |= {
            "hidden_act": "silu",
            "rope_scaling": write_rope(self.rope_scaling),
            "attention_bias": self.o_bias,
            "use_sliding_window": self.sliding_window is not None,
            "layer_types": [
                "sliding_attention" if windowed else "full_attention"
                for windowed in self.windowed_layers or [False] * self.num_hidden_layers
            ],
        }
        for model_type in MODEL_TYPES:
            candidate = {"model_type": model_type, **values}
            if not model_type.startswith("qwen"):
                del candidate["use_sliding_window"]
            if model_type in ("llama", "mistral"):  # whose files have no such field
                del candidate["layer_types"]
            if LlamaConfig.from_hf(candidate) == self:
                name = f"{model_type.capitalize()}ForCausalLM"
                return {"architectures": [name], **candidate}
        raise ValueError(
            f"config: no model_type of {', '.join(MODEL_TYPES)} has it: {self}"
        )


def _reject_unsupported(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    legal = " or ".join(MODEL_TYPES)
    require(model_type in MODEL_TYPES, "model_type", model_type, legal)
    act = config.get("hidden_act", "silu")
    require(act == "silu", "hidden_act", act, "silu")
    quantization = config.get("quantization_config")
    require(quantization is None, "quantization_config", quantization, "none")
    partial = config.get("partial_rotary_factor", 1.0)
    require(partial == 1.0, "partial_rotary_factor", partial, "1.0")
    dropout = either(config.get("attention_dropout"), 0.0)
    require(dropout == 0.0, "attention_dropout", dropout, "0.0")
    causal = config.get("is_causal", True)
    require(causal is True, "is_causal", causal, "true")


def _windows(
    config: Mapping[str, Any], layers: int
) -> tuple[int | None, tuple[bool, ...]]:
    """Returns the sliding window, and for each layer whether it has it."""
    if layers > _LIMITS["num_hidden_layers"]:
        return None, ()  # refused by the constructor, before anything is allocated
    model_type, types = config["model_type"], config.get("layer_types")
    if model_type == "llama":
        full = types is None or (
            isinstance(types, list) and all(x == "full_attention" for x in types)
        )
        require(full, "layer_types", types, "full_attention only")
        used = boolean(config, "use_sliding_window")
        require(not used, "use_sliding_window", used, "false for a llama")
        return None, ()
    switched = model_type.startswith("qwen")
    if switched and not boolean(config, "use_sliding_window"):
        return None, ()
    if config.get("sliding_window", 4096) is None:
        return None, ()
    window = integer(config, "sliding_window", 4096)
    if types is None:
        first = integer(config, "max_window_layers", 28) if switched else 0
        windowed = [i >= first for i in range(layers)]
    else:
        legal = ("full_attention", "sliding_attention")
        fits = isinstance(types, list) and len(types) == layers
        fits = fits and all(x in legal for x in types)
        require(fits, "layer_types", types, f"{layers} of {' or '.join(legal)}")
        windowed = [x == "sliding_attention" for x in types]
    return (window, tuple(windowed)) if any(windowed) else (None, ())
