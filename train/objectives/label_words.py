"""Classification by a decoder: the label words' logits after the prompt."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivon_jax.train.data.batches import Batch
from ivon_jax.train.data.encoding import Encoded, common_prefix_length, encode
from ivon_jax.train.data.task import Example
from ivon_jax.train.objectives.answers import ClassAnswer
from ivon_jax.train.objectives.base import Bound
from ivon_jax.train.objectives.decoder import states_at


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LabelWords(ClassAnswer):
    """Compares the label words' logits after each prompt's last token.

    Only the label words' rows of the output embedding are used: no tensor of the
    vocabulary's size is formed.

    Attributes:
        label_ids: token id of each label word.
        metrics: see `ClassAnswer`.
        max_length: maximal number of tokens of a prompt.
    """

    label_ids: Any  # integers on the host or a device, or any leaf of a mapped tree
    metrics: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    max_length: int = dataclasses.field(metadata={"static": True})

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> Encoded:
        """Tokenises prompts; see `encode`."""
        return encode(tokenizer, examples, self.max_length)

    def prefix_length(self, encoded: Encoded) -> int:
        """Returns the length of the prompts' common prefix."""
        return common_prefix_length(encoded)

    def outputs(
        self, model: Bound, batch: Batch, prefix: Int[Array, " p"] | None = None
    ) -> Float[Array, "b c"]:
        """Computes the label words' logits of every prompt, row by row."""
        assert batch.packed is not None
        ends = batch.packed.token[..., 0] + batch.lengths - 1
        last = states_at(model, batch, jnp.asarray(ends), prefix)
        return model.unembed(last.reshape(-1, last.shape[-1]), self.label_ids)
