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
from ivon_jax.train.pod.sharding import activation_rules, constrain, replicate
from ivon_jax.train.predictors.base import Keys, Outputs, Predictor
from ivon_jax.train.trainable import Trainable


class TrainState(NamedTuple):
    """The state that a step updates."""

    step: Int[Array, ""]  # int32
    params: PyTree
    method: PyTree

    def to_tree(self) -> dict[str, Any]:
        """Returns the parts by their names in checkpoints."""
        return {"step": self.step, "adapters": self.params, "method": self.method}

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> "TrainState":
        """Builds the state from a checkpoint."""
        return cls(tree["step"], tree["adapters"], tree["method"])


@dataclasses.dataclass(frozen=True)
class Network:
    """A model and the choice of its trained parameters; hashable.

    Attributes:
        base: the model without adapters.
        module: the model that is applied.
        trainable: the choice of trained parameters.
        dropout: the largest of its dropout rates in training.
    """

    base: nn.Module
    module: nn.Module
    trainable: Trainable
    dropout: float

    def bind(
        self, params: PyTree, frozen: PyTree, rngs: dict[str, Key[Array, ""]]
    ) -> Bound:
        """Binds the model to parameters."""
        variables = self.trainable.join(params, frozen)
        return Bound(self.module, self.base, variables, rngs)


class Fixed(NamedTuple):
    """The arrays that no step changes.

    Attributes:
        frozen: parameters that are not trained.
        objective: the task's objective.
        streams: the run's keys; the step number is folded in.
        prefix: common prefix of all texts, which batches lack; None without one.
    """

    frozen: PyTree
    objective: Objective
    streams: Streams
    prefix: Int[Array, " p"] | None = None


def first_state(
    network: Network, method: Method, start: PyTree | None, key: Key[Array, ""]
) -> TrainState:
    """Makes the state before the first step.

    Args:
        network: the model.
        method: the method.
        start: initial parameters, or some of them; the others are drawn.
        key: key of the parameters that are drawn.
    """

    def fresh(key: Key[Array, ""]) -> PyTree:
        drawn: Any = network.trainable.fresh(network.module, key)
        leaves = flatten_dict(drawn) | flatten_dict(start or {})
        return unflatten_dict({path: jnp.asarray(x) for path, x in leaves.items()})

    params = method.start(fresh, key)
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
        method: the method.
        state: the current state; its buffers are reused.
        fixed: frozen parameters, objective, keys and prefix.
        batch: the examples.
        accumulate: micro-batches to compute the gradient in.

    Returns:
        The next state and this step's scalars, among them ``finite``.
    """
    objective, streams = fixed.objective, fixed.streams

    def loss(params: PyTree, minibatch: Minibatch) -> Float[Array, ""]:
        model = network.bind(params, fixed.frozen, minibatch.rngs)
        return objective.loss(
            objective.outputs(model, minibatch.batch, fixed.prefix), minibatch.batch
        )

    weights = batch.weights / jnp.sum(batch.weights)
    minibatch = Minibatch(
        batch._replace(weights=weights),
        {"dropout": jax.random.fold_in(streams.dropout, state.step)},
    )
    with nn.logical_axis_rules(activation_rules()):
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
    """Reduces the memory of a batch's gradient to that of a micro-batch.

    The gradient is computed along with the loss, summed over micro-batches in a scan.

    Args:
        loss: a sum over rows.
        count: number of micro-batches.

    Returns:
        The same loss; only its parameters have a gradient.
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
    batch: Batch,
    index: int | Int[Array, ""],
    chunk_size: int | None,
) -> Float[Array, "s b c"]:
    """Computes the predictions of each of a predictor's draws.

    Args:
        network: the model.
        predictor: the predictor.
        fixed: see `Fixed`; the key of the draws is `streams.ensemble`.
        posterior: posterior of the trained parameters, from `Predictor.split`.
        batch: the examples.
        index: index of the batch.
        chunk_size: draws at a time; None for all.

    Returns:
        Log-probabilities of the classes, or numbers.
    """
    objective = fixed.objective

    def forward(
        params: PyTree, batch: Batch, dropout: Key[Array, ""] | None
    ) -> Float[Array, "b c"]:
        rngs = {} if dropout is None else {"dropout": dropout}
        model = network.bind(params, fixed.frozen, rngs)
        return objective.outputs(model, batch, fixed.prefix)

    key = fixed.streams.ensemble
    keys = Keys(key, jax.random.fold_in(key, index))
    with nn.logical_axis_rules(activation_rules()):
        draws = predictor.draws(Outputs(forward, batch), posterior, keys, chunk_size)
    return replicate(objective.predictions(draws))
