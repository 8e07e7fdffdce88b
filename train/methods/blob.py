"""BLoB: a Gaussian on A learned by backpropagation (Wang et al., 2024, 2406.11675).

A is normal with mean M and standard deviation G^2, entry by entry; B is a point. The
loss is the expected one plus the KL to N(0, prior_std^2), with the weight pi_i of the
i-th step of a cycle.
"""

import dataclasses
import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax import Posterior
from ivon_jax._tree import by_path, nest
from ivon_jax.checks import FINITE_POSITIVE, Rule, check
from ivon_jax.lora import Branch
from ivon_jax.noise import standard_normal
from ivon_jax.train.methods.base import (
    Hyper,
    Loss,
    Method,
    Minibatch,
    Result,
    linear_schedule,
    mean_entry,
)
from ivon_jax.train.methods.flipout import Flipout
from ivon_jax.train.options import preset, unset

Leaves = dict[str, Array]  # by path

ADAM_EPS = 1e-6
# The settings of the paper's code for Llama and for RoBERTa.
PRIOR = {"prior_std": 0.2, "root_init": 0.05, "kl_gamma": 8.0}
LLAMA = {"learning_rate": 1e-4, "kl_learning_rate": 1e-2, **PRIOR}
ROBERTA = {"learning_rate": 5e-4, "kl_learning_rate": 2e-3, **PRIOR}
PRESETS: dict[str, dict[str, Any]] = {
    "commonsense": {"warmup": 300, **LLAMA},
    "glue": {"warmup": 300, **ROBERTA},
    "text": LLAMA,
}


@dataclasses.dataclass(frozen=True)
class BlobHyper(Hyper):
    """Hyper-parameters besides those of every method.

    Attributes:
        warmup: steps over which both learning rates rise; by default 6 % of the steps.
        learning_rate: peak of the linear schedule of Adam, which follows the loss.
        kl_learning_rate: peak of the linear schedule of SGD, which follows the KL.
        prior_std: standard deviation of the prior of every entry of A.
        root_init: largest initial entry of G, whose square is the standard deviation.
        kl_gamma: the KL's cycle is 100 N^(pi/gamma) / batch_size steps; excludes
            kl_cycle.
        kl_cycle: steps of a cycle; excludes kl_gamma. The KL's weight doubles at each
            step and is 1/2 at the last one: in a run that is shorter than a cycle the
            KL does not act.
        order: what follows the loss in G: the KL's SGD, as in the paper's code
            (official), or Adam (separate).
        noise_form: signs of the noise for each token, and a draw for each layer
            (flipout); or one sample of A for the whole batch (shared).
    """

    warmup: Annotated[int | None, preset("INT", PRESETS, "warmup")] = None
    learning_rate: Annotated[
        float | None, preset("FLOAT", PRESETS, "learning_rate")
    ] = None
    kl_learning_rate: Annotated[
        float | None, preset("FLOAT", PRESETS, "kl_learning_rate")
    ] = None
    prior_std: Annotated[float | None, preset("FLOAT", PRESETS, "prior_std")] = None
    root_init: Annotated[float | None, preset("FLOAT", PRESETS, "root_init")] = None
    kl_gamma: Annotated[float | None, preset("FLOAT", PRESETS, "kl_gamma")] = None
    kl_cycle: Annotated[int | None, unset("INT", "from kl_gamma")] = None
    order: Annotated[
        Literal["official", "separate"] | None,
        unset("{official,separate}", "official"),
    ] = None
    noise_form: Annotated[
        Literal["flipout", "shared"] | None,
        unset("{flipout,shared}", "flipout"),
    ] = None

    PRESETS: ClassVar = {
        name: values | {"order": "official", "noise_form": "flipout"}
        for name, values in PRESETS.items()
    }
    RULES: ClassVar = {
        "kl_gamma": Rule("a number >= 1", lambda value: 1 <= value < math.inf),
        "kl_cycle": Rule("in [1, 2^31)", lambda value: 1 <= value < 2**31),
    }
    DERIVED: ClassVar = {"kl_cycle": "kl_gamma"}
    WARMUP: ClassVar = 0.06

    def _complete(
        self, defaults: dict[str, Any], given: dict[str, Any], num_examples: int
    ) -> dict[str, Any]:
        """Computes the KL's cycle from gamma."""
        if "kl_gamma" in given and "kl_cycle" in given:
            raise ValueError("kl_gamma: excludes kl_cycle; give one of them")
        values = defaults | given
        if "kl_cycle" in given:
            del values["kl_gamma"]
            return values
        gamma, batch_size = values["kl_gamma"], values["batch_size"]
        check("kl_gamma", gamma, self.RULES["kl_gamma"])
        check("batch_size", batch_size, FINITE_POSITIVE)
        cycle = int(100 * num_examples ** (math.pi / gamma) / batch_size)
        return values | {"kl_cycle": max(cycle, 1)}


class BlobState(NamedTuple):
    """The state of Adam, and the number of steps taken."""

    adam: PyTree
    step: Int[Array, ""]


