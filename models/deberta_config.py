"""Sizes and switches of a DeBERTa-v2 or v3, read from HF's `config.json`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from ivon_jax.models.config_fields import boolean, either, integer, number, require
from ivon_jax.models.layers import ACTIVATIONS

DEBERTA_TYPES = ("deberta-v2",)
POSITION_TERMS = ("c2p", "p2c")
# Larger sizes come from damaged files, and would exhaust the memory.
_LARGEST, _MOST_LAYERS = 2**24, 2**12
_PROBLEMS = ("regression", "single_label_classification")
_MAY_BE_ZERO = ("type_vocab_size", "conv_kernel_size")
_RATES = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "pooler_dropout",
    "cls_dropout",
)


@dataclasses.dataclass(frozen=True)
class DebertaConfig:
    """Configuration of a DeBERTa classifier.

    Names follow HF's `config.json`. Relative positions reach `position_buckets` to
    each side, on a logarithmic scale, or else `max_relative_positions`; both are None
    here where HF has -1. Dropout is active where a `dropout` key is given.

    Example:
        >>> config = DebertaConfig(
        ...     vocab_size=32, hidden_size=16, intermediate_size=24,
        ...     num_hidden_layers=2, num_attention_heads=4,
        ...     relative_attention=True, position_buckets=8,
        ... )
        >>> config.position_span
        8
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-7
    max_position_embeddings: int = 512
    position_biased_input: bool = True
    type_vocab_size: int = 0
    embedding_size: int | None = None
    relative_attention: bool = False
    pos_att_type: tuple[str, ...] = ()
    share_att_key: bool = False
    norm_rel_ebd: bool = False
    position_buckets: int | None = None
    max_relative_positions: int | None = None
    conv_kernel_size: int = 0
    conv_groups: int = 1
    conv_act: str = "tanh"
    num_labels: int = 2
    pooler_hidden_act: str = "gelu"
    initializer_range: float = 0.02
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pooler_dropout: float = 0.0
    cls_dropout: float | None = None

    def __post_init__(self) -> None:
        """Checks every field.

        Raises:
            ValueError: a field is out of range, or contradicts another.
        """
        for name, value in vars(self).items():
            if name in _RATES and value is not None:
                require(0 <= value < 1, name, value, "a number in [0, 1)")
            elif type(value) is int:
                limit = _MOST_LAYERS if name == "num_hidden_layers" else _LARGEST
                least = 0 if name in _MAY_BE_ZERO else 1
                legal = f"an integer from {least} to {limit}"
                require(least <= value <= limit, name, value, legal)
            elif name.endswith("_act"):
                legal = f"one of {', '.join(ACTIVATIONS)}"
                require(value in ACTIVATIONS, name, value, legal)
        for name in ("layer_norm_eps", "initializer_range"):
            number(name, getattr(self, name))
        unknown = set(self.pos_att_type) - set(POSITION_TERMS)
        legal = f"of {' and '.join(POSITION_TERMS)}"
        require(not unknown, "pos_att_type", self.pos_att_type, legal)
        for name in ("num_attention_heads", "conv_groups"):
            value, size = getattr(self, name), self.hidden_size
            require(
                size % value == 0, name, value, f"a divisor of hidden_size = {size}"
            )
        width = self.conv_kernel_size
        require(width % 2 == 1 or not width, "conv_kernel_size", width, "an odd number")
        if self.position_buckets is not None:
            # The logarithmic part begins at half of the buckets.
            fits = 1 < self.position_buckets < 2 * (self.largest_position - 1)
            legal = f"2 to {2 * self.largest_position - 3}"
            require(fits, "position_buckets", self.position_buckets, legal)

    @property
    def largest_position(self) -> int:
        """The largest distance with an embedding."""
        return self.max_relative_positions or self.max_position_embeddings

    @property
    def dropout(self) -> float:
        """The largest of the model's own dropout rates."""
        return max(getattr(self, name) or 0.0 for name in _RATES)

    @property
    def position_span(self) -> int:
        """Number of embeddings of relative positions on each side."""
        return self.position_buckets or self.largest_position

    @property
    def head_dim(self) -> int:
        """Size of an attention head."""
        return self.hidden_size // self.num_attention_heads

    def with_one_layer(self) -> "DebertaConfig":
        """Returns the same configuration with one layer."""
        return dataclasses.replace(self, num_hidden_layers=1)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "DebertaConfig":
        """Reads the dictionary in HF's `config.json`.

        Args:
            config: the parsed file.

        Returns:
            The configuration.

        Raises:
            ValueError: a field is missing, or asks for an unimplemented feature that
                changes the result.
        """
        _reject_unsupported(config)
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            required = field.default is dataclasses.MISSING
            if required or config.get(field.name) is not None:
                read = _READERS.get(field.name) or _READERS[field.type]
                values[field.name] = read(config, field.name)
        if values.get("embedding_size") == values["hidden_size"]:
            values["embedding_size"] = None
        for name in ("position_buckets", "max_relative_positions"):
            values[name] = size if (size := values.get(name) or -1) > 0 else None
        values["num_labels"] = _num_labels(config)
        return cls(**values)

    def to_hf(self) -> dict[str, Any]:
        """Returns the fields of `config.json`, with transformers' class name."""
        none = {"position_buckets": -1, "max_relative_positions": -1}
        values = {
            name: either(value, none.get(name)) for name, value in vars(self).items()
        }
        labels = [f"LABEL_{i}" for i in range(values.pop("num_labels"))]
        return {
            "architectures": ["DebertaV2ForSequenceClassification"],
            "model_type": DEBERTA_TYPES[0],
            **values,
            "embedding_size": either(self.embedding_size, self.hidden_size),
            "pos_att_type": list(self.pos_att_type),
            "norm_rel_ebd": "layer_norm" if self.norm_rel_ebd else "none",
            "pooler_hidden_size": self.hidden_size,
            "id2label": {str(i): label for i, label in enumerate(labels)},
            "label2id": {label: i for i, label in enumerate(labels)},
        }


