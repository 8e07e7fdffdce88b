"""SWAG: Adam, and the Gaussian of its last iterates (Maddox et al., 2019)."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from ivon_jax.checks import AT_LEAST_TWO, SHARE
from ivon_jax.iterates import Iterates
from ivon_jax.low_rank import LowRank
from ivon_jax.train.methods.adam import Adam, AdamHyper
from ivon_jax.train.methods.base import Loss, Minibatch, Result, linear_schedule


@dataclasses.dataclass(frozen=True)
class SwagHyper(AdamHyper):
    """Hyper-parameters besides Adam's, of which the learning rate is the peak.

    Attributes:
        collect_share: last share of the steps, in which iterates are collected.
        collect_rate: constant learning rate of that share, in units of the peak; before
            it, the rate falls from the peak to it.
        iterates: least number of iterates to collect, at equal distances of whole
            steps, so up to twice as many; every step's where the share has fewer.
        deviations: number K of the last iterates whose deviations from the mean give
            the covariance between parameters.
    """

    collect_share: float = 0.5
    collect_rate: float = 0.5
    iterates: int = 50
    deviations: int = 20

    RULES: ClassVar = AdamHyper.RULES | {
        "collect_share": SHARE,
        "iterates": AT_LEAST_TWO,
        "deviations": AT_LEAST_TWO,
    }

    def resolve(
        self, preset: str, num_examples: int, *, may_skip: bool = False
    ) -> "SwagHyper":
        """Fills every hyper-parameter, and checks that there will be two iterates."""
        hyper = super().resolve(preset, num_examples, may_skip=may_skip)
        if hyper.steps and hyper.collected < 2:
            raise ValueError(
                f"collect_share: {hyper.collect_share:g} of {hyper.steps} steps is not"
                " >= 2 steps"
            )
        return hyper

    @property
    def collected(self) -> int:
        """Number of steps in which iterates are collected."""
        assert self.steps is not None
        return round(self.collect_share * self.steps)


class SwagState(NamedTuple):
    """State of a run.

    Attributes:
        step: number of steps taken.
        adam: state of Adam.
        iterates: the iterates collected.
    """

    step: Int[Array, ""]  # int32
    adam: PyTree
    iterates: Iterates


class Swag(Adam):
    """SWAG; its mean is the stochastic weight average (SWA) of the iterates."""

    name: ClassVar = "swag"
    color: ClassVar = "tab:green"
    hyper_type: ClassVar = SwagHyper
    spread: ClassVar = True

    @property
    def schedule(self) -> optax.Schedule:
        """Falls to the constant rate of the iterates that are collected."""
        hyper = self.hyper
        peak, start = hyper.learning_rate, hyper.steps - hyper.collected
        return linear_schedule(peak, start, hyper.warmup, hyper.collect_rate * peak)

    def init(self, params: PyTree) -> SwagState:
        """Returns Adam's state, and no iterates."""
        number = self.hyper.collected // self._every
        iterates = Iterates.start(params, max(1, min(self.hyper.deviations, number)))
        return SwagState(jnp.int32(0), super().init(params), iterates)

    def step(
        self,
        loss: Loss,
        key: Key[Array, ""],
        params: PyTree,
        state: SwagState,
        minibatch: Minibatch,
    ) -> Result:
        """Takes a step of Adam, and collects where it leads if it is time to."""
        result = super().step(loss, key, params, state.adam, minibatch)
        step, hyper = state.step + 1, self.hyper
        # The step's number in the collecting share, and the distance of iterates.
        late, every = step - hyper.steps + hyper.collected, self._every
        iterates = jax.lax.cond(
            (late > 0) & (late % every == 0),
            lambda iterates: iterates.add(result.params),
            lambda iterates: iterates,
            state.iterates,
        )
        return result._replace(state=SwagState(step, result.state, iterates))

    def posterior(self, params: PyTree, state: SwagState) -> LowRank:
        """Returns the iterates' Gaussian; before the first, the point `params`."""
        posterior = state.iterates.posterior()
        some = state.iterates.number > 0
        mean = jax.tree.map(lambda m, p: jnp.where(some, m, p), posterior.mean, params)
        return dataclasses.replace(posterior, mean=mean)

    @property
    def _every(self) -> int:
        """Steps from one collected iterate to the next."""
        return max(1, self.hyper.collected // self.hyper.iterates)
