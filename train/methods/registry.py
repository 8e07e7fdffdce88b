"""The one place that knows the methods by name."""

from typing import Any

from ivon_jax.train.methods.adam import Adam
from ivon_jax.train.methods.ivon_lora import IvonLora

METHODS: dict[str, Any] = {method.name: method for method in (Adam, IvonLora)}
# What is trained unless another is asked for, and what is compared.
DEFAULT: str = IvonLora.name
COMPARED: tuple[str, ...] = (Adam.name, IvonLora.name)
