"""The jitted functions: one training step, and one batch of predictions."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ivon_jax.ensemble import ensemble_log_probs, ensemble_outputs
from ivon_jax.lora import Lora, init_adapters
from ivon_jax.posterior import Posterior
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.methods import LossFn, Method
from ivon_jax.train.pod.sharding import BATCH_AXES, constrain, replicate


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Int[Array, ""]  # int32
    adapters: PyTree
    method: PyTree


class Streams(NamedTuple):
    """Independent keys of one run, all from its seed."""

    adapters: Key[Array, ""]
    noise: Key[Array, ""]
    dropout: Key[Array, ""]
    ensemble: Key[Array, ""]

    @classmethod
    def from_seed(cls, seed: int) -> "Streams":
        """Folds a fixed number per stream into the seed's key."""
        key = jax.random.key(seed)
        return cls(*(jax.random.fold_in(key, i) for i in range(len(cls._fields))))


def first_state(
    model: Lora, method: Method, start: PyTree | None, key: Key[Array, ""]
) -> TrainState:
    """Makes the state before the first step.

    Args:
        model: the adapted model.
        method: how to step.
        start: adapters to start from, or some of them; None for fresh ones.
        key: of fresh adapters.

    Returns:
        The state.
    """
    fresh: Any = init_adapters(model, key, jnp.zeros((1, 1), jnp.int32))
    leaves = flatten_dict(fresh) | flatten_dict(start or {})
    adapters = unflatten_dict({path: jnp.asarray(x) for path, x in leaves.items()})
    return TrainState(jnp.int32(0), adapters, method.init(adapters))


def answer_outputs(
    model: Lora,
    params: PyTree,
    adapters: PyTree,
    answers: Int[Array, " c"] | None,
    batch: Batch,
    prefix: Int[Array, " p"] | None = None,
    **apply_args: Any,
) -> Float[Array, "b c"]:
    """Computes what is said of each class, or the number, that is asked for.

    A decoder's outputs are the label words' logits after each prompt's last token.
    Only the label words' rows of the output embedding are used: no tensor of the
    vocabulary's size is formed. An encoder's are those of its head.

    Args:
        model: the adapted model.
        params: the base model's parameters.
        adapters: its ``lora`` collection.
        answers: token of each label word; None for an encoder.
        batch: prompts, without the prefix if one is given; or an encoder's texts.
        prefix: tokens all prompts begin with, run once for the whole batch.
        **apply_args: for `Lora.apply`, as ``rngs``.

    Returns:
        Outputs, float32, of every text, row by row.
    """
    variables = {"params": params, "lora": adapters}
    if answers is None:
        index = jnp.arange(batch.tokens.shape[1])[None]
        types = (index >= batch.seconds).astype(jnp.int32)  # type: ignore[operator]
        out: Any = model.apply(
            variables,
            batch.tokens,
            mask=index < batch.lengths,
            types=types,
            **apply_args,
        )
        return out
    past = None
    if prefix is not None and len(prefix):
        _, past = model.apply(variables, prefix[None], return_cache=True)
    ends = jnp.cumsum(batch.lengths, axis=1)
    segments = None
    if ends.shape[1] > 1:
        index = jnp.arange(batch.tokens.shape[1])[None, :, None]
        segments = jnp.sum(index >= ends[:, None], axis=2)
    hidden: Any = model.apply(
        variables, batch.tokens, past=past, segments=segments, **apply_args
    )
    last = jnp.take_along_axis(hidden, ends[:, :, None] - 1, axis=1)
    last = last.reshape(-1, last.shape[-1])
    logits: Any = model.base.apply({"params": params}, last, answers, method="unembed")
    return logits


def mean_loss(outputs: Float[Array, "b c"], labels: Any) -> Float[Array, ""]:
    """Averages the cross-entropy of classes, or the squared error of numbers.

    Args:
        outputs: logits of the classes, or one number each.
        labels: classes as integers, or numbers as floats, (b,).

    Returns:
        The mean over the batch.
    """
    if jnp.issubdtype(labels.dtype, jnp.floating):
        return jnp.mean(jnp.square(outputs[:, 0] - labels))
    losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
    return jnp.mean(losses)


