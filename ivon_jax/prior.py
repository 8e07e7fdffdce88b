r"""Priors of IVON: the term added to the Hessian estimate, and its update.

A prior N(0, I/s0) enters IVON as delta = s0/lambda: the posterior variance is
1/(lambda*h + s0) = 1/(lambda*(h + delta)).
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float


@runtime_checkable
class Prior(Protocol):
    """A prior for `scale_by_ivon`; every array belongs to one leaf."""

    def init(self, mean: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the initial delta, which broadcasts against the leaf."""

    def update(
        self,
        delta: Float[Array, "..."],
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        ess: Float[Array, ""],
    ) -> Float[Array, "..."]:
        """Returns the next delta, given the posterior before the step."""

    def decay(self, delta: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the weight decay coefficient of the mean's update."""

    def hess_bound(self, delta: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the lower bound of the Hessian estimate."""


@dataclass(frozen=True)
class FixedPrior:
    """The same delta for every parameter, at every step: plain IVON.

    Only h + delta must be positive, so h may become negative.

    Attributes:
        weight_decay: delta, the prior precision divided by `ess`.
    """

    weight_decay: ArrayLike = 1e-4

    def init(self, mean: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the scalar delta."""
        # A copy, so that it and an injected hyper-parameter can both be donated.
        return jnp.array(self.weight_decay, mean.dtype)

    def update(
        self,
        delta: Float[Array, "..."],
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        ess: Float[Array, ""],
    ) -> Float[Array, "..."]:
        """Returns the configured delta, which may follow a schedule."""
        return self.init(mean)

    def decay(self, delta: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns delta: the prior pulls the mean to zero."""
        return delta

    def hess_bound(self, delta: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns -delta."""
        return -delta


@dataclass(frozen=True)
class MatrixPrior:
    r"""One prior per LoRA matrix, set each step to minimise the KL term (Eq. 2).

    For matrix i with d_i entries the optimal prior precision is
    s0_i = 1 / (1/d_i sum_j (m_ij^2 + v_ij)), and delta_i = s0_i / lambda.
    A matrix is the last two axes of a leaf; leading axes are stacked layers, each
    with a prior of its own. A leaf of fewer axes is one matrix.

    The paper prints Eq. 2 without the division by lambda. As B starts at zero, delta_B
    then grows by a factor of about lambda each step until B no longer moves;
    `scaled=False` shows it.

    As delta may fall, h + delta > 0 is not enough: h itself stays positive.

    Attributes:
        scaled: whether to divide by lambda.
        eta: weight decay of the mean in units of delta_i: 0 in the paper's Sec. 3.1, 1
            in line 11 of its Alg. 1.
    """

    scaled: bool = True
    eta: float = 0.0

    def init(self, mean: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns zero for each matrix: the initial sigma is 1/sqrt(lambda*h0)."""
        return jnp.zeros_like(_matrix_mean(mean))

    def update(
        self,
        delta: Float[Array, "..."],
        mean: Float[Array, "..."],
        variance: Float[Array, "..."],
        ess: Float[Array, ""],
    ) -> Float[Array, "..."]:
        """Returns Eq. 2 for each matrix."""
        precision = 1 / _matrix_mean(jnp.square(mean) + variance)
        return precision / ess.astype(mean.dtype) if self.scaled else precision

    def decay(self, delta: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns eta * delta."""
        return self.eta * delta

    def hess_bound(self, delta: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns zero."""
        return jnp.zeros_like(delta)


def _matrix_mean(leaf: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns means over the last two axes (or all, if fewer), keeping the axes."""
    axis = tuple(range(-min(leaf.ndim, 2), 0))
    if not leaf.size:  # without a mean
        return jnp.sum(leaf, axis=axis, keepdims=True)
    return jnp.mean(leaf, axis=axis, keepdims=True)
