"""The shape and the switches of a Llama-like model, read from HF's `config.json`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

MODEL_TYPES = ("llama", "qwen2")

# Sizes beyond these come from damaged files; they would only exhaust the memory.
_MAX_SIZE = 2**24
_MAX_LAYERS = 2**12


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Llama 3's stretching of the low rotary frequencies to longer contexts.

    Attributes:
        factor: By how much the lowest frequencies are divided.
        low_freq_factor: Turns within the original context up to which a frequency
            is divided in full.
        high_freq_factor: Turns from which on a frequency is kept.
        original_max_position_embeddings: Length of the original context.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Everything that decides what a Llama-like decoder computes.

    Names follow HF's `config.json`. `qkv_bias` and `o_bias` split its
    `attention_bias`: Qwen2 has biases on q, k and v but not on the output.

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
    rope_scaling: Llama3Rope | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    max_position_embeddings: int = 2048

    def __post_init__(self) -> None:
        """Check every size.

        Raises:
            ValueError: If a size is not positive or not a plausible one, or the
                heads do not fit each other.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                limit = _MAX_LAYERS if "layers" in field.name else _MAX_SIZE
                if field.name == "max_position_embeddings":
                    limit = 2**40  # allocates nothing
                _check(
                    type(value) is int and 0 < value <= limit,
                    field.name,
                    value,
                    f"an integer from 1 to {limit}",
                )
            elif field.type is float:
                _check(_is_positive(value), field.name, value, "a positive number")
            elif field.type is bool:
                _check(type(value) is bool, field.name, value, "true or false")
        _check(self.head_dim % 2 == 0, "head_dim", self.head_dim, "an even number")
        _check(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            self.num_key_value_heads,
            f"a divisor of num_attention_heads = {self.num_attention_heads}",
        )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "LlamaConfig":
        """Read the dictionary in HF's `config.json`.

        Args:
            config: The parsed file. Rotary settings may stand at the top
                (`rope_theta`, `rope_scaling`) or, as transformers 5 writes them,
                inside `rope_parameters`.

        Returns:
            The configuration.

        Raises:
            ValueError: If a field is missing, or asks for something that changes
                the result and is not implemented here.
        """
        _reject_unsupported(config)
        model_type = config["model_type"]
        hidden, heads = _get(config, "hidden_size"), _get(config, "num_attention_heads")
        theta, scaling = _rope(config)
        bias = config.get("attention_bias", False)
        return cls(
            vocab_size=_get(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_get(config, "intermediate_size"),
            num_hidden_layers=_get(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_or(config.get("num_key_value_heads"), heads),
            head_dim=_or(config.get("head_dim"), _head_dim(hidden, heads)),
            rms_norm_eps=_number("rms_norm_eps", _get(config, "rms_norm_eps")),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=config.get("tie_word_embeddings", False),
            qkv_bias=True if model_type == "qwen2" else bias,
            o_bias=False if model_type == "qwen2" else bias,
            mlp_bias=config.get("mlp_bias", False),
            max_position_embeddings=_get(config, "max_position_embeddings"),
        )


def _check(holds: bool, field: str, value: object, legal: str) -> None:
    if not holds:
        raise ValueError(f"config field {field} is {value!r:.80}, expected {legal}")


def _is_positive(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < math.inf


def _number(field: str, value: Any) -> float:
    _check(_is_positive(value), field, value, "a positive number")
    return float(value)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _get(config: Mapping[str, Any], field: str) -> Any:
    if config.get(field) is None:
        raise ValueError(f"config field {field} is missing")
    return config[field]


def _head_dim(hidden: object, heads: object) -> int:
    # Left to __post_init__ to complain when these are not sizes at all.
    if type(hidden) is int and type(heads) is int and heads > 0:
        return hidden // heads
    return 0


def _reject_unsupported(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    legal = " or ".join(MODEL_TYPES)
    _check(model_type in MODEL_TYPES, "model_type", model_type, legal)
    act = config.get("hidden_act", "silu")
    _check(act == "silu", "hidden_act", act, "silu")
    quantization = config.get("quantization_config")
    _check(quantization is None, "quantization_config", quantization, "none")
    window = config.get("use_sliding_window", False)
    _check(not window, "use_sliding_window", window, "false")
    layers = _or(config.get("layer_types"), [])
    full = isinstance(layers, list) and all(x == "full_attention" for x in layers)
    _check(full, "layer_types", layers, "a list of full_attention only")
    partial = config.get("partial_rotary_factor", 1.0)
    _check(partial == 1.0, "partial_rotary_factor", partial, "1.0")


def _rope(config: Mapping[str, Any]) -> tuple[float, Llama3Rope | None]:
    rope = _or(_or(config.get("rope_parameters"), config.get("rope_scaling")), {})
    _check(isinstance(rope, Mapping), "rope_scaling", rope, "a mapping")
    names = [field.name for field in dataclasses.fields(Llama3Rope)]
    known = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *names}
    unknown = sorted(rope.keys() - known)
    _check(not unknown, "rope_scaling", unknown, f"only {', '.join(sorted(known))}")
    theta = _or(rope.get("rope_theta"), _or(config.get("rope_theta"), 10_000.0))
    theta = _number("rope_theta", theta)
    partial = _or(rope.get("partial_rotary_factor"), 1.0)
    _check(partial == 1.0, "partial_rotary_factor", partial, "1.0")
    kind = _or(rope.get("rope_type"), rope.get("type", "default"))
    _check(kind in ("default", "llama3"), "rope_type", kind, "default or llama3")
    if kind == "default":
        return theta, None
    return theta, Llama3Rope(
        *(_number(f"rope_scaling.{name}", rope.get(name)) for name in names)
    )
