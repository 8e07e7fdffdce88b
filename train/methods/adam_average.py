"""Averages of Adam's iterates: of the last part of the run, and exponential."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ivon_jax.checks import SHARE
from ivon_jax.points import Points
from ivon_jax.train.methods.adam import Adam, AdamHyper
from ivon_jax.train.methods.base import Loss, Minibatch, Result


@dataclasses.dataclass(frozen=True)
class AdamAverageHyper(AdamHyper):
    """Hyper-parameters besides Adam's.

    Attributes:
        tail_share: last share of the steps whose iterates are averaged.
        ema_share: window of the exponential average as a share of the steps: its decay
            is 1 - 1/(ema_share * steps).
    """

    tail_share: float = 0.5
    ema_share: float = 0.1

    RULES: ClassVar = AdamHyper.RULES | {"tail_share": SHARE, "ema_share": SHARE}


class AverageState(NamedTuple):
    """State of a run.

    Attributes:
        step: number of steps taken.
        adam: state of Adam.
        tail: mean of the last part's iterates; before it, the last iterate.
        ema: exponential average, debiased.
    """

    step: Int[Array, ""]  # int32
    adam: PyTree
    tail: PyTree
    ema: PyTree


class AdamAverage(Adam):
    """Adam, evaluated at the tail average, the last iterate and an exponential one.

    The steps are Adam's: only predictions differ.
    """

    name: ClassVar = "adam-average"
    color: ClassVar = "tab:brown"
    hyper_type: ClassVar = AdamAverageHyper

    def init(self, params: PyTree) -> AverageState:
        """Returns Adam's state, and the start as average."""
        return AverageState(jnp.int32(0), super().init(params), params, params)

    def step(
        self,
        loss: Loss,
        key: Key[Array, ""],
        params: PyTree,
        state: AverageState,
        minibatch: Minibatch,
    ) -> Result:
        """Takes a step of Adam, and averages."""
        result = super().step(loss, key, params, state.adam, minibatch)
        hyper, step = self.hyper, state.step + 1
        late = step - hyper.steps + round(hyper.tail_share * hyper.steps)
        share = 1 / jnp.maximum(late, 1).astype(jnp.float32)
        tail = _moved(state.tail, result.params, share, late <= 1)
        window = max(1.0, hyper.ema_share * hyper.steps)
        total = 1 - jnp.float32(1 - 1 / window) ** step.astype(jnp.float32)
        ema = _moved(state.ema, result.params, 1 / (window * total), step == 1)
        return result._replace(state=AverageState(step, result.state, tail, ema))

    def posterior(self, params: PyTree, state: AverageState) -> Points:
        """Returns the tail average, with the last iterate and the other average."""
        return Points(state.tail, {"ema": state.ema, "last": params})


def _moved(
    average: PyTree, params: PyTree, share: Float[Array, ""], first: Bool[Array, ""]
) -> PyTree:
    """Moves an average by a share of the way to the parameters; at first, to them."""

    def leaf(old: Array, param: Array) -> Array:
        return jnp.where(first, param, old + (param - old) * share.astype(old.dtype))

    return jax.tree.map(leaf, average, params)
