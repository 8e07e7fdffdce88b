"""The registry of methods."""

from typing import Any

from ivon_jax.train.methods.adam import Adam
from ivon_jax.train.methods.adam_average import AdamAverage
from ivon_jax.train.methods.blob import Blob
from ivon_jax.train.methods.ensemble import Ensemble
from ivon_jax.train.methods.ivon import Ivon
from ivon_jax.train.methods.ivon_lora import IvonLora
from ivon_jax.train.methods.swag import Swag

METHODS: dict[str, Any] = {
    method.name: method
    for method in (Adam, IvonLora, Ivon, Swag, AdamAverage, Blob, Ensemble)
}
# The default of `train`, and the methods of `compare`.
DEFAULT_METHOD: str = IvonLora.name
COMPARED: tuple[str, ...] = (Adam.name, IvonLora.name)
