"""Variants of IVON-LoRA, to search with the commands of ``ivon-jax``.

    python -m benchmarks.variants tune --method ivon-lora-variant --sampler grid \
        --search eta=0,1 --steps 500 --validation-examples 400 --out runs/variants

They are no options of the library, as no run has shown a use for them: see
docs/results.md.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

import ivon_jax
from ivon_jax._ivon import MIN_HESS
from ivon_jax._state import ScaleByIvonState
from ivon_jax.checks import FINITE_NOT_NEGATIVE
from ivon_jax.prior import Prior
from ivon_jax.train import entry
from ivon_jax.train.methods.base import Loss, Minibatch, Result
from ivon_jax.train.methods.ivon_lora import IvonLora, IvonLoraHyper
from ivon_jax.train.methods.registry import METHODS


@dataclasses.dataclass(frozen=True)
class VariantHyper(IvonLoraHyper):
    """Hyper-parameters besides those of IVON-LoRA; the defaults change nothing.

    Attributes:
        eta: weight decay of the mean in units of delta.
        ess_start: lambda of the first step, in units of lambda; it moves to lambda
            geometrically. Above 1 it is a warm-up of the noise, below 1 an annealing.
        ess_share: share of the steps over which it moves.
        hess_steps: steps after which h of each matrix is set to the mean square of its
            gradients so far times the batch size; 0 leaves it at hess_init.
    """

    eta: float = 0.0
    ess_start: float = 1.0
    ess_share: float = 1.0
    hess_steps: int = 0

    RULES: ClassVar = IvonLoraHyper.RULES | {
        "eta": FINITE_NOT_NEGATIVE,
        "hess_steps": FINITE_NOT_NEGATIVE,
    }


class MeanSquare(NamedTuple):
    """Mean over steps and entries of each matrix's squared gradient."""

    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count
    value: PyTree[Float[Array, "..."]]


@dataclasses.dataclass(frozen=True)
class Variant(IvonLora):
    """IVON-LoRA with the changes of its hyper-parameters."""

    name: ClassVar = "ivon-lora-variant"
    color: ClassVar = "tab:olive"
    hyper_type: ClassVar = VariantHyper

    @property
    def _prior(self) -> Prior:
        return ivon_jax.MatrixPrior(eta=self.hyper.eta)

    @property
    def _tx(self) -> optax.GradientTransformationExtraArgs:
        return optax.chain(mean_square(), super()._tx)

    def step(
        self,
        loss: Loss,
        key: Key[Array, ""],
        params: PyTree,
        state: PyTree,
        minibatch: Minibatch,
    ) -> Result:
        """Takes a step with the lambda of its time; then may set h."""
        hyper = self.hyper
        share = state[0].count.astype(float) / (hyper.ess_share * hyper.steps)
        factor = hyper.ess_start ** jnp.maximum(1 - share, 0.0)
        state = _on_ivon(state, lambda ivon: ivon._replace(ess=hyper.ess * factor))
        result = super().step(loss, key, params, state, minibatch)
        seen: MeanSquare = result.state[0]

        def set_hess(ivon: ScaleByIvonState) -> ScaleByIvonState:
            def of_matrix(hess: Array, square: Array) -> Array:
                start = jnp.maximum(hyper.batch_size * square, MIN_HESS)
                return jnp.where(seen.count == hyper.hess_steps, start, hess)

            return ivon._replace(hess=jax.tree.map(of_matrix, ivon.hess, seen.value))

        return result._replace(state=_on_ivon(result.state, set_hess))


def mean_square() -> optax.GradientTransformation:
    """Observes the mean square of each matrix's gradients, and changes none."""

    def of_matrix(grad: Array) -> Array:
        return jnp.mean(jnp.square(grad), axis=(-2, -1), keepdims=True)

    def init(params: PyTree) -> MeanSquare:
        zeros = jax.tree.map(lambda p: jnp.zeros_like(of_matrix(p)), params)
        return MeanSquare(jnp.int32(0), zeros)

    def update(
        updates: PyTree, state: MeanSquare, params: PyTree | None = None
    ) -> tuple[PyTree, MeanSquare]:
        del params
        count = state.count + 1
        value = jax.tree.map(
            lambda old, g: old + (of_matrix(g) - old) / count.astype(float),
            state.value,
            updates,
        )
        return updates, MeanSquare(count, value)

    return optax.GradientTransformation(init, update)


def _on_ivon(state: PyTree, change: Any) -> PyTree:
    def is_ivon(node: Any) -> bool:
        return isinstance(node, ScaleByIvonState)

    return jax.tree.map(
        lambda node: change(node) if is_ivon(node) else node, state, is_leaf=is_ivon
    )


def main() -> None:
    """Runs ``ivon-jax`` with the variant among the methods."""
    METHODS[Variant.name] = Variant
    entry.main()


if __name__ == "__main__":
    main()
