"""The methods that can be compared, behind one small protocol.

A method owns its state and says how a step is taken and what posterior results; the
trainer and the evaluation know nothing else about it.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Key, PyTree

import ivon_jax

LossFn = Callable[..., Float[Array, ""]]


@runtime_checkable
class Method(Protocol):
    """A way to fit adapters; a frozen dataclass of its hyper-parameters."""

    name: ClassVar[str]

    @property
    def groups(self) -> int:
        """Parts of the batch with posterior samples of their own."""

    def init(self, adapters: PyTree) -> PyTree:
        """Returns the first state."""

    def step(
        self,
        loss_fn: LossFn,
        key: Key[Array, ""],
        adapters: PyTree,
        state: PyTree,
        batch: PyTree,
    ) -> tuple[Float[Array, ""], PyTree, PyTree, dict[str, Float[Array, ""]]]:
        """Takes one step on ``loss_fn(adapters, batch)``.

        Returns:
            The loss, the next adapters, the next state, and scalars worth logging.
        """

    def posterior(self, adapters: PyTree, state: PyTree) -> ivon_jax.Posterior:
        """Returns what the method believes about the adapters."""


def linear_schedule(peak: float, steps: int, warmup: int) -> optax.Schedule:
    """Rises from 0 to the peak over the warm-up, then falls to 0 at the last step.

    >>> [float(linear_schedule(1.0, 4, 2)(t)) for t in range(5)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, warmup),
            optax.linear_schedule(peak, 0.0, max(steps - warmup, 1)),
        ],
        [warmup],
    )


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam without weight decay: the usual LoRA baseline.

    Attributes:
        learning_rate: peak of the linear schedule.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        steps: length of the schedule.
        warmup: its warm-up steps.
    """

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    steps: int
    warmup: int

    name: ClassVar[str] = "adam"

    @property
    def groups(self) -> int:
        """One: there are no samples."""
        return 1

    @property
    def _tx(self) -> optax.GradientTransformation:
        schedule = linear_schedule(self.learning_rate, self.steps, self.warmup)
        return optax.adam(schedule, self.beta1, self.beta2, self.eps)

    def init(self, adapters: PyTree) -> PyTree:
        """Returns optax's Adam state."""
        return self._tx.init(adapters)

    def step(
        self,
        loss_fn: LossFn,
        key: Key[Array, ""],
        adapters: PyTree,
        state: PyTree,
        batch: PyTree,
    ) -> tuple[Float[Array, ""], PyTree, PyTree, dict[str, Float[Array, ""]]]:
        """Takes one step; the key is not used."""
        loss, grads = jax.value_and_grad(loss_fn)(adapters, batch)
        updates, state = self._tx.update(grads, state, adapters)
        logs = {"grad_norm": optax.tree.norm(grads)}
        return loss, optax.apply_updates(adapters, updates), state, logs

    def posterior(self, adapters: PyTree, state: PyTree) -> ivon_jax.Posterior:
        """Returns all mass on the adapters."""
        return ivon_jax.Posterior.point(adapters)


@dataclasses.dataclass(frozen=True)
class IvonLora:
    """IVON-LoRA, see `ivon_jax.ivon_lora`.

    Attributes:
        learning_rate: peak of the linear schedule.
        ess: lambda.
        hess_init: h0.
        beta1: decay of the momentum.
        beta2: decay of the Hessian estimate.
        clip_radius: xi.
        mc_samples: posterior samples a step.
        groups: parts of the batch that have samples of their own.
        steps: length of the schedule.
        warmup: its warm-up steps.
    """

    learning_rate: float
    ess: float
    hess_init: float
    beta1: float
    beta2: float
    clip_radius: float
    mc_samples: int
    steps: int
    warmup: int
    groups: int = 1

    name: ClassVar[str] = "ivon-lora"

    @property
    def _tx(self) -> optax.GradientTransformationExtraArgs:
        return ivon_jax.ivon_lora(
            linear_schedule(self.learning_rate, self.steps, self.warmup),
            self.ess,
            self.hess_init,
            self.beta1,
            self.beta2,
            self.clip_radius,
        )

    def init(self, adapters: PyTree) -> PyTree:
        """Returns the optimizer's state."""
        return self._tx.init(adapters)

    def step(
        self,
        loss_fn: LossFn,
        key: Key[Array, ""],
        adapters: PyTree,
        state: PyTree,
        batch: PyTree,
    ) -> tuple[Float[Array, ""], PyTree, PyTree, dict[str, Float[Array, ""]]]:
        """Takes one step at samples drawn with the key."""
        value_and_grad = ivon_jax.value_and_grad(loss_fn, self.mc_samples, self.groups)
        loss, grads, moments = value_and_grad(key, adapters, state, batch)
        updates, state = self._tx.update(grads, state, adapters, moments=moments)
        precision = self.posterior(adapters, state).precision
        logs = {
            "grad_norm": optax.tree.norm(grads),
            "posterior_std": _mean({n: jax.lax.rsqrt(p) for n, p in precision.items()}),
        }
        return loss, optax.apply_updates(adapters, updates), state, logs

    def posterior(self, adapters: PyTree, state: PyTree) -> ivon_jax.Posterior:
        """Returns the learned Gaussian."""
        return ivon_jax.Posterior.from_state(adapters, state)


def _mean(tree: PyTree) -> Float[Array, ""]:
    leaves = jax.tree.leaves(tree)
    total: Any = sum(jnp.sum(leaf) for leaf in leaves)
    return total / sum(leaf.size for leaf in leaves)


METHODS: dict[str, type[Adam] | type[IvonLora]] = {
    method.name: method for method in (Adam, IvonLora)
}
