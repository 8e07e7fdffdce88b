"""Predictions of the linearised model (Immer et al., 2021, arXiv:2008.08400).

Its outputs f(m) + J (theta - m) are Gaussian under a Gaussian posterior, with mean f(m)
and the full covariance J S J^T over the classes of an example.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax.checks import AT_LEAST_ONE, DECAY, FINITE_POSITIVE, check
from ivon_jax.ensemble import average
from ivon_jax.kinds import Distribution, Gaussian
from ivon_jax.train.predictors.base import Keys, Outputs, Predictor, pruned

Link = Literal["softmax", "probit"]
# Bytes of the Jacobians that are held at a time.
JACOBIANS = 2**28


@dataclasses.dataclass(frozen=True)
class Linearised(Predictor):
    """Averages the classes' probabilities over the Gaussian of linearised logits.

    Attributes:
        link: softmax, averaged over samples of the logits; or probit, the closed form
            softmax(f / sqrt(1 + pi/8 v)) with their variances only (MacKay, 1992).
        logit_samples: samples of the logits; they need no pass of the model.
        tau: temperature: the variance is divided by it.
        prune: share of entries set to zero, lowest signal-to-noise first.
    """

    link: Link = "softmax"
    logit_samples: int = 10_000
    tau: float = 1.0
    prune: float = 0.0

    kind: ClassVar = "linearised"
    classes_only: ClassVar = True
    packs: ClassVar = False  # a row's Jacobian is that of one example
    shares: ClassVar = False

    def __post_init__(self) -> None:
        """Checks each field."""
        check("logit_samples", self.logit_samples, AT_LEAST_ONE)
        check("tau", self.tau, FINITE_POSITIVE)
        check("prune", self.prune, DECAY)

    @property
    def name(self) -> str:
        """The settings as part of a file's name.

        >>> Linearised("probit", tau=2.0).name
        'linearised-probit-tau2.0'
        """
        link = f"-{self.link}" if self.link != "softmax" else ""
        tau = f"-tau{self.tau}" if self.tau != 1 else ""
        prune = f"-prune{self.prune}" if self.prune else ""
        return f"linearised{link}{tau}{prune}"

    @property
    def suffix(self) -> str:
        """The settings as shown after the method's name in a table."""
        changes = f", tau {self.tau:g}, prune {self.prune:g}"
        changed = (self.tau, self.prune) != (1, 0)
        return f", linearised, {self.link}" + changes * changed

    def backward_passes(self, classes: int) -> int:
        """Returns one for each class, whose derivatives are a row of the Jacobian."""
        return classes

    def split(
        self, posterior: Distribution, dropout: float
    ) -> tuple[Distribution, "Linearised"]:
        """Prunes and tempers."""
        if not (isinstance(posterior, Gaussian) and posterior.spread):
            raise ValueError("linearised: the posterior is not a Gaussian")
        tempered = pruned(posterior, self.prune).temper(self.tau)
        return tempered, Linearised(self.link, self.logit_samples)

    def draws(
        self,
        outputs: Outputs,
        posterior: Distribution,
        keys: Keys,
        chunk_size: int | None,
    ) -> Float[Array, "1 b c"]:
        """Computes the logarithms of the average probabilities."""
        assert isinstance(posterior, Gaussian)
        mean = posterior.mean
        return self.averages(
            outputs, mean, lambda jac: posterior.covariance(jac)[None], keys
        )

    def averages(
        self,
        outputs: Outputs,
        center: PyTree,
        covariances: Callable[[PyTree], Float[Array, "s c c"]],
        keys: Keys,
    ) -> Float[Array, "s b c"]:
        """Computes the same for several Gaussians of one mean.

        Args:
            outputs: the model's outputs.
            center: the mean.
            covariances: maps the Jacobian of an example's logits to their covariance
                under each Gaussian.
            keys: keys of the draws.
        """

        def row(
            logits: Callable[[PyTree], Float[Array, " c"]],
        ) -> tuple[Float[Array, " c"], Float[Array, "s c c"]]:
            mean, jacobian = with_jacobian(logits, center)
            return mean, covariances(jacobian)

        classes = jax.eval_shape(outputs, center).shape[1]
        mean, found = outputs.map_rows(row, rows_at_a_time(classes, center))
        return jax.lax.map(
            lambda covariance: self._average(mean, covariance, keys),
            jnp.swapaxes(found, 0, 1),
        )

    def _average(
        self, mean: Float[Array, "b c"], covariance: Float[Array, "b c c"], keys: Keys
    ) -> Float[Array, "b c"]:
        if self.link == "probit":
            return probit(mean, covariance)
        key = keys.ensemble  # the same draws for all examples
        return softmax(mean, covariance, key, self.logit_samples)


def with_jacobian(
    outputs: Callable[[PyTree], Float[Array, " c"]], params: PyTree
) -> tuple[Float[Array, " c"], PyTree]:
    """Computes outputs, and their derivatives by one backward pass for each.

    Returns:
        The outputs, and a tree like `params` whose leaves have a leading axis of size
        c.
    """
    values, pullback = jax.vjp(outputs, params)
    return values, jax.vmap(pullback)(jnp.eye(len(values), dtype=values.dtype))[0]


def rows_at_a_time(classes: int, params: PyTree) -> int:
    """Returns the number of rows whose Jacobians need about `JACOBIANS` bytes."""
    leaves = jax.tree.leaves(params)
    row = classes * sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)
    return max(1, JACOBIANS // row)


def softmax(
    mean: Float[Array, "b c"],
    covariance: Float[Array, "b c c"],
    key: Key[Array, ""],
    samples: int,
) -> Float[Array, "b c"]:
    """Averages softmax over samples of Gaussian logits.

    Args:
        mean: mean of the logits.
        covariance: their covariance.
        key: key of the samples.
        samples: their number.

    Returns:
        The logarithm of the average.
    """
    # Not Cholesky, which fails where rounding leaves a variance below 0.
    values, vectors = jnp.linalg.eigh(covariance)
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None]
    z = jax.random.normal(key, (samples, mean.shape[1]), mean.dtype)
    logits = mean[None] + jnp.einsum("sk,bck->sbc", z, root)
    return average(jax.nn.log_softmax(logits))


def probit(
    mean: Float[Array, "b c"], covariance: Float[Array, "b c c"]
) -> Float[Array, "b c"]:
    """Returns the logits of the probit approximation, of the variances only."""
    variance = jnp.diagonal(covariance, axis1=1, axis2=2)
    return mean / jnp.sqrt(1 + math.pi / 8 * variance)
