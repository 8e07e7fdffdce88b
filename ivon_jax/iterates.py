r"""SWAG: the Gaussian of an optimizer's iterates (Maddox et al., NeurIPS 2019).

>>> import jax.numpy as jnp
>>> from ivon_jax.iterates import Iterates
>>> iterates = Iterates.start({"w": jnp.zeros(2)}, rank=5)
>>> for value in (1.0, 2.0, 3.0):  # at a constant learning rate
...     iterates = iterates.add({"w": jnp.full(2, value)})
>>> posterior = iterates.posterior()
>>> print(posterior.mean["w"])  # SWA
[2. 2.]
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, PyTree

from ivon_jax._state import at_least_float32
from ivon_jax._tree import by_path
from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.low_rank import LowRank


class Iterates(NamedTuple):
    """Running moments of iterates, and the last deviations from the mean.

    Attributes:
        number: number n of iterates.
        mean: their mean.
        scatter: sum of squared deviations from the mean, by Welford's recursion: the
            difference of the two running moments would cancel in float32, as iterates
            differ from each other by much less than from zero.
        rows: the last K deviations of an iterate from the mean up to it, along a new
            first axis; zero where there are fewer.
    """

    number: Int[Array, ""]  # int32
    mean: PyTree[Float[Array, "..."]]  # at least float32
    scatter: PyTree[Float[Array, "..."]]
    rows: PyTree[Float[Array, "..."]]

    @classmethod
    def start(cls, params: PyTree, rank: int) -> "Iterates":
        """Returns the state without iterates.

        Args:
            params: a tree of the iterates' shapes.
            rank: K.

        Raises:
            ValueError: the rank is below 1.
        """
        check("rank", rank, AT_LEAST_ONE)

        def zeros(leaf: ArrayLike) -> Array:
            return jnp.zeros_like(at_least_float32(leaf))

        # Two trees, so that both can be donated.
        mean, scatter = jax.tree.map(zeros, params), jax.tree.map(zeros, params)
        rows = jax.tree.map(lambda m: jnp.zeros((rank, *m.shape), m.dtype), mean)
        return cls(jnp.int32(0), mean, scatter, rows)

    @property
    def rank(self) -> int:
        """The largest number of rows K."""
        return len(jax.tree.leaves(self.rows)[0])

    def add(self, params: PyTree) -> "Iterates":
        """Adds an iterate; a pure function for any number of them, inside jit."""
        number, slot = self.number + 1, self.number % self.rank
        params = jax.tree.map(lambda m, p: jnp.asarray(p, m.dtype), self.mean, params)
        mean = jax.tree.map(
            lambda m, p: m + (p - m) / number.astype(m.dtype), self.mean, params
        )
        scatter = jax.tree.map(
            lambda s, p, old, new: s + (p - old) * (p - new),
            *(self.scatter, params, self.mean, mean),
        )
        rows = jax.tree.map(
            lambda r, p, m: r.at[slot].set(p - m), self.rows, params, mean
        )
        return Iterates(number, mean, scatter, rows)

    def posterior(self) -> LowRank:
        r"""Returns the Gaussian of the iterates.

        Its covariance is the published one,

        $$
        \tfrac12 \mathrm{diag}(\overline{\theta^2} - \bar\theta^2)
        + \tfrac{1}{2(R-1)} D^T D
        $$

        where D has the deviations of the last R = min(n, K) iterates (the published
        code for LoRA omits both halves, which is tau = 1/2, and divides by K - 1 also
        when there are fewer). The first row is zero, as the mean up to it is the
        iterate. With fewer than two iterates the covariance is zero.
        """
        number = jnp.maximum(self.number, 1)
        others = jnp.maximum(jnp.minimum(self.number, self.rank) - 1, 1)

        def divided(tree: PyTree, by: Array) -> dict[str, Array]:
            return {
                k: leaf / by.astype(leaf.dtype) for k, leaf in by_path(tree).items()
            }

        diagonal = divided(self.scatter, 2 * number)
        factors = divided(self.rows, jnp.sqrt((2 * others).astype(float)))
        return LowRank(self.mean, diagonal, factors)
