"""The Gaussian posterior with a Kronecker-factored precision for each matrix."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from ivon_jax import _posterior_file
from ivon_jax._posterior_file import Saveable
from ivon_jax._pruning import lowest
from ivon_jax._tree import added, by_path, nest, saved_leaves, zeroed
from ivon_jax.checks import POSITIVE, check
from ivon_jax.noise import standard_normal


class Eigen(NamedTuple):
    """Eigenvectors and eigenvalues of the two factors of matrices (in, out).

    Leading axes stack layers. With k below the side's length, a factor is of rank k.
    """

    inputs: Float[Array, "*layers i k"]
    input_values: Float[Array, "*layers k"]
    outputs: Float[Array, "*layers o l"]
    output_values: Float[Array, "*layers l"]

    @property
    def values(self) -> Float[Array, "*layers k l"]:
        """Eigenvalues of the Kronecker product."""
        return self.input_values[..., :, None] * self.output_values[..., None, :]

    @jax.default_matmul_precision("highest")  # not in bfloat16 or TF32
    def rotate(
        self, x: Float[Array, "*layers i o"]
    ) -> tuple[Float[Array, "*layers k l"], Float[Array, "*layers i o"]]:
        """Returns a matrix in the factors' eigenvectors, and the rest outside them."""
        inside = self.inputs.mT @ x @ self.outputs
        return inside, x - self.back(inside)

    @jax.default_matmul_precision("highest")  # not in bfloat16 or TF32
    def back(self, inside: Float[Array, "*layers k l"]) -> Float[Array, "*layers i o"]:
        """Returns the matrix of coordinates from `rotate`."""
        return self.inputs @ inside @ self.outputs.mT


