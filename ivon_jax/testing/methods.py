"""The contract of a method, checked on a problem without a language model."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax.kinds import Distribution
from ivon_jax.lora import Branch, Lora, LoraConfig, init_adapters, low_rank
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.methods.base import Loss, Method, Minibatch


def check_method(method: Method, steps: int = 3) -> None:
    """Checks a method on the adapters of one small layer.

    A step keeps structure, shapes and dtypes, so that it compiles once; it is finite,
    and a function of only key, parameters, state and batch, so that a run resumes
    exactly; the posterior has the structure of LoRA's parameters; the hyper-parameters
    survive a round trip through a dictionary. Clears chex's counter of traces.

    Args:
        method: a method with resolved hyper-parameters.
        steps: number of steps.

    Raises:
        AssertionError: one of these does not hold.
    """
    chex.clear_trace_counter()
    model, minibatch = _model(method.branch), _minibatch()
    params = method.start(lambda key: _params(model, key), jax.random.key(0))
    state = jax.tree.map(jnp.asarray, method.init(params))

    def take(index: Array, params: PyTree, state: PyTree) -> PyTree:
        key = jax.random.fold_in(jax.random.key(1), index)
        return method.step(_loss_of(model), key, params, state, minibatch)

    step = jax.jit(chex.assert_max_traces(take, n=1))
    first = (params, state)
    for index in range(steps):
        result = step(jnp.int32(index), params, state)
        again = step(jnp.int32(index), params, state)
        chex.assert_trees_all_equal(result, again)
        params, state = result.params, result.state
        chex.assert_trees_all_equal_shapes_and_dtypes((params, state), first)
        chex.assert_rank(jax.tree.leaves(result.logs), 0)
        chex.assert_scalar_in(float(result.grad_norm), 0, float("inf"))
        chex.assert_tree_all_finite((result.loss, result.grad_norm, params))
    posterior = method.posterior(params, state)
    wanted = _params(_model(low_rank), jax.random.key(0))
    assert isinstance(posterior, Distribution), type(posterior)
    chex.assert_equal(posterior.spread, method.spread)
    draw = posterior.draw(jax.random.key(2))
    chex.assert_tree_all_finite((posterior.mean, draw))
    for tree in (posterior.mean, draw):
        chex.assert_trees_all_equal_shapes(tree, wanted)
    hyper = method.hyper
    chex.assert_equal(type(hyper)(**dataclasses.asdict(hyper)), hyper)


class _Classifier(nn.Module):
    """A linear classifier."""

    @nn.compact
    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b 3"]:
        """Computes the logits."""
        return nn.Dense(3, use_bias=False, name="layer")(x)


def _model(branch: Branch) -> Lora:
    """Returns the classifier with adapters."""
    return Lora(_Classifier(), LoraConfig(rank=2, targets=("all-linear",)), branch)


def _params(model: Lora, key: Key[Array, ""]) -> PyTree:
    """Draws the parameters of the branch; those that start at zero are 0.1."""
    params = init_adapters(model, key, jnp.ones((1, 4)))
    return jax.tree.map(lambda leaf: jnp.where(leaf == 0, 0.1, leaf), params)


def _minibatch() -> Minibatch:
    """Returns eight examples of equal weight."""
    rows = jnp.ones((8, 1))
    tokens = jnp.arange(32, dtype=jnp.int32).reshape(8, 4) % 5
    lengths = jnp.full((8, 1), 4, jnp.int32)
    labels = jnp.arange(8, dtype=jnp.int32)[:, None] % 3
    batch = Batch(tokens, lengths, labels, rows / 8)  # type: ignore[arg-type]
    return Minibatch(batch, {"dropout": jax.random.key(3)})


def _loss_of(model: Lora) -> Loss:
    """Returns the weighted cross-entropy of the classifier, whose base is zero."""
    frozen = {"layer": {"kernel": jnp.zeros((4, 3))}}

    def loss(params: PyTree, minibatch: Minibatch) -> Float[Array, ""]:
        batch = minibatch.batch
        x = jnp.asarray(batch.tokens, jnp.float32) / 4
        variables = {"params": frozen, "lora": params}
        logits: Any = model.apply(variables, x, rngs=minibatch.rngs)
        log_probs = jax.nn.log_softmax(logits)
        right = jnp.take_along_axis(log_probs, jnp.asarray(batch.labels), axis=1)
        return -jnp.sum(jnp.asarray(batch.weights) * right)

    return loss
