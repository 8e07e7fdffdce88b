"""The contract of a method, checked on a problem without a language model."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from ivon_jax.kinds import Distribution
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.methods.base import Method, Minibatch


def check_method(method: Method, steps: int = 3) -> None:
    """Checks a method on a small factored regression.

    A step keeps structure, shapes and dtypes, so that it compiles once; it is finite,
    and a function of only key, parameters, state and batch, so that a run resumes
    exactly; the posterior has the parameters' structure; the hyper-parameters survive
    a round trip through a dictionary. Clears chex's counter of traces.

    Args:
        method: a method with resolved hyper-parameters.
        steps: number of steps.

    Raises:
        AssertionError: one of these does not hold.
    """
    chex.clear_trace_counter()
    params, minibatch = _params(), _minibatch()
    state = jax.tree.map(jnp.asarray, method.init(params))

    def take(index: Array, params: PyTree, state: PyTree) -> PyTree:
        key = jax.random.fold_in(jax.random.key(1), index)
        return method.step(_loss, key, params, state, minibatch)

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
    assert isinstance(posterior, Distribution), type(posterior)
    chex.assert_equal(posterior.spread, method.spread)
    draw = posterior.draw(jax.random.key(2))
    chex.assert_tree_all_finite((posterior.mean, draw))
    for tree in (posterior.mean, draw):
        chex.assert_trees_all_equal_shapes(tree, params)
    hyper = method.hyper
    chex.assert_equal(type(hyper)(**dataclasses.asdict(hyper)), hyper)


def _params() -> PyTree:
    """Returns a layer's factors under the names of adapters."""
    a = jax.random.normal(jax.random.key(0), (4, 2))
    return {"layer": {"a": a, "b": jnp.full((2, 3), 0.1, a.dtype)}}


def _minibatch() -> Minibatch:
    """Returns eight examples of equal weight."""
    rows = jnp.ones((8, 1))
    tokens = jnp.arange(32, dtype=jnp.int32).reshape(8, 4) % 5
    lengths = jnp.full((8, 1), 4, jnp.int32)
    labels = jnp.arange(8, dtype=jnp.int32)[:, None] % 3
    batch = Batch(tokens, lengths, labels, rows / 8)  # type: ignore[arg-type]
    return Minibatch(batch, {"dropout": jax.random.key(3)})


def _loss(params: PyTree, minibatch: Minibatch) -> Float[Array, ""]:
    """Returns the weighted cross-entropy of a factored linear classifier."""
    batch, layer = minibatch.batch, params["layer"]
    x = jnp.asarray(batch.tokens, layer["a"].dtype) / 4
    log_probs = jax.nn.log_softmax(x @ layer["a"] @ layer["b"])
    right = jnp.take_along_axis(log_probs, jnp.asarray(batch.labels), axis=1)
    return -jnp.sum(jnp.asarray(batch.weights) * right)