GROUPS = ("mean", *Eigen._fields, "kept", "scalar")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kronecker(Saveable):
    """A Gaussian whose precision is tau (A x B + p0 I) for each matrix.

    A and B are positive semi-definite factors of a matrix's inputs and outputs, as of
    the Laplace approximation with K-FAC curvature (Ritter et al., 2018; Yang et al.,
    2024, arXiv:2308.13111). Matrices are independent of each other.

    Attributes:
        mean: the parameters m.
        factors: eigenvectors and eigenvalues of A and B by leaf path; absent leaves are
            points.
        prior_precision: p0 of the prior N(0, I/p0).
        tau: what divides the variance.
        kept: False at entries that are pruned, by leaf path; absent leaves are whole.
    """

    mean: PyTree
    factors: dict[str, Eigen]
    prior_precision: Float[Array, ""]
    tau: Float[Array, ""]
    kept: dict[str, Bool[Array, "..."]]

    kind: ClassVar[str] = "kronecker"

    @classmethod
    def of(
        cls, mean: PyTree, factors: Mapping[str, Eigen], prior_precision: ArrayLike
    ) -> "Kronecker":
        """Builds the posterior, neither tempered nor pruned.

        Args:
            mean: the parameters.
            factors: eigenvectors and eigenvalues by leaf path.
            prior_precision: p0, above 0.

        Returns:
            The posterior.

        Raises:
            ValueError: p0 is not positive.

        Example:
            >>> one = Eigen(jnp.eye(3), jnp.ones(3), jnp.eye(2), jnp.ones(2))
            >>> posterior = Kronecker.of({"w": jnp.zeros((3, 2))}, {"w": one}, 1.0)
            >>> print(posterior.variance()["w"][0])
            [0.5 0.5]
        """
        check("prior_precision", prior_precision, POSITIVE)
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(factors))
        p0 = jnp.asarray(prior_precision, dtype)
        return cls(mean, dict(factors), p0, jnp.ones_like(p0), {})

    @property
    def spread(self) -> bool:
        """Whether samples differ from the mean."""
        return bool(self.factors)

    def temper(self, tau: ArrayLike) -> "Kronecker":
        """Divides the variance by tau.

        Args:
            tau: above 0; 1 changes nothing, infinity gives the mean.

        Returns:
            The tempered posterior.

        Raises:
            ValueError: tau is not positive.
        """
        check("tau", tau, POSITIVE)
        return replace(self, tau=self.tau * jnp.asarray(tau, self.tau.dtype))

    def prune(self, ratio: float) -> "Kronecker":
        """Sets the entries of lowest marginal signal-to-noise |m|/sqrt(v) to zero.

        They are zero in the mean and in all draws; the others keep their joint
        distribution.

        Args:
            ratio: in [0, 1]; see `Posterior.prune`.

        Returns:
            The pruned posterior.

        Raises:
            ValueError: the ratio is out of range.
        """
        # Of what was pruned before the ratio is 0, as of any mean of 0.
        precision = {k: 1 / v for k, v in replace(self, kept={}).variance().items()}
        drop = lowest(self.mean, precision, ratio)
        kept = {name: ~leaf & self._kept(name, leaf) for name, leaf in drop.items()}
        return replace(self, mean=zeroed(self.mean, drop), kept=kept)

    def draw(self, key: Key[Array, ""], index: int | Int[Array, ""] = 0) -> PyTree:
        """Draws sample `index`, a tree like `mean`, for any number of samples.

        Args:
            key: the ensemble's key.
            index: index of the sample.
        """
        mean = by_path(self.mean)

        def noise(name: str, eigen: Eigen) -> Array:
            like = jnp.zeros(mean[name].shape, eigen.inputs.dtype)
            z = standard_normal(key, name, like, index)
            inside, outside = eigen.rotate(z)
            p0 = self.prior_precision
            scaled = eigen.back(inside / jnp.sqrt(eigen.values + p0))
            return (scaled + outside / jnp.sqrt(p0)) / jnp.sqrt(self.tau)

        drawn = {
            name: jnp.where(self._kept(name, mean[name]), noise(name, eigen), 0)
            for name, eigen in self.factors.items()
        }
        return added(self.mean, drawn)

    @jax.default_matmul_precision("highest")  # not in bfloat16 or TF32
    def variance(self) -> dict[str, Float[Array, "..."]]:
        """Returns the marginal variance of every entry by leaf path."""

        def leaf(name: str, eigen: Eigen) -> Array:
            i, o = jnp.square(eigen.inputs), jnp.square(eigen.outputs)
            inside = i @ (1 / (eigen.values + self.prior_precision)) @ o.mT
            share = jnp.sum(i, -1)[..., :, None] * jnp.sum(o, -1)[..., None, :]
            outside = jnp.maximum(1 - share, 0) / self.prior_precision
            whole = (inside + outside) / self.tau
            return jnp.where(self._kept(name, whole), whole, 0)

        return {name: leaf(name, eigen) for name, eigen in self.factors.items()}

    @jax.default_matmul_precision("highest")  # not in bfloat16 or TF32
    def covariance(self, jacobian: PyTree) -> Float[Array, "c c"]:
        """Returns J S J^T, the covariance of linearised outputs.

        Args:
            jacobian: derivatives of c outputs, a tree like `mean` whose leaves have a
                leading axis of size c.
        """
        rows = by_path(jacobian)

        def leaf(name: str, eigen: Eigen) -> Array:
            j = jnp.where(self._kept(name, rows[name][0]), rows[name], 0)
            inside, outside = jax.vmap(eigen.rotate)(j)
            values = eigen.values + self.prior_precision
            return (
                jnp.einsum("c...,k...->ck", inside / values[None], inside)
                + jnp.einsum("c...,k...->ck", outside, outside) / self.prior_precision
            ) / self.tau

        parts = [leaf(name, eigen) for name, eigen in self.factors.items()]
        return jnp.sum(jnp.stack(parts), axis=0)

    def to_groups(self) -> _posterior_file.Groups:
        """Returns the arrays for a file, by group and leaf path.

        Raises:
            ValueError: `mean` is not a tree of nested dicts.
        """
        factors: dict[str, Any] = {
            field: {name: getattr(eigen, field) for name, eigen in self.factors.items()}
            for field in Eigen._fields
        }
        return factors | {
            "mean": saved_leaves("mean", self.mean),
            "kept": self.kept,
            "scalar": {"prior_precision": self.prior_precision, "tau": self.tau},
        }

    @classmethod
    def from_groups(cls, groups: _posterior_file.Groups) -> "Kronecker":
        """Builds the posterior of a file's arrays.

        Raises:
            ValueError: they are not a Gaussian of this kind.
        """
        _posterior_file.check_groups(groups, GROUPS)
        mean, *eigen, kept, scalar = (groups.get(group, {}) for group in GROUPS)
        _posterior_file.check_finite("mean", mean)
        for field, leaves in zip(Eigen._fields, eigen, strict=True):
            _posterior_file.check_finite(field, leaves)
        if any(leaves.keys() != eigen[0].keys() for leaves in eigen):
            raise ValueError("a leaf lacks one of its factors")
        factors = {
            name: Eigen(*(leaves[name] for leaves in eigen)) for name in eigen[0]
        }
        for name, factor in factors.items():
            _check_factors(name, factor, mean[name].shape if name in mean else ())
        for name, mask in kept.items():
            if name not in factors or mask.shape != mean[name].shape:
                raise ValueError(f"kept of {name!r} has no factors of its shape")
        for name in ("prior_precision", "tau"):
            if not (name in scalar and scalar[name].shape == () and scalar[name] > 0):
                raise ValueError(f"{name} is not a number > 0")
        whole = (nest(mean), factors, scalar["prior_precision"], scalar["tau"], kept)
        return cls(*jax.tree.map(jnp.asarray, whole))

    def _kept(self, name: str, like: Array) -> Bool[Array, "..."]:
        return self.kept.get(name, jnp.ones(like.shape, bool))


def _check_factors(name: str, eigen: Eigen, shape: tuple[int, ...]) -> None:
    """Checks the factors of a leaf whose mean has a shape."""
    *layers, i, o = shape if len(shape) > 1 else (0, 0)
    k, m = eigen.input_values.shape[-1:], eigen.output_values.shape[-1:]
    wanted = ((*layers, i, *k), (*layers, *k), (*layers, o, *m), (*layers, *m))
    if tuple(part.shape for part in eigen) != wanted or not (i and o):
        raise ValueError(f"factors of {name!r} have no mean of their shape")
    if np.any(eigen.input_values < 0) or np.any(eigen.output_values < 0):
        raise ValueError(f"an eigenvalue of {name!r} is negative")
