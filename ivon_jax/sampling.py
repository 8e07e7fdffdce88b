"""Posterior samples, and gradients at them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax._state import (
    Moments,
    at_least_float32,
    noise_moments,
    posterior_noise,
    posterior_precision,
    redraw_moments,
)
from ivon_jax._tree import added, by_path, path_name
from ivon_jax.checks import AT_LEAST_ONE, check


def sample(
    key: Key[Array, ""],
    params: PyTree,
    opt_state: PyTree,
    index: int | Int[Array, ""] = 0,
) -> PyTree:
    """Draws parameters from the current posterior N(params, v).

    Args:
        key: the step's key, also given to `update`.
        params: the posterior mean.
        opt_state: the state of any chain or wrapper around `scale_by_ivon`.
        index: index of the Monte-Carlo sample.

    Returns:
        A tree like `params`. Leaves that IVON does not cover are unchanged.

    Raises:
        ValueError: `opt_state` holds no IVON state, or one of other parameters.

    Example:
        >>> from ivon_jax import ivon
        >>> params = {"w": jnp.zeros(3)}
        >>> opt_state = ivon(0.1, ess=100.0).init(params)
        >>> theta = sample(jax.random.key(0), params, opt_state)
    """
    return _add(params, posterior_noise(key, opt_state, index))


def _add(params: PyTree, noise: dict[str, Float[Array, "..."]]) -> PyTree:
    missing = noise.keys() - by_path(params).keys()
    if missing:
        raise ValueError(f"params: lacks the leaf {min(missing)!r} of IVON's state")
    return added(params, noise)


def value_and_grad(
    loss_fn: Callable[..., Any],
    mc_samples: int = 1,
    groups: int = 1,
    *,
    has_aux: bool = False,
) -> Callable[..., tuple[Any, PyTree, Moments]]:
    """Returns a function that averages loss and gradient over posterior samples.

    Pass `moments` on to `update`, which then redraws no noise. With `mc_samples` > 1
    this is required.

    Args:
        loss_fn: ``loss_fn(params, *args)``, a scalar, or a pair of it and anything
            else.
        mc_samples: number of samples K, computed one after another.
        groups: number of groups G. If above 1, every leaf of ``args`` has a leading
            axis of that size, and group g has samples gK to gK + K - 1, each on its
            share of the data. On a device mesh the axis belongs on ``data``.
        has_aux: whether `loss_fn` returns a pair, as for `jax.value_and_grad`.

    Returns:
        ``f(key, params, opt_state, *args) -> (loss, grads, moments)``, the means
        over the samples. With `has_aux` the first is ``(loss, aux)``; ``aux`` is not
        averaged: it has a new first axis of the groups if G > 1, then one of the
        samples if K > 1.

    Raises:
        ValueError: `mc_samples` or `groups` is below 1.

    Example:
        >>> from ivon_jax import ivon
        >>> params = {"w": jnp.ones(3)}
        >>> tx = ivon(0.1, ess=100.0)
        >>> opt_state = tx.init(params)
        >>> loss_fn = lambda params, x: jnp.mean((params["w"] - x) ** 2)
        >>> key, x = jax.random.key(0), jnp.zeros(3)
        >>> loss, grads, moments = value_and_grad(loss_fn, mc_samples=4)(
        ...     key, params, opt_state, x
        ... )
        >>> updates, opt_state = tx.update(grads, opt_state, params, moments=moments)
    """
    check("mc_samples", mc_samples, AT_LEAST_ONE)
    check("groups", groups, AT_LEAST_ONE)

    def of_group(
        key: Key[Array, ""],
        params: PyTree,
        opt_state: PyTree,
        group: int | Int[Array, ""],
        *args: Any,
    ) -> tuple[PyTree, PyTree]:
        def one(index: int | Int[Array, ""]) -> tuple[PyTree, PyTree]:
            noise = posterior_noise(key, opt_state, index)
            value, grads = jax.value_and_grad(loss_fn, has_aux=has_aux)(
                _add(params, noise), *args
            )
            loss, aux = value if has_aux else (value, None)
            return (loss, grads, noise_moments(noise, grads)), aux

        return _mean(one, group * mc_samples, mc_samples)

    def value_and_grad_fn(
        key: Key[Array, ""], params: PyTree, opt_state: PyTree, *args: Any
    ) -> tuple[Any, PyTree, Moments]:
        if groups == 1:
            means, aux = of_group(key, params, opt_state, 0, *args)
        else:
            each, aux = jax.vmap(
                lambda *group: of_group(key, params, opt_state, *group)
            )(jnp.arange(groups), *args)
            means = jax.tree.map(lambda x: jnp.mean(x, axis=0), each)
        loss, grads, moments = means
        return (loss, aux) if has_aux else loss, grads, moments

    return value_and_grad_fn


def _mean(
    one: Callable[[int | Int[Array, ""]], tuple[PyTree, PyTree]],
    start: int | Int[Array, ""],
    count: int,
) -> tuple[PyTree, PyTree]:
    """Returns the mean of `count` results, added in float32, and all their `aux`."""

    def add(total: PyTree, index: Int[Array, ""]) -> tuple[PyTree, PyTree]:
        found, aux = one(index)
        return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, found), aux

    first, aux = one(start)
    if count == 1:
        return first, aux
    total, others = jax.lax.scan(
        add, jax.tree.map(at_least_float32, first), start + jnp.arange(1, count)
    )
    return (
        jax.tree.map(lambda t, x: (t / count).astype(x.dtype), total, first),
        jax.tree.map(
            lambda x, y: jnp.concatenate([jnp.asarray(x)[None], y]), aux, others
        ),
    )


class MultiStepsState(NamedTuple):
    """State of `multi_steps`: the running means of an unfinished step."""

    mini_step: Int[Array, ""]  # int32
    inner_state: PyTree
    grads: PyTree[Float[Array, "..."]]  # at least float32
    # As `Moments`, with `optax.MaskedNode` for leaves that IVON does not cover.
    noise_grad: PyTree[Float[Array, "..."]]
    squared_grad: PyTree[Float[Array, "..."]]


def _no_steps(inner_state: PyTree, params: PyTree) -> MultiStepsState:
    """Returns the state before the first micro-batch of a step."""
    covered = posterior_precision(inner_state)

    def zeros(leaf: ArrayLike) -> Array:
        return jnp.zeros_like(at_least_float32(leaf))

    def covered_zeros(path: Any, leaf: ArrayLike) -> Any:
        return zeros(leaf) if path_name(path) in covered else optax.MaskedNode()

    return MultiStepsState(
        mini_step=jnp.zeros([], jnp.int32),
        inner_state=inner_state,
        grads=jax.tree.map(zeros, params),
        noise_grad=jax.tree_util.tree_map_with_path(covered_zeros, params),
        squared_grad=jax.tree_util.tree_map_with_path(covered_zeros, params),
    )


def _accumulate(
    state: MultiStepsState, updates: PyTree, moments: Moments, every: int
) -> tuple[PyTree, PyTree, PyTree]:
    """Adds a micro-batch's share to the running means."""

    def add(total: Array, x: ArrayLike) -> Array:
        return total + jnp.asarray(x, total.dtype) / every

    def add_moment(total: PyTree, moment: dict[str, Float[Array, "..."]]) -> PyTree:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: add(leaf, moment[path_name(path)]), total
        )

    return (
        jax.tree.map(add, state.grads, updates),
        add_moment(state.noise_grad, moments.noise_grad),
        add_moment(state.squared_grad, moments.squared_grad),
    )


