"""Rotary scaling: how embeddings are stretched to longer contexts (`config.json`)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ivon_jax.models.config_fields import either, number, require


@dataclasses.dataclass(frozen=True)
class LinearRope:
    """Divides all frequencies.

    Attributes:
        factor: the divisor.
    """

    factor: float


@dataclasses.dataclass(frozen=True)
class DynamicRope:
    """Raises the base with the length, only beyond `max_position_embeddings`.

    Attributes:
        factor: rate of the growth.
    """

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Llama 3's stretching of the low rotary frequencies.

    Attributes:
        factor: divisor of the lowest frequencies.
        low_freq_factor: up to this number of turns within the original context a
            frequency is divided in full.
        high_freq_factor: from this number of turns on a frequency is unchanged.
        original_max_position_embeddings: length of the original context.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float

    def __post_init__(self) -> None:
        """Checks the order of the two factors."""
        low, high = self.low_freq_factor, self.high_freq_factor
        name = "rope_scaling.high_freq_factor"
        require(high > low, name, high, f"more than low_freq_factor = {low}")


@dataclasses.dataclass(frozen=True)
class YarnRope:
    """YaRN (Peng et al. 2023): low frequencies divided, cosines and sines scaled.

    Attributes:
        factor: divisor of the lowest frequencies.
        original_max_position_embeddings: length of the original context.
        attention_factor: factor on cosines and sines; None: from the next two.
        mscale: numerator of that factor.
        mscale_all_dim: its denominator; used only if both are given.
        beta_fast: from this number of turns within the original context on a frequency
            is unchanged.
        beta_slow: up to this number of turns it is divided in full.
        truncate: whether the borders of the two are rounded outwards.
    """

    factor: float
    original_max_position_embeddings: float
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def scale(self) -> float:
        """Factor on cosines and sines."""
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._temperature(self.mscale) / self._temperature(
                self.mscale_all_dim
            )
        return self._temperature(1.0)

    def _temperature(self, mscale: float) -> float:
        return 1.0 if self.factor <= 1 else 0.1 * mscale * math.log(self.factor) + 1


RopeScaling = LinearRope | DynamicRope | Llama3Rope | YarnRope
ROPE_TYPES: dict[str, type[RopeScaling]] = {
    "linear": LinearRope,
    "dynamic": DynamicRope,
    "llama3": Llama3Rope,
    "yarn": YarnRope,
}
_LENGTH = "original_max_position_embeddings"
# Fields that every type may have. The last two change nothing, except the length where
# it is a field of the type.
_COMMON = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_COMMON |= {_LENGTH, "finetuned"}


def read_rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Reads the base and the scaling.

    Args:
        config: HF's `config.json`. The settings may be at the top (`rope_theta`,
            `rope_scaling`) or, as transformers 5 writes them, in `rope_parameters`,
            which `rope_scaling` overrides as a whole.

    Returns:
        The base theta, and the scaling if there is one.

    Raises:
        ValueError: a setting is missing, illegal or not implemented.
    """
    # As in transformers 5 the old name takes precedence, with its theta: users add it
    # to files that have the new one.
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    require(isinstance(rope, Mapping), "rope_scaling", rope, "a mapping")
    name = either(rope.get("rope_type"), rope.get("type", "default"))
    legal = ", ".join(["default", *ROPE_TYPES])
    is_known = isinstance(name, str) and name in ["default", *ROPE_TYPES]
    require(is_known, "rope_type", name, f"one of {legal}")
    rope_type = ROPE_TYPES.get(name)
    fields = {f.name: f for f in dataclasses.fields(rope_type)} if rope_type else {}
    known = _COMMON | fields.keys()
    unknown = sorted(map(str, rope.keys() - known))
    require(not unknown, "rope_scaling", unknown, f"only {', '.join(sorted(known))}")
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    partial = either(rope.get("partial_rotary_factor"), 1.0)
    require(partial == 1.0, "partial_rotary_factor", partial, "1.0")
    theta = number("rope_theta", theta)
    # In transformers' order: top level, scaling, max_position_embeddings.
    length = either(rope.get(_LENGTH), config.get("max_position_embeddings"))
    rope = {**rope, _LENGTH: either(config.get(_LENGTH), length)}
    if rope_type is None:
        return theta, None
    return theta, rope_type(
        **{
            name: _value(name, rope.get(name), field)
            for name, field in fields.items()
            if rope.get(name) is not None or field.default is dataclasses.MISSING
        }
    )


def write_rope(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """Returns `rope_scaling` as `read_rope` reads it."""
    if scaling is None:
        return None
    values = {k: v for k, v in vars(scaling).items() if v is not None}
    name = next(name for name, own in ROPE_TYPES.items() if own is type(scaling))
    return {"rope_type": name, **values}


def _value(name: str, value: Any, field: dataclasses.Field[Any]) -> Any:
    if field.type is bool:
        require(type(value) is bool, f"rope_scaling.{name}", value, "true or false")
        return value
    return number(f"rope_scaling.{name}", value)
