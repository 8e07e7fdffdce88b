"""The Gaussian posterior of diagonal plus low-rank covariance."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax import _posterior_file
from ivon_jax._posterior_file import Saveable
from ivon_jax._pruning import lowest
from ivon_jax._tree import added, by_path, nest, saved_leaves, zeroed
from ivon_jax.checks import POSITIVE, check
from ivon_jax.noise import standard_normal

GROUPS = ("mean", "diagonal", "factors")
# Not the path of a leaf: the noise that all leaves share.
SHARED = "//factors"

Leaves = dict[str, Float[Array, "..."]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank(Saveable):
    """A Gaussian N(mean, diag(d) + F^T F) over a tree of parameters.

    The K rows of F run over all entries of all leaves, so the covariance joins leaves.

    Attributes:
        mean: the parameters m.
        diagonal: d >= 0 by leaf path; absent leaves are points.
        factors: the columns of F by leaf path, with a leading axis of size K.
    """

    mean: PyTree
    diagonal: Leaves
    factors: Leaves

    kind: ClassVar[str] = "low-rank"

    @property
    def spread(self) -> bool:
        """Whether samples differ from the mean."""
        return bool(self.diagonal)

    def temper(self, tau: ArrayLike) -> "LowRank":
        """Divides the covariance by tau.

        Args:
            tau: above 0; 1 changes nothing, infinity gives the mean.

        Returns:
            The tempered posterior.

        Raises:
            ValueError: tau is not positive.

        Example:
            >>> posterior = LowRank(
            ...     {"w": jnp.zeros(2)}, {"w": jnp.ones(2)}, {"w": jnp.ones((1, 2))}
            ... )
            >>> print(posterior.temper(4.0).variance()["w"])
            [0.5 0.5]
        """
        check("tau", tau, POSITIVE)

        by = jnp.asarray(tau, float)

        def divided(leaves: Leaves, by: Array) -> Leaves:
            return {name: leaf / by.astype(leaf.dtype) for name, leaf in leaves.items()}

        diagonal, factors = self.diagonal, self.factors
        return LowRank(self.mean, divided(diagonal, by), divided(factors, jnp.sqrt(by)))

    def prune(self, ratio: float) -> "LowRank":
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
        precision = {name: 1 / leaf for name, leaf in self.variance().items()}
        drop = lowest(self.mean, precision, ratio)

        def dropped(leaves: Leaves) -> Leaves:
            return {k: jnp.where(drop[k], 0, leaf) for k, leaf in leaves.items()}

        return LowRank(
            zeroed(self.mean, drop),
            dropped(self.diagonal),
            jax.vmap(dropped)(self.factors),
        )

    def draw(self, key: Key[Array, ""], index: int | Int[Array, ""] = 0) -> PyTree:
        """Draws sample `index`, a tree like `mean`, for any number of samples.

        Args:
            key: the ensemble's key.
            index: index of the sample.
        """

        def noise(name: str, diagonal: Array, factor: Array) -> Array:
            own = standard_normal(key, name, diagonal, index) * jnp.sqrt(diagonal)
            z = standard_normal(
                key, SHARED, jnp.zeros_like(factor, shape=len(factor)), index
            )
            # Not in a device's lower default precision.
            return own + jnp.tensordot(
                z, factor, 1, precision=jax.lax.Precision.HIGHEST
            )

        drawn = {k: noise(k, d, self.factors[k]) for k, d in self.diagonal.items()}
        return added(self.mean, drawn)

    def variance(self) -> Leaves:
        """Returns the marginal variance of every entry by leaf path."""
        return {
            name: diagonal + jnp.sum(jnp.square(self.factors[name]), axis=0)
            for name, diagonal in self.diagonal.items()
        }

    @jax.default_matmul_precision("highest")  # not in bfloat16 or TF32
    def covariance(self, jacobian: PyTree) -> Float[Array, "c c"]:
        """Returns J S J^T, the covariance of linearised outputs.

        Args:
            jacobian: derivatives of c outputs, a tree like `mean` whose leaves have a
                leading axis of size c.
        """
        rows = by_path(jacobian)
        own, along = [], []
        for name, diagonal in self.diagonal.items():
            j = jnp.asarray(rows[name], diagonal.dtype)
            own.append(jnp.einsum("c...,k...->ck", j * diagonal[None], j))
            along.append(jnp.einsum("c...,k...->ck", j, self.factors[name]))
        joint = sum(along[1:], along[0])  # factors join the leaves
        return sum(own, joint @ joint.mT)

    def to_groups(self) -> _posterior_file.Groups:
        """Returns the arrays for a file, by group and leaf path.

        Raises:
            ValueError: `mean` is not a tree of nested dicts.
        """
        leaves = (saved_leaves("mean", self.mean), self.diagonal, self.factors)
        return dict(zip(GROUPS, leaves, strict=True))

    @classmethod
    def from_groups(cls, groups: _posterior_file.Groups) -> "LowRank":
        """Builds the posterior of a file's arrays; a point, if no variance is above 0.

        Raises:
            ValueError: they are not a Gaussian of this kind.
        """
        _posterior_file.check_groups(groups, GROUPS)
        mean, diagonal, factors = (groups.get(group, {}) for group in GROUPS)
        for group, leaves in zip(GROUPS, (mean, diagonal, factors), strict=True):
            _posterior_file.check_finite(group, leaves)
        if diagonal.keys() != factors.keys():
            raise ValueError("a leaf lacks its diagonal or its factors")
        ranks = {leaf.shape[:1] for leaf in factors.values()}
        for name, leaf in diagonal.items():
            shape = mean[name].shape if name in mean else None
            if leaf.shape != shape or factors[name].shape[1:] != shape:
                raise ValueError(f"covariance of {name!r} has no mean of its shape")
            if np.any(leaf < 0):
                raise ValueError(f"diagonal of {name!r} is negative")
        if len(ranks) > 1:
            raise ValueError("factors: their leaves have no common number of rows")
        if not any(np.any(leaf) for leaf in (*diagonal.values(), *factors.values())):
            diagonal, factors = {}, {}
        return cls(*jax.tree.map(jnp.asarray, (nest(mean), diagonal, factors)))
