"""A posterior that is a mixture of others, as of several runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax import _posterior_file
from ivon_jax._posterior_file import Saveable
from ivon_jax._tree import by_path


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mixture(Saveable):
    """Equally likely posteriors of the same parameters, of any kinds.

    Draw i is draw i of part i modulo their number, so any number of draws in a row is
    spread over the parts as evenly as can be (MultiSWAG: Wilson and Izmailov, 2020,
    arXiv:2002.08791). Use `of`, which checks the parts.

    Attributes:
        parts: the posteriors.
    """

    parts: tuple[Any, ...]

    kind: ClassVar[str] = "mixture"
    has_members: ClassVar[bool] = True

    @classmethod
    def of(cls, parts: Sequence[Any]) -> "Mixture":
        """Mixes posteriors; of mixtures, their parts.

        Args:
            parts: posteriors with an unlimited number of draws, or points.

        Returns:
            The mixture.

        Raises:
            ValueError: there are none, their parameters differ in structure, shapes
                or dtypes, or one has only some draws: `Particles` of all members are
                then the mixture.

        Example:
            >>> from ivon_jax import Posterior
            >>> parts = [Posterior.point({"w": jnp.full(2, x)}) for x in (0.0, 1.0)]
            >>> mixture = Mixture.of(parts)
            >>> print(mixture.mean["w"], mixture.draw(jax.random.key(0), 3)["w"])
            [0.5 0.5] [1. 1.]
        """
        flat: list[Any] = []
        for part in parts:
            flat += part.parts if isinstance(part, Mixture) else [part]
        if not flat:
            raise ValueError("parts: name at least one")

        def described(leaf: Any) -> tuple[Any, ...]:
            return jnp.shape(leaf), jnp.result_type(leaf)

        leaves = [jax.tree.map(described, part.mean) for part in flat]
        if any(other != leaves[0] for other in leaves):
            raise ValueError("parts: they differ in structure, shapes or dtypes")
        for part in flat:
            if part.size is not None:
                raise ValueError(f"parts: one has only {part.size} draws")
        return cls(tuple(flat))

    @property
    def mean(self) -> PyTree:
        """The average of the parts' means, which need not be a good model itself."""
        means = [part.mean for part in self.parts]
        return jax.tree.map(lambda *x: jnp.mean(jnp.stack(x), axis=0), *means)

    @property
    def spread(self) -> bool:
        """Whether draws differ."""
        return len(self.parts) > 1 or self.parts[0].spread

    def temper(self, tau: ArrayLike) -> "Mixture":
        """Divides the variance of every part by tau; their means stay apart."""
        return Mixture(tuple(part.temper(tau) for part in self.parts))

    def prune(self, ratio: float) -> "Mixture":
        """Sets the entries of lowest signal-to-noise ratio of every part to zero."""
        return Mixture(tuple(part.prune(ratio) for part in self.parts))

    def draw(self, key: Key[Array, ""], index: int | Int[Array, ""] = 0) -> PyTree:
        """Draws sample `index` of part `index` modulo their number.

        Args:
            key: the ensemble's key.
            index: index of the sample.
        """
        draws = [lambda part=part: part.draw(key, index) for part in self.parts]
        return jax.lax.switch(index % len(draws), draws)

    def variance(self) -> dict[str, Float[Array, "..."]]:
        """Returns the variance of every entry by leaf path.

        It is the mean of the parts' variances plus the variance of their means.
        """
        own = [part.variance() for part in self.parts]
        means = [by_path(part.mean) for part in self.parts]
        names = means[0] if len(means) > 1 else own[0]

        def leaf(name: str) -> Array:
            centres = jnp.stack([jnp.asarray(mean[name]) for mean in means])
            inside = [one.get(name, jnp.zeros_like(centres[0])) for one in own]
            return jnp.mean(jnp.stack(inside), axis=0) + jnp.var(centres, axis=0)

        return {name: leaf(name) for name in names}

    def to_groups(self) -> _posterior_file.Groups:
        """Returns the parts' arrays for a file, by place and kind of the part.

        Raises:
            ValueError: the parameters are not trees of nested dicts.
        """
        return {
            f"{place}/{part.kind}/{group}": leaves
            for place, part in enumerate(self.parts)
            for group, leaves in part.to_groups().items()
        }

    @classmethod
    def from_groups(cls, groups: _posterior_file.Groups) -> "Mixture":
        """Builds the mixture of a file's arrays.

        Raises:
            ValueError: they are not a mixture.
        """
        from ivon_jax.kinds import KINDS  # of which a mixture is one

        found: dict[tuple[int, str], _posterior_file.Groups] = {}
        for name, leaves in groups.items():
            place, _, rest = name.partition("/")
            kind, _, group = rest.partition("/")
            if not place.isdecimal() or kind not in KINDS or not group:
                raise ValueError(f"unknown tensor {f'{name}:{min(leaves)}'!r}")
            found.setdefault((int(place), kind), {})[group] = leaves
        if sorted(place for place, _ in found) != list(range(len(found))):
            raise ValueError("parts: they are not numbered from 0")
        return cls.of([KINDS[k[1]].from_groups(found[k]) for k in sorted(found)])
