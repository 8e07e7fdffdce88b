"""Diagnosis of the hyper-parameters by an IVON state."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from ivon_jax._pruning import signal_to_noise
from ivon_jax._state import find_states, posterior_precision
from ivon_jax._tree import by_path, gathered
from ivon_jax.prior import MatrixPrior, Prior

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Quantiles use about this many evenly spaced entries, to bound the cost of sorting.
ENTRIES = 2**20
# Beyond these `Diagnosis.advice` says what to change. The noise of good runs, with well
# calibrated samples, was 3 to 9 times the mean (docs/results.md).
UNMOVED, MOST_CLIPPED, MOST_NOISE = 0.01, 0.95, 10.0


class Diagnosis(NamedTuple):
    """Numbers that say whether lambda, the rates and the clip suit each other.

    Attributes:
        steps: steps taken.
        clipped: share of the entries of the last step's direction beyond the clip.
        hess: `QUANTILES` of h/h0. They stay at 1 where h has not moved.
        signal_to_noise: `QUANTILES` of abs(m)/sigma.
        noise: norm of sigma divided by that of m: the distance of a posterior sample
            from the mean, relative to the mean's from zero.
    """

    steps: Int[Array, ""]
    clipped: Float[Array, ""]
    hess: Float[Array, " q"]
    signal_to_noise: Float[Array, " q"]
    noise: Float[Array, ""]

    def advice(self) -> list[str]:
        """Returns a line for each thing that is not sane, with what to change.

        Not under `jax.jit`.
        """
        found = []
        if abs(self.hess - 1).max() < UNMOVED:
            found.append(
                f"h is still hess_init to {UNMOVED:.0%} after {self.steps} steps, so"
                " that the noise is not learned; lower beta2 or take more steps"
            )
        if self.clipped > MOST_CLIPPED:
            found.append(
                f"{self.clipped:.0%} of the last step was clipped, so that nearly all"
                " entries move alike; raise clip_radius and lower learning_rate by the"
                " same factor"
            )
        if not self.noise <= MOST_NOISE:
            found.append(
                f"the noise is {self.noise:.1f} times as large as the mean; raise ess"
                " (gamma), or learning_rate if the mean has hardly moved"
            )
        return found

    def lines(self) -> list[str]:
        """Returns the numbers as text, then the advice; not under `jax.jit`."""

        def row(values: Iterable[Any]) -> str:
            return " ".join(f"{value:.3g}" for value in values)

        percents = ", ".join(f"{q:.0%}"[:-1] for q in QUANTILES)
        return [
            f"diagnosis (quantiles are the {percents} %)",
            f"  clipped: {self.clipped:.1%} of the last step's entries",
            f"  h / hess_init: {row(self.hess)}",
            f"  |m| / sigma: {row(self.signal_to_noise)}",
            f"  norm of sigma / norm of m: {self.noise:.3g}",
            *(f"  advice: {text}" for text in self.advice()),
        ]


def diagnose(
    params: PyTree,
    opt_state: PyTree,
    hess_init: ArrayLike,
    clip_radius: ArrayLike = math.inf,
    prior: Prior = MatrixPrior(),  # noqa: B008 -- frozen
    beta1: ArrayLike = 0.9,
) -> Diagnosis:
    """Diagnoses the state after a step; works under `jax.jit`.

    It needs nothing but the state, so that it costs nothing while training. The
    direction of the last step is computed again, with the mean after it: the two means
    only matter to a prior that decays the mean.

    Args:
        params: the mean.
        opt_state: the state of any chain or wrapper around `scale_by_ivon`.
        hess_init: h0 of the transformation.
        clip_radius: xi, the bound on the entries of the direction.
        prior: that of the transformation; `ivon` has ``FixedPrior(weight_decay)``.
        beta1: decay of the momentum, which is taken as debiased.

    Returns:
        The diagnosis, over all entries that IVON covers.

    Raises:
        ValueError: `opt_state` holds no IVON state, or one of no entries.

    Example:
        >>> from ivon_jax import ivon_lora
        >>> params = {"a": jnp.ones((4, 2)), "b": jnp.zeros((2, 3))}
        >>> state = ivon_lora(1e-2, ess=100.0, hess_init=0.5).init(params)
        >>> diagnose(params, state, hess_init=0.5).advice()[0][:26]
        'h is still hess_init to 1%'
    """
    means = by_path(params)
    precision = posterior_precision(opt_state)
    hess, directions = [], []
    for state in find_states(opt_state):
        delta, mu = by_path(state.delta), by_path(state.mu)
        for name, h in by_path(state.hess).items():
            hess.append(h / jnp.asarray(hess_init, h.dtype))
            count = jnp.maximum(state.count, 1).astype(h.dtype)
            momentum = mu[name] / (1 - beta1**count)
            decay = prior.decay(delta[name]) * jnp.asarray(means[name], h.dtype)
            directions.append((momentum + decay) / (h + delta[name]))
    mean = {name: jnp.asarray(means[name], p.dtype) for name, p in precision.items()}
    ratios = [signal_to_noise(mean[name], p) for name, p in precision.items()]
    beyond = [jnp.sum(jnp.abs(x) > clip_radius) for x in directions]
    if not (size := sum(x.size for x in directions)):
        raise ValueError("opt_state: its IVON state has no entries")
    return Diagnosis(
        jnp.stack([state.count for state in find_states(opt_state)]).max(),
        sum(beyond, start=jnp.int32(0)) / size,
        _quantiles(hess),
        _quantiles(ratios),
        jnp.sqrt(
            sum(jnp.sum(1 / p).astype(jnp.float32) for p in precision.values())
            / sum(jnp.sum(jnp.square(m)).astype(jnp.float32) for m in mean.values())
        ),
    )


def _quantiles(leaves: list[Float[Array, "..."]]) -> Float[Array, " q"]:
    """Returns quantiles over the entries of all leaves."""
    stride = -(-sum(leaf.size for leaf in leaves) // ENTRIES)
    entries = [gathered(leaf).ravel()[::stride].astype(jnp.float32) for leaf in leaves]
    return jnp.quantile(jnp.concatenate(entries), jnp.array(QUANTILES, jnp.float32))
