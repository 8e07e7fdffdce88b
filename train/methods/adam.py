"""Adam, or AdamW: the usual baseline."""

import dataclasses
from typing import Annotated, Any, ClassVar

import jax
import optax
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax._tree import by_path, nest
from ivon_jax.checks import DECAY, FINITE_NOT_NEGATIVE
from ivon_jax.train.methods.base import (
    Hyper,
    Loss,
    Method,
    Minibatch,
    Result,
    linear_schedule,
)
from ivon_jax.train.options import preset, unset

PRESETS: dict[str, dict[str, Any]] = {
    "commonsense": {"learning_rate": 2e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "glue": {"learning_rate": 5e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    "text": {"learning_rate": 2e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
}


@dataclasses.dataclass(frozen=True)
class AdamHyper(Hyper):
    """Hyper-parameters besides those of every method.

    Attributes:
        learning_rate: peak of the linear schedule.
        beta1: decay of the momentum.
        beta2: decay of the squared gradient.
        eps: added to the root of the squared gradient.
        weight_decay: that of AdamW, which the learning rate multiplies.
        b_rate_ratio: learning rate of the B matrices over that of all else (LoRA+).
    """

    learning_rate: Annotated[
        float | None, preset("FLOAT", PRESETS, "learning_rate")
    ] = None
    beta1: Annotated[float | None, preset("FLOAT", PRESETS, "beta1")] = None
    beta2: Annotated[float | None, preset("FLOAT", PRESETS, "beta2")] = None
    eps: Annotated[float | None, preset("FLOAT", PRESETS, "eps")] = None
    weight_decay: Annotated[float | None, unset("FLOAT", "0")] = None
    b_rate_ratio: Annotated[float | None, unset("FLOAT", "1")] = None

    PRESETS: ClassVar = PRESETS
    RULES: ClassVar = {
        "beta1": DECAY,
        "beta2": DECAY,
        "eps": FINITE_NOT_NEGATIVE,
        "weight_decay": FINITE_NOT_NEGATIVE,
    }


class Adam(Method):
    """Adam; its posterior is a point."""

    name: ClassVar = "adam"
    color: ClassVar = "tab:orange"
    hyper_type: ClassVar = AdamHyper

    @property
    def schedule(self) -> optax.Schedule:
        """The learning rate by step."""
        hyper = self.hyper
        return linear_schedule(hyper.learning_rate, hyper.steps, hyper.warmup)

    @property
    def _tx(self) -> optax.GradientTransformation:
        hyper = self.hyper
        adam = hyper.beta1, hyper.beta2, hyper.eps
        if not hyper.weight_decay:
            return optax.adam(self.schedule, *adam)
        return optax.adamw(self.schedule, *adam, weight_decay=hyper.weight_decay)

    def init(self, params: PyTree) -> PyTree:
        """Returns optax's Adam state."""
        return self._tx.init(params)

    def step(
        self,
        loss: Loss,
        key: Key[Array, ""],
        params: PyTree,
        state: PyTree,
        minibatch: Minibatch,
    ) -> Result:
        """Takes one step; the key is not used."""
        value, grads = self._value_and_grad(loss, params, minibatch)
        # optax raises a Python float to the power of an integer array.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = self._tx.update(grads, state, params)
        if self.hyper.b_rate_ratio is not None:
            updates = _faster_b(updates, self.hyper.b_rate_ratio)
        params = optax.apply_updates(params, updates)
        return Result(value, optax.tree.norm(grads), params, state, {})

    def _value_and_grad(
        self, loss: Loss, params: PyTree, minibatch: Minibatch
    ) -> tuple[Float[Array, ""], PyTree]:
        """Computes the loss and its gradient."""
        return jax.value_and_grad(loss)(params, minibatch)


def _faster_b(updates: PyTree, ratio: float) -> PyTree:
    """Multiplies the updates of the B matrices."""
    leaves = by_path(updates)
    return nest({k: ratio * x if k.endswith("/b") else x for k, x in leaves.items()})
