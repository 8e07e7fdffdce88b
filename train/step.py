"""The jitted functions: one training step, and one batch of predictions."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ivon_jax.kinds import Distribution
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Loss, Method, Minibatch
from ivon_jax.train.objectives.base import Bound, Objective
from ivon_jax.train.pod.sharding import BATCH_AXES, constrain, replicate
from ivon_jax.train.predictors.base import Keys, Predictor
from ivon_jax.train.trainable import Trainable


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Int[Array, ""]  # int32
    params: PyTree
    method: PyTree

    def to_tree(self) -> dict[str, Any]:
        """Names the parts as checkpoints do."""
        return {"step": self.step, "adapters": self.params, "method": self.method}

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> "TrainState":
        """Takes the parts from a checkpoint."""
        return cls(tree["step"], tree["adapters"], tree["method"])


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and which of its parameters are trained; hashable.

    Attributes:
        base: the model without adapters.
        module: the model that is applied.
        trainable: which parameters are trained.
        dropout: the largest of its dropout rates while it is trained.
    """

    base: nn.Module
    module: nn.Module
    trainable: Trainable
    dropout: float

    def bind(
        self, params: PyTree, frozen: PyTree, rngs: dict[str, Key[Array, ""]]
    ) -> Bound:
        """Puts parameters into the model."""
        variables = self.trainable.join(params, frozen)
        return Bound(self.module, self.base, variables, rngs)


class Fixed(NamedTuple):
    """The arrays that no step changes.

    Attributes:
        frozen: parameters that are not trained.
        objective: what is asked.
        streams: the run's keys; the step number is folded in.
    """

    frozen: PyTree
    objective: Objective
    streams: Streams


def first_state(
    network: Network, method: Method, start: PyTree | None, key: Key[Array, ""]
) -> TrainState:
    """Makes the state before the first step.

    Args:
        network: the model.
        method: how to step.
        start: parameters to start from, or some of them; None for fresh ones.
        key: of fresh parameters.

    Returns:
        The state.
    """
    fresh: Any = network.trainable.fresh(network.module, key)
    leaves = flatten_dict(fresh) | flatten_dict(start or {})
    params = unflatten_dict({path: jnp.asarray(x) for path, x in leaves.items()})
    return TrainState(jnp.int32(0), params, method.init(params))


@functools.partial(
    jax.jit, static_argnames=("network", "method", "accumulate"), donate_argnums=2
)
def train_step(
    network: Network,
    method: Method,
    state: TrainState,
    fixed: Fixed,
    batch: Batch,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Takes one step; a step with a non-finite loss or gradient changes nothing.

    Args:
        network: the model.
        method: how to step.
        state: the current state; its buffers are reused.
        fixed: what stays.
        batch: the examples.
        accumulate: micro-batches to compute the gradient in.

    Returns:
        The next state and this step's scalars, among them ``finite``.
    """
    objective, streams = fixed.objective, fixed.streams

    def loss(params: PyTree, minibatch: Minibatch) -> Float[Array, ""]:
        model = network.bind(params, fixed.frozen, minibatch.rngs)
        return objective.loss(
            objective.outputs(model, minibatch.batch), minibatch.batch
        )

    weights = batch.weights / jnp.sum(batch.weights)
    minibatch = Minibatch(
        batch._replace(weights=weights),
        {"dropout": jax.random.fold_in(streams.dropout, state.step)},
    )
    with nn.logical_axis_rules([("batch", BATCH_AXES)]):
        out = method.step(
            microbatched(loss, accumulate),
            jax.random.fold_in(streams.noise, state.step),
            state.params,
            state.method,
            minibatch,
        )
    finite = jnp.isfinite(out.loss) & jnp.isfinite(out.grad_norm)
    params, method_state = _select(
        finite, (out.params, out.state), (state.params, state.method)
    )
    logs = {
        "loss": out.loss,
        "grad_norm": out.grad_norm,
        **out.logs,
        "finite": finite.astype(jnp.float32),
    }
    state = TrainState(state.step + 1, params, method_state)
    return constrain(state), replicate(logs)


def microbatched(loss: Loss, count: int) -> Loss:
    """Makes the gradient of a batch's loss cost the memory of a micro-batch.

    The gradient is computed along with the loss, summed over micro-batches in a scan.
    Each has keys of its own.

    Args:
        loss: a sum over rows.
        count: number of micro-batches.

    Returns:
        The same loss, with a gradient for its parameters only.
    """
    if count == 1:
        return loss

    def loss_of(params: PyTree, minibatch: Minibatch) -> Float[Array, ""]:
        parts = minibatch.split(count, strided=True)

        def total(params: PyTree) -> tuple[Float[Array, ""], PyTree]:
            def add(total: PyTree, part: Minibatch) -> tuple[PyTree, None]:
                new = jax.value_and_grad(loss)(params, part)
                return jax.tree.map(jnp.add, total, new), None

            zeros = (jnp.zeros([]), jax.tree.map(jnp.zeros_like, params))
            return jax.lax.scan(add, zeros, parts)[0]

        @jax.custom_vjp
        def value(params: PyTree) -> Float[Array, ""]:
            return total(params)[0]

        value.defvjp(total, lambda grads, ct: (jax.tree.map(lambda g: ct * g, grads),))
        return value(params)

    return loss_of


def _select(choose_new: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(choose_new, n, o), new, old)


@functools.partial(jax.jit, static_argnames=("network", "predictor", "chunk_size"))
def predict_batch(
    network: Network,
    predictor: Predictor,
    fixed: Fixed,
    posterior: Distribution,
    prefix: Int[Array, " p"],
    batch: Batch,
    number: int | Int[Array, ""],
    chunk_size: int | None,
) -> Float[Array, "s b c"]:
    """Computes the predictions of each of a predictor's draws.

    Args:
        network: the model.
        predictor: what to average over.
        fixed: what stays; the key of the draws is `streams.ensemble`.
        posterior: of the trained parameters, as the predictor wants it.
        prefix: tokens that all prompts begin with and `batch` lacks.
        batch: the rest of the prompts.
        number: of the batch, from 0.
        chunk_size: draws at a time; None for all.

    Returns:
        Log-probabilities of the classes; or numbers.
    """
    objective = fixed.objective

    def outputs(params: PyTree, dropout: Key[Array, ""] | None) -> Float[Array, "b c"]:
        rngs = {} if dropout is None else {"dropout": dropout}
        model = network.bind(params, fixed.frozen, rngs)
        return objective.outputs(model, batch, prefix)

    key = fixed.streams.ensemble
    keys = Keys(key, jax.random.fold_in(key, number))
    draws = predictor.draws(outputs, posterior, keys, chunk_size)
    return replicate(objective.predictions(draws))
