"""The precision p0 of the prior N(0, I/p0) by the marginal likelihood."""

import dataclasses
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Float

# Bound of |log p0| in the search, and the number of bisections.
LOG_BOUND, HALVINGS = 40.0, 60


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """The Laplace approximation of log p(data) as a function of p0 (MacKay, 1992).

    Attributes:
        eigenvalues: of the log-likelihood's curvature; zeros may be left out.
        square_norm: |m|^2 of the parameters.
        log_likelihood: log p(data | m).
    """

    eigenvalues: Float[np.ndarray, " k"]
    square_norm: float
    log_likelihood: float

    @classmethod
    def of(
        cls,
        eigenvalues: Iterable[ArrayLike],
        means: Iterable[ArrayLike],
        log_likelihood: float,
    ) -> "Evidence":
        """Joins the matrices of a posterior, in float64."""
        joined = [np.ravel(np.asarray(part, np.float64)) for part in eigenvalues]
        norms = [np.sum(np.square(np.asarray(m, np.float64))) for m in means]
        return cls(np.concatenate(joined), float(sum(norms)), log_likelihood)

    def log(self, p0: float) -> float:
        """Computes log p(D|m) - p0 |m|^2/2 - sum(log(1 + l/p0))/2, in nats.

        Example:
            >>> Evidence(np.array([3.0]), square_norm=0.0, log_likelihood=0.0).log(1.0)
            -0.6931471805599453
        """
        penalty = p0 * self.square_norm + np.sum(np.log1p(self.eigenvalues / p0))
        return float(self.log_likelihood - penalty / 2)

    def effective(self, p0: float) -> float:
        """Returns gamma, the number of parameters that the data determine."""
        return float(np.sum(self.eigenvalues / (self.eigenvalues + p0)))


def fixed_point(evidence: Evidence) -> float:
    """Returns MacKay's fixed point p0 = gamma(p0) / |m|^2, the maximum of the evidence.

    The derivative by log p0 is (gamma - p0 |m|^2) / 2, which falls with p0: there is
    one maximum, found by bisection.

    Raises:
        ValueError: it is outside the bounds, as if mean or curvature are zero.
    """
    low, high = -LOG_BOUND, LOG_BOUND
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        p0 = math.exp(middle)
        if evidence.effective(p0) > p0 * evidence.square_norm:
            low = middle
        else:
            high = middle
    if LOG_BOUND - abs(low) < 1e-6:
        raise ValueError(
            "prior: the marginal likelihood has no maximum, as mean or curvature are"
            " zero; give --prior-precision"
        )
    return math.exp(low)


def by_adam(evidence: Evidence, steps: int = 100, learning_rate: float = 0.1) -> float:
    """Takes steps of Adam on log p0 from 0, as the published code of Laplace-LoRA.

    100 steps of 0.1 reach p0 between exp(-10) and exp(10) at most, and need not have
    converged.
    """
    adam = optax.adam(learning_rate)
    log_p0 = jnp.zeros([])
    state = adam.init(log_p0)
    for _ in range(steps):
        p0 = math.exp(float(log_p0))
        slope = (p0 * evidence.square_norm - evidence.effective(p0)) / 2
        # optax raises a Python float to the power of an integer array.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = adam.update(jnp.float32(slope), state)
        log_p0 = optax.apply_updates(log_p0, updates)
    return math.exp(float(log_p0))