class Blob(Method):
    """BLoB; its posterior is a Gaussian on A, and a point on all else."""

    name: ClassVar = "blob"
    color: ClassVar = "tab:purple"
    hyper_type: ClassVar = BlobHyper
    spread: ClassVar = True
    adapters_only: ClassVar = True
    own_start: ClassVar = "its prior pulls the base's own part to zero"

    @property
    def branch(self) -> Branch:
        """Keeps G beside A, and adds the noise."""
        return Flipout(self.hyper.root_init)

    @property
    def notes(self) -> list[str]:
        """Says that the run ends before the first cycle of the KL's weight does."""
        cycle, steps = self.hyper.kl_cycle, self.hyper.steps
        if steps >= cycle:
            return []
        largest = 2.0 ** (steps - cycle - 1)
        return [
            f"blob: the KL's cycle of {cycle} steps is longer than the run of {steps};"
            f" its weight, 1/2 at a cycle's end, reaches {largest:.1g} only:"
            " lower kl_cycle or raise kl_gamma"
        ]

    def init(self, params: PyTree) -> BlobState:
        """Returns the state before the first step."""
        adam = self._adam.init(self._by_adam(by_path(params)))
        return BlobState(adam, jnp.int32(0))

    def step(
        self,
        loss: Loss,
        key: Key[Array, ""],
        params: PyTree,
        state: BlobState,
        minibatch: Minibatch,
    ) -> Result:
        """Takes a step of Adam on the loss, then one of SGD on the KL.

        The norm is that of the gradient of the loss plus pi_i times the KL, which is
        largest at the end of a cycle.
        """
        value, grads = self._value_and_grad(loss, key, params, minibatch)
        leaves, grads = by_path(params), by_path(grads)
        leaves, adam = self._follow_loss(leaves, grads, state.adam)
        hyper = self.hyper
        rate = self._schedule(hyper.kl_learning_rate)(state.step)
        weight = kl_weight(state.step, hyper.kl_cycle)
        for mean, root in _pairs(leaves):
            kl = kl_gradients(leaves[mean], leaves[root], hyper.prior_std)
            kl_mean, kl_root = (weight * grad for grad in kl)
            left = grads[root] if hyper.order == "official" else 0.0
            leaves[mean] -= rate * kl_mean
            leaves[root] -= rate * (left + kl_root)
            grads[mean] += kl_mean
            grads[root] += kl_root
        stds = [jnp.square(leaves[root]) for _, root in _pairs(leaves)]
        logs = {"posterior_std": mean_entry(stds)}
        state = BlobState(adam, state.step + 1)
        return Result(value, optax.tree.norm(grads), nest(leaves), state, logs)

    def posterior(self, params: PyTree, state: BlobState) -> Posterior:
        """Returns the Gaussian over the parameters of LoRA."""
        leaves = by_path(params)
        precision = {
            mean: 1 / jnp.square(jnp.square(leaves.pop(root)))
            for mean, root in _pairs(leaves)
        }
        prior = jnp.asarray(self.hyper.prior_std**-2, jnp.float32)
        return Posterior(nest(leaves), precision, dict.fromkeys(precision, prior))

    def _schedule(self, peak: float) -> optax.Schedule:
        return linear_schedule(peak, self.hyper.steps, self.hyper.warmup)

    @property
    def _adam(self) -> optax.GradientTransformation:
        return optax.adam(self._schedule(self.hyper.learning_rate), eps=ADAM_EPS)

    def _by_adam(self, leaves: Leaves) -> Leaves:
        """Returns the leaves that Adam updates."""
        if self.hyper.order == "separate":
            return leaves
        roots = {root for _, root in _pairs(leaves)}
        return {name: leaf for name, leaf in leaves.items() if name not in roots}

    def _follow_loss(
        self, leaves: Leaves, grads: Leaves, state: PyTree
    ) -> tuple[Leaves, PyTree]:
        """Takes the step of Adam."""
        own = self._by_adam(leaves)
        # optax raises a Python float to the power of an integer array.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = self._adam.update(self._by_adam(grads), state, own)
        return leaves | optax.apply_updates(own, updates), state

    def _value_and_grad(
        self, loss: Loss, key: Key[Array, ""], params: PyTree, minibatch: Minibatch
    ) -> tuple[Float[Array, ""], PyTree]:
        """Computes the loss and its gradient with the noise of the method's form."""
        if self.hyper.noise_form == "flipout":
            noisy = minibatch._replace(rngs=minibatch.rngs | {"noise": key})
            return jax.value_and_grad(loss)(params, noisy)
        return jax.value_and_grad(lambda p: loss(_sampled(key, p), minibatch))(params)


def kl_weight(step: Int[Array, ""], cycle: int) -> Float[Array, ""]:
    """Returns pi_i = 2^i / (2^(M+1) - 1) of a cycle of M steps, i = 1, ..., M.

    Args:
        step: number of steps before this one.
        cycle: M; 2^M need not be a float.

    Example:
        >>> [round(7 * float(kl_weight(jnp.int32(i), 2)), 5) for i in range(3)]
        [2.0, 4.0, 2.0]
    """
    exponent = (step % cycle - cycle).astype(float)  # i - (M + 1)
    return jnp.exp2(exponent) / -math.expm1(-(cycle + 1) * math.log(2))


def kl_gradients(
    mean: Float[Array, "*n"], root: Float[Array, "*n"], prior_std: float
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    """Returns the gradients of KL(N(m, g^4) || N(0, s^2)), summed over entries.

    An entry's KL is log(s / g^2) + (g^4 + m^2) / (2 s^2) - 1/2.

    Args:
        mean: m.
        root: g, the square root of the standard deviation.
        prior_std: s.

    Returns:
        The gradient in m and that in g.
    """
    variance = prior_std**2
    return mean / variance, 2 * (root**3 / variance - 1 / root)


def _pairs(leaves: Leaves) -> list[tuple[str, str]]:
    """Lists the names of each A and its G, which lies beside it."""
    roots = [name for name in leaves if name.rpartition("/")[2] == "g"]
    return [(root[:-1] + "a", root) for root in roots]


def _sampled(key: Key[Array, ""], params: PyTree) -> PyTree:
    """Replaces every A by a sample."""
    leaves = by_path(params)
    for mean, root in _pairs(leaves):
        noise = standard_normal(key, mean, leaves[mean], 0)
        leaves[mean] += jnp.square(leaves[root]) * noise
    return nest(leaves)