@functools.partial(
    jax.jit, static_argnames=("model", "method", "accumulate"), donate_argnums=2
)
def train_step(
    model: Lora,
    method: Method,
    state: TrainState,
    params: PyTree,
    answers: Int[Array, " c"] | None,
    batch: Batch,
    streams: Streams,
    accumulate: int = 1,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Takes one step; a step with a non-finite loss or gradient changes nothing.

    Args:
        model: the adapted model.
        method: how to step.
        state: the current state; its buffers are reused.
        params: the frozen base.
        answers: token of each label word; None for an encoder.
        batch: the examples.
        streams: the run's keys; the step number is folded in.
        accumulate: micro-batches to compute the gradient in; all of a group's share
            its posterior sample.

    Returns:
        The next state and this step's scalars, among them ``finite``.
    """
    dropout = jax.random.fold_in(streams.dropout, state.step)

    def loss_fn(adapters: PyTree, batch: Batch) -> Float[Array, ""]:
        outputs = answer_outputs(
            model, params, adapters, answers, batch, rngs={"dropout": dropout}
        )
        return mean_loss(outputs, batch.labels.reshape(-1))

    key = jax.random.fold_in(streams.noise, state.step)
    if accumulate > 1:
        loss_fn = _accumulated(loss_fn, accumulate)
    if method.groups > 1:
        batch = jax.tree.map(
            lambda x: x.reshape(method.groups, -1, *x.shape[1:]), batch
        )
    # The groups themselves are split along data, each one's rows along the rest.
    rows = BATCH_AXES[1:] if method.groups > 1 else BATCH_AXES
    with nn.logical_axis_rules([("batch", rows)]):
        loss, adapters, method_state, logs = method.step(
            loss_fn, key, state.adapters, state.method, batch
        )
    finite = jnp.isfinite(loss) & jnp.isfinite(logs["grad_norm"])
    adapters, method_state = _select(
        finite, (adapters, method_state), (state.adapters, state.method)
    )
    logs = {"loss": loss, **logs, "finite": finite.astype(jnp.float32)}
    state = TrainState(state.step + 1, adapters, method_state)
    return constrain(state), replicate(logs)


def _accumulated(loss_fn: LossFn, count: int) -> LossFn:
    """Makes the gradient of a batch's mean loss cost the memory of a micro-batch.

    Its gradient is computed along with the loss, summed over micro-batches in a scan.
    """

    def loss_of(adapters: PyTree, batch: Batch) -> Float[Array, ""]:
        # Strided, so that each micro-batch has rows on every device.
        parts = jax.tree.map(
            lambda x: jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1), batch
        )

        def mean(adapters: PyTree) -> tuple[Float[Array, ""], PyTree]:
            def add(total: PyTree, part: Batch) -> tuple[PyTree, None]:
                new = jax.value_and_grad(loss_fn)(adapters, part)
                return jax.tree.map(lambda t, x: t + x / count, total, new), None

            zeros = (jnp.zeros([]), jax.tree.map(jnp.zeros_like, adapters))
            return jax.lax.scan(add, zeros, parts)[0]

        @jax.custom_vjp
        def loss(adapters: PyTree) -> Float[Array, ""]:
            return mean(adapters)[0]

        loss.defvjp(mean, lambda grads, ct: (jax.tree.map(lambda g: ct * g, grads),))
        return loss(adapters)

    return loss_of


def _select(choose_new: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(choose_new, n, o), new, old)


@functools.partial(jax.jit, static_argnames=("model", "samples", "chunk_size"))
def predict_batch(
    model: Lora,
    params: PyTree,
    posterior: Posterior,
    answers: Int[Array, " c"] | None,
    prefix: Int[Array, " p"],
    batch: Batch,
    key: Key[Array, ""],
    samples: int,
    chunk_size: int | None,
) -> Float[Array, "s b c"]:
    """Computes each posterior sample's predictions.

    Args:
        model: the adapted model.
        params: the frozen base.
        posterior: of the adapters.
        answers: token of each label word; None for an encoder.
        prefix: tokens that all prompts begin with and `batch` lacks.
        batch: the rest of the prompts.
        key: the ensemble's key.
        samples: number of samples s.
        chunk_size: see `ensemble_log_probs`.

    Returns:
        Log-probabilities of the classes; or numbers, if the batch's labels are some.
    """

    def outputs_fn(adapters: PyTree) -> Float[Array, "b c"]:
        return answer_outputs(model, params, adapters, answers, batch, prefix)

    numbers = jnp.issubdtype(batch.labels.dtype, jnp.floating)
    ensemble = ensemble_outputs if numbers else ensemble_log_probs
    return replicate(ensemble(outputs_fn, posterior, key, samples, chunk_size))
