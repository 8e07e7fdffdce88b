"""The protocol of objectives, and a model as they call it."""

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import flax.linen as nn
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax.train.data.batches import Batch
from ivon_jax.train.data.encoding import Encoded


class Bound(NamedTuple):
    """A model with its parameters, as an objective calls it.

    Attributes:
        module: the model, with adapters if there are any.
        base: the model without adapters; it has the same ``params``.
        variables: the parameters.
        rngs: the model's keys by name; empty in prediction.
    """

    module: nn.Module
    base: nn.Module
    variables: PyTree
    rngs: dict[str, Key[Array, ""]]

    def __call__(self, tokens: Int[Any, "r s"], **inputs: Any) -> Any:
        """Applies the model."""
        return self.module.apply(self.variables, tokens, rngs=self.rngs, **inputs)

    def unembed(
        self, hidden: Float[Array, "*b d"], ids: Int[Array, " c"] | None = None
    ) -> Float[Array, "*b c"]:
        """Computes logits, of a few tokens only or of the whole vocabulary."""
        params = {"params": self.variables["params"]}
        out: Any = self.base.apply(params, hidden, ids, method="unembed")
        return out


@runtime_checkable
class Objective(Protocol):
    """The outputs, loss and scores of a task; a pytree.

    Attributes:
        answer: the kind of answer, "class", "number" or "text".
        selects: metric that selects the best state of a run; lower is better.
    """

    answer: ClassVar[str]
    selects: ClassVar[str]

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics of `score` that are logged in training."""
        ...

    def encode(self, tokenizer: Any, examples: Sequence[Any]) -> Encoded:
        """Tokenises examples."""
        ...

    def prefix_length(self, encoded: Encoded) -> int:
        """Returns the length of the common prefix that may be computed once."""
        ...

    def outputs(
        self, model: Bound, batch: Batch, prefix: Int[Array, " p"] | None = None
    ) -> Float[Array, "b c"]:
        """Computes the outputs of every text or learnt token, row by row, float32.

        Args:
            model: the model.
            batch: the texts, without the prefix if one is given.
            prefix: common prefix of all texts, computed once for each row.
        """
        ...

    def loss(self, outputs: Float[Array, "b c"], batch: Batch) -> Float[Array, ""]:
        """Returns the sum over the batch of weight times loss."""
        ...

    def predictions(self, outputs: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Returns log-probabilities or numbers, which are averaged over samples."""
        ...

    def score(
        self, predictions: Float[np.ndarray, "s n c"], labels: Any
    ) -> dict[str, float]:
        """Computes the metrics of predictions, averaged over samples."""
        ...
