"""IVON's state: finding it in an optax state, and drawing noise from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax._tree import by_path, path_name
from ivon_jax.noise import gaussian


class ScaleByIvonState(NamedTuple):
    """State of `scale_by_ivon`: only arrays, in a fixed structure."""

    count: Int[Array, ""]  # type: ignore[assignment]  # int32; hides tuple.count
    ess: Float[Array, ""]  # lambda of the next noise
    mu: PyTree[Float[Array, "..."]]  # momentum g, at least float32
    hess: PyTree[Float[Array, "..."]]  # h, at least float32
    delta: PyTree[Float[Array, "..."]]  # broadcasts against hess


class Moments(NamedTuple):
    """Means over Monte-Carlo samples that estimate the curvature, by leaf path.

    Under `jit` XLA removes the one that is not used.
    """

    noise_grad: dict[str, Float[Array, "..."]]  # mean of (theta - m) * grad
    squared_grad: dict[str, Float[Array, "..."]]  # mean of grad^2


def find_states(opt_state: PyTree) -> list[ScaleByIvonState]:
    """Finds IVON's states by type, anywhere in a nested optax state.

    Args:
        opt_state: the state of any chain or wrapper around `scale_by_ivon`.

    Returns:
        The states, in flattening order; several where parameters are partitioned.

    Raises:
        ValueError: there is none, or `optax.MultiSteps` wraps it, which averages
            gradients of different noise.
    """

    def stop(node: Any) -> bool:
        return isinstance(node, ScaleByIvonState | optax.MultiStepsState)

    states = [node for node in jax.tree.leaves(opt_state, is_leaf=stop) if stop(node)]
    if any(isinstance(state, optax.MultiStepsState) for state in states):
        raise ValueError(
            "opt_state: optax.MultiSteps drops the curvature of IVON's samples;"
            " use ivon_jax.multi_steps"
        )
    if not states:
        raise ValueError("opt_state: holds no IVON state")
    return states


def posterior_precision(opt_state: PyTree) -> dict[str, Float[Array, "..."]]:
    """Returns 1/v = ess * (hess + delta) by leaf path.

    Leaves that no IVON state covers (masked, or of another optimizer) are absent:
    their posterior is the point `params`.

    Raises:
        ValueError: there is no IVON state, or two cover the same leaf.
    """
    precision: dict[str, Float[Array, ...]] = {}
    for state in find_states(opt_state):
        delta = by_path(state.delta)
        for name, hess in by_path(state.hess).items():
            if name in precision:
                raise ValueError(f"opt_state: two IVON states cover {name!r}")
            precision[name] = state.ess.astype(hess.dtype) * (hess + delta[name])
    return precision


def posterior_noise(
    key: Key[Array, ""], opt_state: PyTree, index: int | Int[Array, ""] = 0
) -> dict[str, Float[Array, "..."]]:
    """Draws theta - m of one posterior sample, by leaf path.

    Args:
        key: the step's key.
        opt_state: the state of any chain or wrapper around `scale_by_ivon`.
        index: index of the Monte-Carlo sample.

    Returns:
        The noise of each leaf that IVON covers, at least float32.
    """
    return gaussian(key, posterior_precision(opt_state), index)


def noise_moments(noise: dict[str, Float[Array, "..."]], grads: PyTree) -> Moments:
    """Returns the moments of one sample, by the leaves of its noise."""
    grad = {
        name: jnp.asarray(g, noise[name].dtype)
        for name, g in by_path(grads).items()
        if name in noise
    }
    return Moments(
        {name: noise[name] * g for name, g in grad.items()},
        {name: jnp.square(g) for name, g in grad.items()},
    )


def redraw_moments(
    key: Key[Array, ""] | None, opt_state: PyTree, grads: PyTree
) -> Moments:
    """Redraws the noise of the step's first sample, and returns its moments.

    Raises:
        ValueError: there is no key.
    """
    if key is None:
        raise ValueError("key: IVON's update needs the key given to sample")
    return noise_moments(posterior_noise(key, opt_state), grads)


def at_least_float32(leaf: ArrayLike) -> Array:
    """Upcasts: in 16 bits the spacing exceeds 1 - beta2, so averages never move."""
    leaf = jnp.asarray(leaf)
    inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
    dtype = np.promote_types(leaf.dtype, np.float32) if inexact else np.float32
    return leaf.astype(dtype)


def as_mean(path: tuple[Any, ...], leaf: ArrayLike) -> Float[Array, "..."]:
    """Checks that a leaf can have a Gaussian posterior, and upcasts it."""
    dtype = jnp.asarray(leaf).dtype
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"params: the leaf {path_name(path)!r} is {dtype}, not floating point;"
            " exclude it with optax.masked or optax.partition"
        )
    return at_least_float32(leaf)
