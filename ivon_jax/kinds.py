"""The kinds of posterior, and their protocol."""

from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax import _posterior_file
from ivon_jax._posterior_file import Metadata
from ivon_jax.errors import prefixed
from ivon_jax.kronecker import Kronecker
from ivon_jax.low_rank import LowRank
from ivon_jax.mixture import Mixture
from ivon_jax.particles import Particles
from ivon_jax.points import Points
from ivon_jax.posterior import Posterior


@runtime_checkable
class Distribution(Protocol):
    """A distribution over a tree of parameters.

    Attributes:
        kind: its name in files.
        has_members: whether it has several members, whose averaged parameters are not
            a sensible model.
    """

    kind: ClassVar[str]
    has_members: ClassVar[bool]

    @property
    def mean(self) -> PyTree:
        """Its mean, a tree of arrays."""
        ...

    @property
    def spread(self) -> bool:
        """Whether draws differ from the mean."""
        ...

    @property
    def size(self) -> int | None:
        """Number of different draws; None if there is no limit."""
        ...

    def temper(self, tau: float) -> "Distribution":
        """Divides the variance by tau."""
        ...

    def prune(self, ratio: float) -> "Distribution":
        """Sets the entries of lowest signal-to-noise ratio to zero."""
        ...

    def draw(self, key: Key[Array, ""], index: int | Int[Array, ""] = 0) -> PyTree:
        """Draws sample number `index`."""
        ...

    def variance(self) -> dict[str, Float[Array, "..."]]:
        """Returns the variance of the entries by leaf path; points have none."""
        ...

    def to_groups(self) -> _posterior_file.Groups:
        """Returns the arrays for a file, by group and leaf path."""
        ...

    def save(self, path: str | Path, **metadata: int | float) -> None:
        """Writes a file that `load_posterior` reads."""
        ...

    @classmethod
    def from_groups(cls, groups: Any) -> "Distribution":
        """Builds the distribution of a file's arrays."""
        ...


@runtime_checkable
class Gaussian(Distribution, Protocol):
    """A Gaussian, by which a linearised model's outputs are Gaussian too."""

    def covariance(self, jacobian: PyTree) -> Float[Array, "c c"]:
        """Returns J S J^T of c outputs, whose derivatives lead each leaf."""
        ...


KINDS: dict[str, Any] = {
    kind.kind: kind
    for kind in (Posterior, Particles, Kronecker, LowRank, Points, Mixture)
}


def load_posterior(path: str | Path) -> tuple[Distribution, Metadata]:
    """Reads a posterior of any kind, with its metadata.

    Args:
        path: the file.

    Returns:
        The posterior, and the numbers saved with it by name.

    Raises:
        ValueError: the file is missing, not a posterior, of another version, of an
            unknown kind, truncated or altered.
    """
    with prefixed(path):
        kind, groups, metadata = _posterior_file.read(path)
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r} is not one of {', '.join(KINDS)}")
        return KINDS[kind].from_groups(groups), metadata
