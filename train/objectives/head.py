"""Classification and regression by an encoder's head."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivon_jax.train.data.batches import Batch
from ivon_jax.train.data.encoding import Encoded, encode_texts
from ivon_jax.train.data.task import Example
from ivon_jax.train.objectives.answers import ClassAnswer, NumberAnswer
from ivon_jax.train.objectives.base import Bound

# Maximal number of tokens of an encoder's texts (App. D.4).
MAX_TEXT = 512


class _Head:
    """Reads texts and returns the outputs of the model's head."""

    max_length: int

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> Encoded:
        """Tokenises texts; see `encode_texts`."""
        return encode_texts(tokenizer, examples, min(self.max_length, MAX_TEXT))

    def prefix_length(self, encoded: Encoded) -> int:
        """Returns 0: an encoder's first tokens attend to those that follow."""
        return 0

    def outputs(
        self, model: Bound, batch: Batch, prefix: Int[Array, " p"] | None = None
    ) -> Float[Array, "b c"]:
        """Computes the head's outputs of every text."""
        index = jnp.arange(batch.tokens.shape[1])[None]
        types = (index >= batch.second_starts).astype(jnp.int32)  # type: ignore[operator]
        out: Any = model(batch.tokens, mask=index < batch.lengths, types=types)
        return out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadClass(_Head, ClassAnswer):
    """A score for each class.

    Attributes:
        metrics: see `ClassAnswer`.
        max_length: maximal number of tokens of the model.
    """

    metrics: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    max_length: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadNumber(_Head, NumberAnswer):
    """A number.

    Attributes:
        max_length: maximal number of tokens of the model.
    """

    max_length: int = dataclasses.field(metadata={"static": True})
