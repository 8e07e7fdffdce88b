"""The shape and the switches of a Llama-like model, read from HF's `config.json`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

MODEL_TYPES = ("llama", "qwen2")

# Sizes beyond these, or else beyond 2**24, come from damaged files; they would only
# exhaust the memory.
_LIMITS = {"num_hidden_layers": 2**12, "max_position_embeddings": 2**40}


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
        for name, value in vars(self).items():
            if name in ("rms_norm_eps", "rope_theta"):
                _number(name, value)
            elif type(value) is int:
                limit = _LIMITS.get(name, 2**24)
                legal = f"an integer from 1 to {limit}"
                _check(0 < value <= limit, name, value, legal)
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
        is_qwen = config["model_type"] == "qwen2"
        hidden = _int(config, "hidden_size")
        heads = _int(config, "num_attention_heads")
        theta, scaling = _rope(config)
        bias = _bool(config, "attention_bias")
        return cls(
            vocab_size=_int(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_int(config, "intermediate_size"),
            num_hidden_layers=_int(config, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=_int(config, "num_key_value_heads", heads),
            head_dim=_int(config, "head_dim", hidden // max(heads, 1)),
            rms_norm_eps=_number("rms_norm_eps", config.get("rms_norm_eps")),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_word_embeddings=_bool(config, "tie_word_embeddings"),
            qkv_bias=is_qwen or bias,
            o_bias=bias and not is_qwen,
            mlp_bias=_bool(config, "mlp_bias"),
            max_position_embeddings=_int(config, "max_position_embeddings"),
        )

    def to_hf(self) -> dict[str, Any]:
        """Returns what `from_hf` reads, with the name of transformers' class.

        Raises:
            ValueError: If no class of transformers has these biases.
        """
        is_qwen = self.qkv_bias and not self.o_bias
        if self.o_bias and not self.qkv_bias:
            raise ValueError("config field o_bias is True, expected qkv_bias as well")
        if is_qwen and self.mlp_bias:
            raise ValueError("config field mlp_bias is True, expected o_bias as well")
        values = dataclasses.asdict(self)
        for name in ("qkv_bias", "o_bias", "rope_scaling"):
            del values[name]
        if is_qwen:
            del values["mlp_bias"]
        else:
            values["attention_bias"] = self.o_bias
        if self.rope_scaling is not None:
            scaling = dataclasses.asdict(self.rope_scaling)
            values["rope_scaling"] = {"rope_type": "llama3", **scaling}
        return {
            "architectures": ["Qwen2ForCausalLM" if is_qwen else "LlamaForCausalLM"],
            "model_type": "qwen2" if is_qwen else "llama",
            "hidden_act": "silu",
            **values,
        }


def _check(holds: bool, field: str, value: object, legal: str) -> None:
    if not holds:
        raise ValueError(f"config field {field} is {value!r:.80}, expected {legal}")


def _number(field: str, value: Any) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    _check(number and 0 < value < 1e30, field, value, "a positive number")
    return float(value)


def _int(config: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = _or(config.get(field), default)
    _check(type(value) is int, field, value, "an integer")
    return value


def _bool(config: Mapping[str, Any], field: str) -> bool:
    value = config.get(field, False)
    _check(type(value) is bool, field, value, "true or false")
    return value


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


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
