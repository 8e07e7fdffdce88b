"""The diagonal Gaussian posterior: temper, prune, sample, save and load."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax import _posterior_file
from ivon_jax._posterior_file import Saveable
from ivon_jax._pruning import lowest
from ivon_jax._state import find_states, posterior_precision
from ivon_jax._tree import added, by_path, gathered, nest, saved_leaves, zeroed
from ivon_jax.checks import AT_LEAST_ONE, POSITIVE, check
from ivon_jax.errors import prefixed
from ivon_jax.noise import gaussian

GROUPS = ("mean", "precision", "prior_precision")

Leaves = dict[str, Float[Array, "..."]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Posterior(Saveable):
    """A Gaussian N(mean, diag(1/precision)) over a tree of parameters.

    Attributes:
        mean: the parameters m.
        precision: 1/v by leaf path, of the leaf's shape. Infinite entries are exact
            (pruned, or at temperature 0); absent leaves are points.
        prior_precision: s0 of the prior N(0, 1/s0) by leaf path, broadcasting against
            the leaf. Only `kl` uses it.
    """

    mean: PyTree
    precision: Leaves
    prior_precision: Leaves

    kind: ClassVar[str] = "gaussian"

    @classmethod
    def from_state(cls, params: PyTree, opt_state: PyTree) -> "Posterior":
        """Returns the posterior of an optimizer's state.

        Args:
            params: the mean.
            opt_state: the state of any chain or wrapper around `scale_by_ivon`.

        Returns:
            The posterior of the next step's samples.

        Raises:
            ValueError: `opt_state` holds no IVON state.

        Example:
            >>> from ivon_jax import ivon
            >>> params = {"w": jnp.zeros(3)}
            >>> posterior = Posterior.from_state(params, ivon(0.1, 100.0).init(params))
            >>> thetas = posterior.temper(2.0).sample(jax.random.key(0), 10)
            >>> thetas["w"].shape
            (10, 3)
        """
        prior = {
            name: state.ess.astype(delta.dtype) * delta
            for state in find_states(opt_state)
            for name, delta in by_path(state.delta).items()
        }
        return cls(params, posterior_precision(opt_state), prior)

    @classmethod
    def point(cls, params: PyTree) -> "Posterior":
        """Returns the posterior with all mass on `params`, of methods without one."""
        return cls(params, {}, {})

    @property
    def spread(self) -> bool:
        """Whether samples differ from the mean."""
        return bool(self.precision)

    def temper(self, tau: ArrayLike) -> "Posterior":
        """Divides the variance by tau, as lambda_test = tau * lambda does.

        Args:
            tau: above 0; 1 changes nothing, infinity gives the mean. Prune before, as
                infinite precisions cannot be ranked.

        Returns:
            The tempered posterior.

        Raises:
            ValueError: tau is not positive.
        """
        check("tau", tau, POSITIVE)
        precision = {
            name: leaf * jnp.asarray(tau, leaf.dtype)
            for name, leaf in self.precision.items()
        }
        return replace(self, precision=precision)

    def prune(
        self, ratio: float, scope: Literal["global", "matrix"] = "global"
    ) -> "Posterior":
        """Sets the entries of lowest signal-to-noise |m|/sqrt(v) to exactly zero.

        Args:
            ratio: in [0, 1]. Exactly floor(ratio * d) of d entries are pruned, of ties
                the earlier, so pruning twice is pruning at the larger ratio.
            scope: rank all entries together, or within each matrix (the last two axes
                of a leaf) of size d.

        Returns:
            The posterior with zero mean and infinite precision at those entries.

        Raises:
            ValueError: ratio or scope is illegal.

        Example:
            >>> posterior = Posterior({"w": jnp.arange(3.0)}, {"w": jnp.ones(3)}, {})
            >>> pruned = posterior.prune(0.7)  # of 3 entries, 2.1 are 2
            >>> print(pruned.mean["w"], pruned.precision["w"])
            [0. 0. 2.] [inf inf  1.]
        """
        drop = lowest(self.mean, self.precision, ratio, scope)
        precision = {
            name: jnp.where(drop[name], jnp.inf, leaf)
            for name, leaf in self.precision.items()
        }
        return replace(self, mean=zeroed(self.mean, drop), precision=precision)

    def draw(self, key: Key[Array, ""], index: int | Int[Array, ""] = 0) -> PyTree:
        """Draws sample `index`, a tree like `mean`, for any number of samples.

        Args:
            key: the ensemble's key.
            index: index of the sample.
        """
        return added(self.mean, gaussian(key, self.precision, index))

    def sample(self, key: Key[Array, ""], n: int) -> PyTree:
        """Draws n samples: a tree like `mean` with a leading axis, ready for `vmap`.

        Args:
            key: the ensemble's key.
            n: number of samples.

        Raises:
            ValueError: n is below 1.
        """
        check("n", n, AT_LEAST_ONE)
        return jax.vmap(lambda index: self.draw(key, index))(jnp.arange(n))

    def variance(self) -> Leaves:
        """Returns the variance of every entry by leaf path; exact ones have 0."""
        return {name: 1 / leaf for name, leaf in self.precision.items()}

    @jax.default_matmul_precision("highest")  # not in bfloat16 or TF32
    def covariance(self, jacobian: PyTree) -> Float[Array, "c c"]:
        """Returns J V J^T, the covariance of linearised outputs.

        Args:
            jacobian: derivatives of c outputs, a tree like `mean` whose leaves have a
                leading axis of size c.
        """
        rows = by_path(jacobian)

        def leaf(name: str, p: Array) -> Array:
            j, p = gathered(jnp.asarray(rows[name], p.dtype)), gathered(p)
            return jnp.einsum("c...,k...->ck", j / p[None], j)

        parts = [leaf(name, p) for name, p in self.precision.items()]
        if not parts:
            return jnp.zeros([len(jax.tree.leaves(jacobian)[0])] * 2)
        return jnp.sum(jnp.stack(parts), axis=0)

    def log_prob(self, params: PyTree) -> Float[Array, ""]:
        """Returns the log density at `params`, over the entries that are not exact.

        Args:
            params: a tree like `mean`.

        Returns:
            The sum over entries, in nats.
        """
        mean, params = by_path(self.mean), by_path(params)

        def leaf(name: str, p: Array) -> Array:
            x, m = (jnp.asarray(tree[name], p.dtype) for tree in (params, mean))
            return (jnp.log(p / (2 * jnp.pi)) - p * jnp.square(x - m)) / 2

        return self._sum(leaf)

    def kl(self) -> Float[Array, ""]:
        """Returns KL(posterior || prior), over the entries that are not exact.

        Returns:
            The sum over entries, in nats (App. B of the paper). Infinite before the
            first step of IVON-LoRA, whose prior is then still flat.

        Raises:
            ValueError: a leaf has no prior.
        """
        if missing := self.precision.keys() - self.prior_precision.keys():
            raise ValueError(f"prior_precision: lacks the leaf {min(missing)!r}")
        mean = by_path(self.mean)

        def leaf(name: str, p: Array) -> Array:
            s0, m = self.prior_precision[name], jnp.asarray(mean[name], p.dtype)
            return (s0 * (jnp.square(m) + 1 / p) - 1 - jnp.log(s0 / p)) / 2

        return self._sum(leaf)

    def to_groups(self) -> _posterior_file.Groups:
        """Returns the arrays for a file, by group and leaf path.

        Raises:
            ValueError: `mean` is not a tree of nested dicts.
        """
        leaves = (saved_leaves("mean", self.mean), self.precision, self.prior_precision)
        return dict(zip(GROUPS, leaves, strict=True))

    @classmethod
    def from_groups(cls, groups: _posterior_file.Groups) -> "Posterior":
        """Builds the posterior of a file's arrays.

        Raises:
            ValueError: they are not a Gaussian.
        """
        _posterior_file.check_groups(groups, GROUPS)
        mean, precision, prior = (groups.get(group, {}) for group in GROUPS)
        _posterior_file.check_finite("mean", mean)
        for name, leaf in precision.items():
            if name not in mean or leaf.shape != mean[name].shape:
                raise ValueError(f"precision of {name!r} has no mean of its shape")
            if not np.all(leaf > 0):
                raise ValueError(f"precision of {name!r} is not positive")
        for name, leaf in prior.items():
            if name not in mean or not _broadcasts(leaf.shape, mean[name].shape):
                raise ValueError(
                    f"prior_precision of {name!r} has no mean of its shape"
                )
            if not np.all(leaf >= 0):
                raise ValueError(f"prior_precision of {name!r} is negative or NaN")
        return cls(*jax.tree.map(jnp.asarray, (nest(mean), precision, prior)))

    @classmethod
    def load(cls, path: str | Path) -> "Posterior":
        """Reads a file of `save`.

        Raises:
            ValueError: the file is missing, not a Gaussian posterior, of another
                version, truncated or altered.
        """
        with prefixed(path):
            kind, groups, _ = _posterior_file.read(path)
            if kind != cls.kind:
                raise ValueError(
                    f"a posterior of kind {kind!r}; use ivon_jax.load_posterior"
                )
            return cls.from_groups(groups)

    def _sum(self, fn: Callable[[str, Array], Array]) -> Float[Array, ""]:
        """Sums fn(name, precision) over the entries of finite precision."""
        total = jnp.zeros([])
        for name, p in self.precision.items():
            finite = jnp.isfinite(p)
            terms = fn(name, jnp.where(finite, p, 1))
            total += jnp.sum(jnp.where(finite, terms, 0)).astype(total.dtype)
        return total


def _broadcasts(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, wanted) == wanted
    except ValueError:
        return False
