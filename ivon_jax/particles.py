"""A posterior of particles: several equally likely sets of parameters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax import _posterior_file
from ivon_jax._posterior_file import Saveable
from ivon_jax._tree import by_path, nest, saved_leaves

GROUP = "members"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Particles(Saveable):
    """Equally likely parameters, such as the members of a deep ensemble.

    Attributes:
        members: a tree whose leaves have a leading axis over the members.
    """

    members: PyTree

    kind: ClassVar[str] = "particles"
    has_members: ClassVar[bool] = True

    @classmethod
    def of(cls, members: Sequence[PyTree]) -> "Particles":
        """Stacks the parameters of members.

        Args:
            members: trees of the same structure and shapes.

        Returns:
            The posterior.

        Raises:
            ValueError: there are no members, or they differ in structure or shapes.

        Example:
            >>> posterior = Particles.of([{"w": jnp.zeros(2)}, {"w": jnp.ones(2)}])
            >>> print(posterior.mean["w"], posterior.size)
            [0.5 0.5] 2
        """
        if not members:
            raise ValueError("members: name at least one")
        first = jax.tree.map(jnp.shape, members[0])
        if any(jax.tree.map(jnp.shape, other) != first for other in members):
            raise ValueError("members: they differ in structure or shapes")
        return cls(jax.tree.map(lambda *leaves: jnp.stack(leaves), *members))

    @property
    def mean(self) -> PyTree:
        """The members' average, which need not be a good member itself."""
        return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), self.members)

    @property
    def spread(self) -> bool:
        """Whether there are several members."""
        return self.size > 1

    @property
    def size(self) -> int:
        """Number of members."""
        return len(jax.tree.leaves(self.members)[0])

    def temper(self, tau: ArrayLike) -> "Particles":
        """Refuses any temperature but 1: particles have no variance to divide.

        Raises:
            ValueError: tau is not 1.
        """
        if not (isinstance(tau, int | float) and tau == 1):
            raise ValueError(f"tau: {tau} is not 1, and particles have no variance")
        return self

    def prune(self, ratio: float) -> "Particles":
        """Refuses any pruning: particles have no signal-to-noise ratio.

        Raises:
            ValueError: the ratio is not 0.
        """
        if ratio:
            raise ValueError(f"prune: {ratio} is not 0, and particles have no variance")
        return self

    def draw(self, key: Key[Array, ""], index: int | Int[Array, ""] = 0) -> PyTree:
        """Returns member `index`, modulo their number.

        Args:
            key: not used: all members are drawn in turn.
            index: index of the sample.

        Returns:
            The member's parameters.
        """
        del key
        return jax.tree.map(lambda leaf: leaf[index % self.size], self.members)

    def variance(self) -> dict[str, Float[Array, "..."]]:
        """Returns the members' variance of every entry by leaf path."""
        if not self.spread:
            return {}
        return {k: jnp.var(leaf, axis=0) for k, leaf in by_path(self.members).items()}

    def to_groups(self) -> _posterior_file.Groups:
        """Returns the arrays for a file, by group and leaf path.

        Raises:
            ValueError: the members are not trees of nested dicts.
        """
        return {GROUP: saved_leaves("members", self.members)}

    @classmethod
    def from_groups(cls, groups: _posterior_file.Groups) -> "Particles":
        """Builds the posterior of a file's arrays.

        Raises:
            ValueError: they are not a set of particles.
        """
        _posterior_file.check_groups(groups, (GROUP,))
        members = groups.get(GROUP, {})
        _posterior_file.check_finite("member", members)
        sizes = {leaf.shape[0] if leaf.ndim else 0 for leaf in members.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError("members: their leaves have no common number of members")
        return cls(jax.tree.map(jnp.asarray, nest(members)))
