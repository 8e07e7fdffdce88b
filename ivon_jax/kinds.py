"""The kinds of posterior, and the one protocol that predictors know."""

from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Int, Key, PyTree


@runtime_checkable
class Distribution(Protocol):
    """A distribution over a tree of parameters."""

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

    def save(self, path: str | Path, **facts: int | float) -> None:
        """Writes a file that `load_posterior` reads."""
        ...
