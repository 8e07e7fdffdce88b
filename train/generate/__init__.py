"""Text from a model, or from many of one posterior."""

from ivon_jax.train.generate.embeddings import embedder
from ivon_jax.train.generate.engine import Options, generate
from ivon_jax.train.generate.schedule import Output
from ivon_jax.train.generate.stop_texts import text_of
from ivon_jax.train.generate.writers import (
    Writer,
    open_adapter,
    open_model,
    open_run,
)

__all__ = [
    "Options",
    "Output",
    "Writer",
    "embedder",
    "generate",
    "open_adapter",
    "open_model",
    "open_run",
    "text_of",
]