def _reject_unsupported(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    legal = " or ".join(DEBERTA_TYPES)
    require(model_type in DEBERTA_TYPES, "model_type", model_type, legal)
    quantization = config.get("quantization_config")
    require(quantization is None, "quantization_config", quantization, "none")
    hidden = integer(config, "hidden_size")
    heads = max(integer(config, "num_attention_heads"), 1)
    for name, wanted in (
        ("attention_head_size", hidden // heads),
        ("pooler_hidden_size", hidden),
    ):
        require(
            integer(config, name, wanted) == wanted, name, config.get(name), f"{wanted}"
        )
    problem, legal = config.get("problem_type"), " or ".join(_PROBLEMS)
    require(problem in (None, *_PROBLEMS), "problem_type", problem, legal)


def _text(config: Mapping[str, Any], field: str) -> str:
    require(isinstance(config[field], str), field, config[field], "a string")
    return config[field]


def _float(config: Mapping[str, Any], field: str) -> float:
    value = config[field]
    fits = type(value) in (int, float) and abs(value) < 1e30
    require(fits, field, value, "a number")
    return float(value)


def _position_terms(config: Mapping[str, Any], field: str) -> tuple[str, ...]:
    terms = config[field]
    if isinstance(terms, str):
        terms = _split(terms)
    legal = isinstance(terms, list) and all(type(term) is str for term in terms)
    require(legal, field, terms, "a list of strings")
    return tuple(sorted({term for term in terms if term not in ("", "none")}))


def _has_norm(config: Mapping[str, Any], field: str) -> bool:
    return "layer_norm" in _split(_text(config, field))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.lower().split("|")]


def _num_labels(config: Mapping[str, Any]) -> int:
    """Returns `num_labels`, or else the number of labels in `id2label`."""
    names = config.get("id2label")
    require(isinstance(names, dict | None), "id2label", names, "a JSON object")
    return integer(config, "num_labels", 2 if names is None else len(names))


# Readers of the fields of HF's file, by name or else by type.
_READERS: Mapping[Any, Callable[[Mapping[str, Any], str], Any]] = {
    "norm_rel_ebd": _has_norm,
    "pos_att_type": _position_terms,
    bool: boolean,
    float: _float,
    float | None: _float,
    int: integer,
    int | None: integer,
    str: _text,
}
