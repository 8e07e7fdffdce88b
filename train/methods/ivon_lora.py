"""IVON-LoRA: a Gaussian posterior with a prior for each matrix (Sec. 3.2, Eq. 2)."""

import dataclasses
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import optax
from jaxtyping import Array, Key, PyTree

import ivon_jax
from ivon_jax.checks import DECAY
from ivon_jax.prior import Prior
from ivon_jax.train.methods.base import (
    Hyper,
    Loss,
    Method,
    Minibatch,
    Result,
    linear_schedule,
    mean_entry,
)
from ivon_jax.train.options import preset, unset
from ivon_jax.train.pod.sharding import BATCH_AXES, activation_rules

PRESETS: dict[str, dict[str, Any]] = {
    "commonsense": {
        "learning_rate": 1e-2,
        "beta1": 0.9,
        "beta2": 0.9995,
        "gamma": 5000.0,
        "hess_init": 5e-2,
        "clip_radius": 5e-3,
        "mc_samples": 1,
    },
    "glue": {
        "learning_rate": 1e-2,
        "beta1": 0.9,
        "beta2": 0.9998,
        "ess": 5e6,
        "hess_init": 5e-3,
        "clip_radius": 2e-2,
        "mc_samples": 1,
    },
    "text": {
        "learning_rate": 3e-2,
        "beta1": 0.9,
        "beta2": 0.99999,
        "ess": 1e7,
        "hess_init": 5e-3,
        "clip_radius": 1e-2,
        "mc_samples": 1,
    },
}


@dataclasses.dataclass(frozen=True)
class IvonLoraHyper(Hyper):
    """Hyper-parameters besides those of every method.

    Attributes:
        learning_rate: peak of the linear schedule.
        beta1: decay of the momentum.
        beta2: decay of the Hessian estimate.
        gamma: lambda = gamma * sqrt(N); excludes ess.
        ess: lambda itself; excludes gamma.
        hess_init: h0.
        clip_radius: largest entry of the preconditioned direction.
        mc_samples: posterior samples per step.
        noise: one posterior sample for the whole batch (shared), or one for each group
            along the mesh's data axis (per-shard).
    """

    learning_rate: Annotated[
        float | None, preset("FLOAT", PRESETS, "learning_rate")
    ] = None
    beta1: Annotated[float | None, preset("FLOAT", PRESETS, "beta1")] = None
    beta2: Annotated[float | None, preset("FLOAT", PRESETS, "beta2")] = None
    gamma: Annotated[float | None, preset("FLOAT", PRESETS, "gamma")] = None
    ess: Annotated[float | None, preset("FLOAT", PRESETS, "ess")] = None
    hess_init: Annotated[float | None, preset("FLOAT", PRESETS, "hess_init")] = None
    clip_radius: Annotated[float | None, preset("FLOAT", PRESETS, "clip_radius")] = None
    mc_samples: Annotated[int | None, preset("INT", PRESETS, "mc_samples")] = None
    noise: Annotated[
        Literal["shared", "per-shard"] | None,
        unset("{shared,per-shard}", "shared"),
    ] = None

    PRESETS: ClassVar = {k: v | {"noise": "shared"} for k, v in PRESETS.items()}
    RULES: ClassVar = {"beta1": DECAY, "beta2": DECAY}
    DERIVED: ClassVar = {"ess": "gamma"}

    def _complete(
        self, defaults: dict[str, Any], given: dict[str, Any], num_examples: int
    ) -> dict[str, Any]:
        """Computes lambda from gamma."""
        if "gamma" in given and "ess" in given:
            raise ValueError("gamma: excludes ess; give one of them")
        if "gamma" in given or "ess" in given:
            defaults = {k: v for k, v in defaults.items() if k not in ("gamma", "ess")}
        values = defaults | given
        if "gamma" in values:
            values["ess"] = ivon_jax.lora_ess(num_examples, values["gamma"])
        return values


@dataclasses.dataclass(frozen=True)
class IvonLora(Method):
    """IVON-LoRA, see `ivon_jax.ivon_lora`.

    Attributes:
        groups: number of parts of the batch with their own posterior samples.
    """

    groups: int = 1

    name: ClassVar = "ivon-lora"
    color: ClassVar = "tab:blue"
    hyper_type: ClassVar = IvonLoraHyper
    spread: ClassVar = True

    @classmethod
    def make(cls, hyper: Hyper, shards: int) -> "IvonLora":
        """Builds the method."""
        assert isinstance(hyper, IvonLoraHyper)
        return cls(hyper, shards if hyper.noise == "per-shard" else 1)

    @property
    def gradients(self) -> int:
        """One for each posterior sample."""
        return self.hyper.mc_samples or 1

    @property
    def metadata(self) -> dict[str, float]:
        """Lambda."""
        return {} if self.hyper.ess is None else {"ess": self.hyper.ess}

    @property
    def _prior(self) -> Prior:
        return ivon_jax.MatrixPrior()

    @property
    def _tx(self) -> optax.GradientTransformationExtraArgs:
        hyper = self.hyper
        return ivon_jax.ivon_lora(
            linear_schedule(hyper.learning_rate, hyper.steps, hyper.warmup),
            hyper.ess,
            hyper.hess_init,
            hyper.beta1,
            hyper.beta2,
            hyper.clip_radius,
            self._prior,
        )

    def init(self, params: PyTree) -> PyTree:
        """Returns the optimizer's state."""
        return self._tx.init(params)

    def step(
        self,
        loss: Loss,
        key: Key[Array, ""],
        params: PyTree,
        state: PyTree,
        minibatch: Minibatch,
    ) -> Result:
        """Takes one step at samples drawn with the key."""
        mc_samples, groups = self.gradients, self.groups
        if groups == 1:
            found = ivon_jax.value_and_grad(loss, mc_samples)(
                key, params, state, minibatch
            )
        else:
            # The mean over a group is `groups` times its share of the batch's loss.
            grouped = ivon_jax.value_and_grad(
                lambda *args: groups * loss(*args), mc_samples, groups
            )
            # Groups are split along data, the rows of each along the other axes.
            with nn.logical_axis_rules(activation_rules(BATCH_AXES[1:])):
                found = grouped(key, params, state, minibatch.split(groups))
        value, grads, moments = found
        updates, state = self._tx.update(grads, state, params, moments=moments)
        precision = self.posterior(params, state).precision
        logs = {
            "posterior_std": mean_entry(
                {n: jax.lax.rsqrt(p) for n, p in precision.items()}
            )
        }
        params = optax.apply_updates(params, updates)
        return Result(value, optax.tree.norm(grads), params, state, logs)

    def posterior(self, params: PyTree, state: PyTree) -> ivon_jax.Posterior:
        """Returns the learned Gaussian."""
        return ivon_jax.Posterior.from_state(params, state)

    def diagnose(self, params: PyTree, state: PyTree) -> ivon_jax.Diagnosis:
        """Compares noise, curvature and clip."""
        hyper = self.hyper
        return ivon_jax.diagnose(
            params, state, hyper.hess_init, hyper.clip_radius, self._prior, hyper.beta1
        )