def multi_steps(
    inner: optax.GradientTransformationExtraArgs, every: int
) -> optax.GradientTransformationExtraArgs:
    """Updates with the mean over `every` micro-batches, each with its own noise.

    `optax.MultiSteps` averages only gradients, which is wrong for IVON unless all
    micro-batches share one key. This also accumulates gradient times noise, so any keys
    are right, and different keys are as many Monte-Carlo samples.

    Args:
        inner: a transformation with `scale_by_ivon` in it.
        every: number of micro-batches in a step.

    Returns:
        A transformation whose updates are zero until a step is complete.

    Raises:
        ValueError: `every` is below 1.

    Example:
        >>> from ivon_jax import ivon
        >>> tx = multi_steps(ivon(0.1, ess=100.0), every=4)
    """
    check("every", every, AT_LEAST_ONE)

    def init_fn(params: PyTree) -> MultiStepsState:
        return _no_steps(inner.init(params), params)

    def update_fn(
        updates: PyTree,
        state: MultiStepsState,
        params: PyTree | None = None,
        *,
        key: Key[Array, ""] | None = None,
        moments: Moments | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, MultiStepsState]:
        if moments is None:
            moments = redraw_moments(key, state.inner_state, updates)

        totals = _accumulate(state, updates, moments, every)

        def emit(
            totals: PyTree, updates: PyTree, inner_state: PyTree, params: PyTree
        ) -> tuple[PyTree, MultiStepsState]:
            grads, noise_grad, squared_grad = totals
            mean = jax.tree.map(
                lambda g, u: g.astype(jnp.asarray(u).dtype), grads, updates
            )
            out, inner_state = inner.update(
                mean,
                inner_state,
                params,
                key=key,
                moments=Moments(by_path(noise_grad), by_path(squared_grad)),
                **extra_args,
            )
            zeros = jax.tree.map(jnp.zeros_like, totals)
            step = jnp.zeros_like(state.mini_step)
            return out, MultiStepsState(step, inner_state, *zeros)

        def hold(
            totals: PyTree, updates: PyTree, inner_state: PyTree, params: PyTree
        ) -> tuple[PyTree, MultiStepsState]:
            step = state.mini_step + 1
            # An update may have the parameter's dtype rather than the gradient's.
            out, _ = jax.eval_shape(emit, totals, updates, inner_state, params)
            zeros = jax.tree.map(lambda u, o: jnp.zeros_like(u, o.dtype), updates, out)
            return zeros, MultiStepsState(step, inner_state, *totals)

        # Not closed over: on a mesh of Explicit axes constants have another type.
        trees = (totals, updates, state.inner_state, params)
        return jax.lax.cond(state.mini_step == every - 1, emit, hold, *trees)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)
