"""A posterior without spread: a point, with other points of the same run beside it."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax import _posterior_file
from ivon_jax._posterior_file import Saveable
from ivon_jax._tree import nest, saved_leaves
from ivon_jax.checks import POSITIVE, RATIO, check
from ivon_jax.posterior import Posterior

MEAN = "mean"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Points(Saveable):
    """All mass on one point; others, as averages of iterates, can be asked for by name.

    Attributes:
        mean: the point.
        others: trees like it by name.
    """

    mean: PyTree
    others: dict[str, PyTree]

    kind: ClassVar[str] = "points"

    @property
    def spread(self) -> bool:
        """Whether samples differ from the mean: never."""
        return False

    def at(self, name: str) -> Posterior:
        """Returns another point, as a posterior of its own.

        Raises:
            ValueError: there is none of this name.

        Example:
            >>> points = Points({"w": jnp.zeros(1)}, {"last": {"w": jnp.ones(1)}})
            >>> print(points.at("last").mean["w"])
            [1.]
        """
        if name not in self.others:
            raise ValueError(f"point: {name!r} is not one of {', '.join(self.others)}")
        return Posterior.point(self.others[name])

    def temper(self, tau: ArrayLike) -> "Points":
        """Checks tau; there is no variance to divide.

        Raises:
            ValueError: tau is not positive.
        """
        check("tau", tau, POSITIVE)
        return self

    def prune(self, ratio: float) -> "Points":
        """Checks the ratio; there are no entries with a signal-to-noise ratio.

        Raises:
            ValueError: the ratio is out of range.
        """
        check("prune", ratio, RATIO)
        return self

    def draw(self, key: Key[Array, ""], index: int | Int[Array, ""] = 0) -> PyTree:
        """Returns the mean.

        Args:
            key: not used.
            index: not used.
        """
        del key, index
        return self.mean

    def variance(self) -> dict[str, Float[Array, "..."]]:
        """Returns no variance: all mass is on one point."""
        return {}

    def to_groups(self) -> _posterior_file.Groups:
        """Returns the arrays for a file, by group and leaf path.

        Raises:
            ValueError: the points are not trees of nested dicts.
        """
        trees = {MEAN: self.mean, **self.others}
        return {name: saved_leaves(name, tree) for name, tree in trees.items()}

    @classmethod
    def from_groups(cls, groups: _posterior_file.Groups) -> "Points":
        """Builds the posterior of a file's arrays.

        Raises:
            ValueError: they are not points of the same shapes.
        """
        if MEAN not in groups:
            raise ValueError(f"points: none is the {MEAN}")
        shapes = {k: leaf.shape for k, leaf in groups[MEAN].items()}
        for name, leaves in groups.items():
            _posterior_file.check_finite(name, leaves)
            if {k: leaf.shape for k, leaf in leaves.items()} != shapes:
                raise ValueError(f"point {name!r} has other shapes than the {MEAN}")
        trees = {k: jax.tree.map(jnp.asarray, nest(v)) for k, v in groups.items()}
        return cls(trees.pop(MEAN), trees)
