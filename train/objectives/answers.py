"""Loss, predictions and scores of each kind of answer."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ivon_jax import metrics
from ivon_jax.ensemble import average
from ivon_jax.metrics import regression
from ivon_jax.train.data.batches import Batch


class ClassAnswer:
    """One of several classes, by cross-entropy.

    Attributes:
        metrics: names of further metrics in `ivon_jax.metrics`.
    """

    answer: ClassVar = "class"
    selects: ClassVar = "nll"
    metrics: tuple[str, ...]

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics that are logged in training."""
        return tuple(dict.fromkeys(("nll", "accuracy", "ece", *self.metrics)))

    def loss(self, outputs: Float[Array, "b c"], batch: Batch) -> Float[Array, ""]:
        """Sums the cross-entropy in nats, by the batch's weights."""
        losses = optax.softmax_cross_entropy_with_integer_labels(
            outputs, jnp.reshape(batch.labels, -1)
        )
        return jnp.sum(losses * jnp.reshape(batch.weights, -1))

    def predictions(self, outputs: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Returns log-probabilities."""
        return jax.nn.log_softmax(outputs)

    def score(
        self, predictions: Float[np.ndarray, "s n c"], labels: Any
    ) -> dict[str, float]:
        """Scores the mean probability over samples."""

        def summary(predictions: Array, labels: Array) -> dict[str, Array]:
            log_probs = average(predictions)
            own = {
                name: getattr(metrics, name)(log_probs, labels) for name in self.metrics
            }
            return metrics.summary(log_probs, labels) | own

        return _floats(summary, predictions, labels)


class NumberAnswer:
    """A number, by squared error."""

    answer: ClassVar = "number"
    selects: ClassVar = "mse"

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics that are logged in training."""
        return ("mse", "pearson", "spearman")

    def loss(self, outputs: Float[Array, "b 1"], batch: Batch) -> Float[Array, ""]:
        """Sums the squared error, by the batch's weights."""
        losses = jnp.square(outputs[:, 0] - jnp.reshape(batch.labels, -1))
        return jnp.sum(losses * jnp.reshape(batch.weights, -1))

    def predictions(self, outputs: Float[Array, "*b 1"]) -> Float[Array, "*b 1"]:
        """Returns the numbers."""
        return outputs

    def score(
        self, predictions: Float[np.ndarray, "s n 1"], labels: Any
    ) -> dict[str, float]:
        """Scores the mean number over samples."""

        def summary(predictions: Array, labels: Array) -> dict[str, Array]:
            return regression.summary(predictions[..., 0].mean(axis=0), labels)

        return _floats(summary, predictions, labels)


def _floats(summary: Any, predictions: Any, labels: Any) -> dict[str, float]:
    # Compiled whole: one by one its small operations take seconds to compile.
    values = jax.jit(summary)(jnp.asarray(predictions), jnp.asarray(labels))
    return {name: float(value) for name, value in values.items()}
