"""Ensembles of adapters, trained side by side by Adam (Wang et al., 2023).

See arXiv:2310.00035. Members differ in their draw of A, in their dropout masks and, if
so chosen, in the order of their examples. Predictions average their probabilities.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax.checks import AT_LEAST_TWO
from ivon_jax.particles import Particles
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.methods import adam
from ivon_jax.train.methods.adam import Adam, AdamHyper
from ivon_jax.train.methods.base import Loss, Minibatch
from ivon_jax.train.options import preset, unset

PRESETS: dict[str, dict[str, Any]] = {
    name: values | {"members": 5, "order": "same"}
    for name, values in adam.PRESETS.items()
}


@dataclasses.dataclass(frozen=True)
class EnsembleHyper(AdamHyper):
    """Hyper-parameters besides those of Adam.

    Attributes:
        members: sets of adapters.
        order: whether all members see the same batches (same), or each has a shuffle
            of its own, of which a step takes batch_size examples (own).
    """

    members: Annotated[int | None, preset("INT", PRESETS, "members")] = None
    order: Annotated[Literal["same", "own"] | None, unset("{same,own}", "same")] = None

    PRESETS: ClassVar = PRESETS
    RULES: ClassVar = AdamHyper.RULES | {"members": AT_LEAST_TWO}


class Ensemble(Adam):
    """Adam on several members at once, along the first axis of every parameter.

    The members' passes are one batched pass, which reads the frozen base once; its
    activations take as many times the memory. The first member is what Adam trains.
    """

    name: ClassVar = "ensemble"
    color: ClassVar = "tab:olive"
    hyper_type: ClassVar = EnsembleHyper
    own_start: ClassVar = "its members would start alike"
    spread: ClassVar = True

    @property
    def gradients(self) -> int:
        """One for each member."""
        return self.hyper.members

    @property
    def reads(self) -> int:
        """All members share the base's reads."""
        return 1

    @property
    def orders(self) -> int:
        """One for each member, or one for all."""
        return self.hyper.members if self.hyper.order == "own" else 1

    def start(
        self, fresh: Callable[[Key[Array, ""]], PyTree], key: Key[Array, ""]
    ) -> PyTree:
        """Draws every member with a key of its own, the first with the run's."""
        members = [fresh(each) for each in self._keys(key)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)

    def posterior(self, params: PyTree, state: PyTree) -> Particles:
        """Returns the members."""
        return Particles(params)

    def _value_and_grad(
        self, loss: Loss, params: PyTree, minibatch: Minibatch
    ) -> tuple[Float[Array, ""], PyTree]:
        """Returns the members' mean loss, and each one's gradient of its own loss."""

        def of_member(
            params: PyTree, batch: Batch, rngs: Any
        ) -> tuple[Float[Array, ""], PyTree]:
            return jax.value_and_grad(loss)(params, Minibatch(batch, rngs))

        own = self.orders > 1
        batch = _each_own(minibatch, self.orders) if own else minibatch.batch
        rngs = {name: self._keys(key) for name, key in minibatch.rngs.items()}
        of_all = jax.vmap(of_member, (0, 0 if own else None, 0))
        values, grads = of_all(params, batch, rngs)
        return jnp.mean(values), grads

    def _keys(self, key: Key[Array, ""]) -> Key[Array, " m"]:
        """Returns the key of each member; that of the first is the key itself."""
        others = jnp.arange(1, self.hyper.members)
        folded = jax.vmap(jax.random.fold_in, (None, 0))(key, others)
        return jnp.concatenate([key[None], folded])


def _each_own(minibatch: Minibatch, members: int) -> Batch:
    """Returns the members' batches, stacked; the weights of each sum to 1."""
    batch = minibatch.split(members, strided=True).batch
    totals = jnp.sum(batch.weights, axis=(1, 2), keepdims=True)
    return batch._replace(weights=batch.weights / totals)
