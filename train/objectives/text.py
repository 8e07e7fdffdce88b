"""Text by a decoder: the log-probabilities of the tokens to learn."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ivon_jax.ensemble import pool
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.data.encoding import Encoded, common_prefix_length
from ivon_jax.train.data.exchanges import Exchange
from ivon_jax.train.data.task import Learn
from ivon_jax.train.data.text_encoding import encode_exchanges
from ivon_jax.train.objectives.base import Bound
from ivon_jax.train.objectives.decoder import states_at
from ivon_jax.train.objectives.token_losses import token_log_probs


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Text:
    """Predicts each learnt token from those before it.

    The outputs are two for each token: its log-probability, and that of the likeliest
    token. The loss is the mean over the tokens of a batch: a long completion weighs
    more than a short one.

    Attributes:
        learn: the tokens to learn, see `encode_exchanges`.
        max_length: maximal number of tokens of an exchange.
        drop_long: whether longer ones are left out; else they are an error.
    """

    learn: Learn = dataclasses.field(metadata={"static": True})
    max_length: int = dataclasses.field(metadata={"static": True})
    drop_long: bool = dataclasses.field(metadata={"static": True})

    answer: ClassVar = "text"
    selects: ClassVar = "nll"

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics that are logged in training."""
        return ("nll", "perplexity", "token_accuracy", "sequence_accuracy")

    def encode(self, tokenizer: Any, examples: Sequence[Exchange]) -> Encoded:
        """Tokenises exchanges; see `encode_exchanges`."""
        return encode_exchanges(
            tokenizer,
            examples,
            self.learn,
            self.max_length,
            drop_long=self.drop_long,
        )

    def prefix_length(self, encoded: Encoded) -> int:
        """Returns the length of the common prefix, before any learnt token.

        The last token before a learnt one stays, for it predicts.
        """
        assert encoded.learnt is not None
        first = min(int(positions[0]) for positions in encoded.learnt)
        return min(common_prefix_length(encoded), first - 1)

    def outputs(
        self, model: Bound, batch: Batch, prefix: Int[Array, " p"] | None = None
    ) -> Float[Array, "t 2"]:
        """Computes the log-probabilities of every learnt token, row by row.

        Only the states that predict a learnt token meet the output matrix.
        """
        assert batch.positions is not None
        states = states_at(model, batch, jnp.asarray(batch.positions), prefix)
        found = token_log_probs(model.unembed, states, jnp.asarray(batch.labels))
        return found.reshape(-1, 2)

    def loss(self, outputs: Float[Array, "t 2"], batch: Batch) -> Float[Array, ""]:
        """Sums the negative log-likelihood in nats, by the batch's weights."""
        return -jnp.sum(outputs[:, 0] * jnp.reshape(batch.weights, -1))

    def predictions(self, outputs: Float[Array, "*b 2"]) -> Float[Array, "*b 2"]:
        """Returns the log-probabilities."""
        return outputs

    def score(
        self, predictions: Float[np.ndarray, "s t 2"], labels: Int[np.ndarray, "t 2"]
    ) -> dict[str, float]:
        """Scores an ensemble's text, in nats a token.

        Probabilities are averaged over samples in two ways: ``nll`` averages those of
        each token, ``sequence_nll`` those of whole completions, as of models that each
        write a completion by themselves. It is never the lower for one sample.

        ``token_accuracy`` is the share of tokens that are the likeliest, and
        ``sequence_accuracy`` the share of completions of such tokens only, which greedy
        decoding writes; both are means over samples.
        """
        terms = text_terms(predictions, labels).mean(axis=0)
        found = text_metrics(terms[None, None])
        return {name: float(value[0, 0]) for name, value in found.items()}


def text_terms(
    predictions: Float[np.ndarray, "s t 2"], labels: Int[np.ndarray, "t 2"]
) -> Float[np.ndarray, "n k"]:
    """Returns the terms of the metrics of text, of each example.

    They are the number of tokens, their NLL, that of the whole completion, the number
    of tokens that are the likeliest, and whether all are; see `Text.score`.
    """
    log_probs, largest = np.moveaxis(np.asarray(predictions, np.float64), -1, 0)
    starts = np.flatnonzero(np.diff(labels[:, 1], prepend=-1))
    right = log_probs >= largest
    whole = np.add.reduceat(log_probs, starts, axis=1)
    columns = [
        np.diff(np.append(starts, len(labels))),
        np.add.reduceat(-pool(log_probs), starts),
        -pool(whole),
        np.add.reduceat(right.mean(axis=0), starts),
        np.logical_and.reduceat(right, starts, axis=1).mean(axis=0),
    ]
    return np.stack(columns, axis=1)


def text_metrics(
    means: Float[np.ndarray, "r m k"],
) -> dict[str, Float[np.ndarray, "r m"]]:
    """Computes the metrics of text from means of `text_terms`."""
    tokens, nll, whole, right, every = np.moveaxis(means, -1, 0)
    return {
        "nll": nll / tokens,
        "perplexity": np.exp(np.minimum(nll / tokens, 700.0)),
        "sequence_nll": whole / tokens,
        "token_accuracy": right / tokens,
        "sequence_accuracy": every,
    }
