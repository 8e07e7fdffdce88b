"""Ensembles of adapters, trained side by side by Adam (Wang et al., 2023).

See arXiv:2310.00035. Members differ in their draw of A and in their dropout masks; all
see the same batches. Predictions average their probabilities.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax.checks import Rule
from ivon_jax.particles import Particles
from ivon_jax.train.methods import adam
from ivon_jax.train.methods.adam import Adam, AdamHyper
from ivon_jax.train.methods.base import Loss, Minibatch
from ivon_jax.train.options import preset

PRESETS: dict[str, dict[str, Any]] = {
    name: values | {"members": 5} for name, values in adam.PRESETS.items()
}


@dataclasses.dataclass(frozen=True)
class EnsembleHyper(AdamHyper):
    """Hyper-parameters besides those of Adam.

    Attributes:
        members: sets of adapters.
    """

    members: Annotated[int | None, preset("INT", PRESETS, "members")] = None

    PRESETS: ClassVar = PRESETS
    RULES: ClassVar = AdamHyper.RULES | {"members": Rule(">= 2", lambda n: n >= 2)}


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

        def of_member(params: PyTree, rngs: Any) -> tuple[Float[Array, ""], PyTree]:
            return jax.value_and_grad(loss)(params, minibatch._replace(rngs=rngs))

        rngs = {name: self._keys(key) for name, key in minibatch.rngs.items()}
        values, grads = jax.vmap(of_member)(params, rngs)
        return jnp.mean(values), grads

    def _keys(self, key: Key[Array, ""]) -> Key[Array, " m"]:
        """Returns the key of each member; that of the first is the key itself."""
        others = jnp.arange(1, self.hyper.members)
        folded = jax.vmap(jax.random.fold_in, (None, 0))(key, others)
        return jnp.concatenate([key[None], folded])
