"""Classification by a decoder: the probability of each choice's text."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ivon_jax.train.data.batches import Batch
from ivon_jax.train.data.choice_encoding import encode_choices
from ivon_jax.train.data.encoding import Encoded, common_prefix_length
from ivon_jax.train.data.task import Example
from ivon_jax.train.objectives.answers import ClassAnswer
from ivon_jax.train.objectives.base import Bound
from ivon_jax.train.objectives.decoder import states_at
from ivon_jax.train.objectives.token_losses import token_log_probs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChoiceText(ClassAnswer):
    """Compares the log-likelihoods of the choices' texts, divided by their lengths.

    A choice has the logit log p(text) / length, in nats a character, so the likeliest
    is that of lm-eval's ``acc_norm``. Training uses the same, with no factor: of 100
    questions SmolLM2-135M then has, before training, NLL 1.37 on ARC-Easy, 1.38 on
    OpenBookQA and 0.69 on WinoGrande, at chance or below, and 4.2, 5.3 and 0.84 if the
    logits are multiplied by the mean length, as log-likelihoods of whole texts are.

    All choices of a question follow one copy of it: they are branches of one text.

    Attributes:
        metrics: see `ClassAnswer`.
        max_length: maximal number of tokens of a prompt with a choice.
    """

    metrics: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    max_length: int = dataclasses.field(metadata={"static": True})

    def encode(self, tokenizer: Any, examples: Sequence[Example]) -> Encoded:
        """Tokenises prompts and choices; see `encode_choices`."""
        return encode_choices(tokenizer, examples, self.max_length)

    def prefix_length(self, encoded: Encoded) -> int:
        """Returns the length of the common prefix, before any fork.

        The last token before a fork stays, for it predicts.
        """
        assert encoded.choices is not None
        fork = int(encoded.choices[:, 0, 0].min())
        return min(common_prefix_length(encoded), max(fork - 1, 0))

    def outputs(
        self, model: Bound, batch: Batch, prefix: Int[Array, " p"] | None = None
    ) -> Float[Array, "b c"]:
        """Computes the choices' logits of every question, row by row."""
        assert batch.scored is not None
        states = states_at(model, batch, jnp.asarray(batch.positions), prefix)
        targets = jnp.asarray(batch.scored.targets)
        found = token_log_probs(model.unembed, states, targets)[..., 0]
        sizes = jnp.asarray(batch.scored.sizes)
        count = sizes[0].size
        own = (
            jnp.asarray(batch.scored.choice)[..., None] == jnp.arange(count)[None, None]
        )
        total = jnp.sum(jnp.where(own, found[..., None], 0), axis=1)
        return (total.reshape(sizes.shape) / sizes).reshape(-1, sizes.shape[-1])
