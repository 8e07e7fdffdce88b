"""Laplace-LoRA: a Gaussian at a run's mean (Yang et al., 2024, arXiv:2308.13111)."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from ivon_jax._tree import by_path
from ivon_jax.checks import AT_LEAST_ONE, FINITE_POSITIVE, Rule
from ivon_jax.kinds import Distribution, Gaussian
from ivon_jax.kronecker import Kronecker
from ivon_jax.posterior import Posterior
from ivon_jax.train.fits import kfac
from ivon_jax.train.fits.base import Fit, Fitted, Work
from ivon_jax.train.fits.curvature import Add, Total, add_diagonal, over_training_data
from ivon_jax.train.fits.prior_precision import Evidence, by_adam, fixed_point
from ivon_jax.train.keys import Streams
from ivon_jax.train.options import unset
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.base import Keys, Outputs
from ivon_jax.train.predictors.linearised import Linearised, Link, rows_at_a_time
from ivon_jax.train.runs.progress import say
from ivon_jax.train.sources import Source
from ivon_jax.train.trainable import TRAINABLES

# The prior precisions that are tried on held-out examples.
GRID = tuple(10 ** (i / 2) for i in range(-8, 9))


@dataclasses.dataclass(frozen=True)
class Laplace(Fit):
    """A Gaussian whose precision is the Fisher information plus that of a prior.

    Of the matrices of adapters; a head that was trained in full stays a point.

    Attributes:
        prior: how the prior's precision is found: at the maximum of the marginal
            likelihood (marglik); by 100 steps of Adam on it, as published
            (marglik-adam); or by NLL on the held-out training examples (validation).
        prior_precision: the prior's precision itself; then `prior` is not used.
        link: link of the linearised predictions; see `Linearised`.
        logit_samples: their samples of the logits.
    """

    prior: Literal["marglik", "marglik-adam", "validation"] = "marglik"
    prior_precision: Annotated[float | None, unset("FLOAT", "by prior")] = None
    link: Link = "softmax"
    logit_samples: int = 10_000

    classes_only: ClassVar = True
    one_mean: ClassVar = True
    RULES: ClassVar[Mapping[str, Rule]] = {
        "prior_precision": FINITE_POSITIVE,
        "logit_samples": AT_LEAST_ONE,
    }

    @property
    def splits(self) -> tuple[str, ...]:
        """The training examples, and held-out ones where the prior needs them."""
        held_out = self.prior == "validation" and self.prior_precision is None
        return ("train", "validation") if held_out else ("train",)

    def fit(self, sources: Sequence[Source], work: Work) -> Fitted:
        """Fits the Gaussian.

        Raises:
            ValueError: the curvature is not finite, or the marginal likelihood has no
                maximum.
        """
        (source,) = sources
        mean = source.posterior.mean
        total = self._sum(source, work)
        spectrum, posterior = self._posterior(source, total)
        means = [by_path(mean)[name] for name in total.curvature]
        evidence = Evidence.of(spectrum.values(), means, float(total.log_likelihood))
        p0 = self._prior_precision(source, evidence, posterior)
        numbers = {
            "prior_precision": p0,
            "log_evidence": evidence.log(p0),
            "log_likelihood": evidence.log_likelihood,
            "effective_parameters": evidence.effective(p0),
            "examples": int(total.examples),
            "tokens": int(total.tokens),
        }
        found = self.with_prior(posterior, p0)
        return Fitted(found, (self._predictor,), numbers)

    @property
    def _predictor(self) -> Linearised:
        return Linearised(self.link, self.logit_samples)

    def check(self, source: Source) -> None:
        """Checks that the run has adapters, classes, and a point or Gaussian mean."""
        if not TRAINABLES[source.config.train].adapters:
            raise ValueError(f"{self.name}: needs a run with --train lora")
        super().check(source)

    def _sum(self, source: Source, work: Work) -> Total:
        """Sums the curvature over the training examples."""
        raise NotImplementedError

    def _posterior(
        self, source: Source, total: Total
    ) -> tuple[Mapping[str, Any], Gaussian]:
        """Returns the curvature's eigenvalues, and the posterior for `with_prior`."""
        raise NotImplementedError

    @staticmethod
    def with_prior(posterior: Any, p0: ArrayLike) -> Gaussian:
        """Replaces the prior's precision of a posterior of `_posterior`."""
        raise NotImplementedError

    def _prior_precision(
        self,
        source: Source,
        evidence: Evidence,
        posterior: Gaussian,
    ) -> float:
        if self.prior_precision is not None:
            return self.prior_precision
        if self.prior != "validation":
            return {"marglik": fixed_point, "marglik-adam": by_adam}[self.prior](
                evidence
            )
        held_out = source.problem.splits["validation"]
        each = _EachPrior(self.link, self.logit_samples, with_prior=self.with_prior)
        found = predict(
            source.problem,
            held_out,
            posterior,
            each,
            Streams.from_seed(source.config.seed),
        )
        right = found[:, np.arange(len(held_out)), held_out.labels]
        p0 = GRID[int(np.nanargmax(right.mean(axis=1)))]
        if p0 in (GRID[0], GRID[-1]):
            note = (
                f"{self.name}: the prior precision {p0:g} is at an end of those tried,"
                f" {GRID[0]:g} to {GRID[-1]:g}; others can be given as"
                " --prior-precision"
            )
            on_first_process(lambda: say(note))
        return p0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _EachPrior(Linearised):
    """Linearised predictions under every prior precision of `GRID`.

    Attributes:
        with_prior: replaces the prior's precision.
    """

    with_prior: Callable[[Any, ArrayLike], Gaussian]

    @property
    def passes(self) -> int:
        """Number of predictions of every example, all from one pass."""
        return len(GRID)

    def split(
        self, posterior: Distribution, dropout: float
    ) -> tuple[Distribution, "_EachPrior"]:
        """Changes nothing."""
        return posterior, self

    def draws(
        self,
        outputs: Outputs,
        posterior: Distribution,
        keys: Keys,
        chunk_size: int | None,
    ) -> Float[Array, "s b c"]:
        """Computes the predictions of all precisions."""

        def covariances(jacobian: PyTree) -> Float[Array, "s c c"]:
            # One after the other, as each has products of the Jacobian's size.
            return jax.lax.map(
                lambda p0: self.with_prior(posterior, p0).covariance(jacobian),
                jnp.asarray(GRID),
            )

        return self.averages(outputs, posterior.mean, covariances, keys)


@dataclasses.dataclass(frozen=True)
class LaplaceKfac(Laplace):
    """With Kronecker factors of the curvature for each matrix.

    Attributes:
        reduction: the factor of a layer's inputs is their mean over tokens (expand), or
            the sum over an example's tokens as in the published code (sum), by which
            the precision grows with the texts' length.
        factor_rank: keep the factors of longer sides in this rank only, to save memory.
    """

    reduction: kfac.Reduction = "expand"
    factor_rank: Annotated[int | None, unset("INT", "full")] = None

    name: ClassVar = "laplace-kfac"
    RULES: ClassVar = {**Laplace.RULES, "factor_rank": AT_LEAST_ONE}

    def _sum(self, source: Source, work: Work) -> Total:
        like = functools.partial(kfac.zero_factors, rank=self.factor_rank)
        return _by_tokens(source, Total.zero(source.posterior.mean, like), work)

    def _posterior(
        self, source: Source, total: Total
    ) -> tuple[Mapping[str, Any], Gaussian]:
        eigen = kfac.decomposed(total, source.problem.task.outputs, self.reduction)
        spectrum = {name: factors.values for name, factors in eigen.items()}
        return spectrum, Kronecker.of(source.posterior.mean, eigen, 1.0)

    @staticmethod
    def with_prior(posterior: Kronecker, p0: ArrayLike) -> Kronecker:
        """Replaces the prior's precision."""
        return Kronecker.of(posterior.mean, posterior.factors, p0)


@dataclasses.dataclass(frozen=True)
class LaplaceDiag(Laplace):
    """With the diagonal of the curvature.

    Attributes:
        diagonal: of each example's gradient (examples); or of each token's, without
            the products between tokens, as in the published code (tokens).
    """

    diagonal: Literal["examples", "tokens"] = "examples"

    name: ClassVar = "laplace-diag"

    def _sum(self, source: Source, work: Work) -> Total:
        mean, problem = source.posterior.mean, source.problem
        if self.diagonal == "tokens":
            return _by_tokens(source, Total.zero(mean), work)
        add = functools.partial(add_diagonal, problem.network)
        # A batch holds the Jacobians of all its rows.
        size = rows_at_a_time(problem.task.outputs, mean)
        size = min(size, _batch_size(source))
        return over_training_data(source, Total.zero(mean), add, work, size)

    def _posterior(
        self, source: Source, total: Total
    ) -> tuple[Mapping[str, Any], Gaussian]:
        flat = {k: jnp.zeros([], f.dtype) for k, f in total.curvature.items()}
        return total.curvature, Posterior(source.posterior.mean, total.curvature, flat)

    @staticmethod
    def with_prior(posterior: Posterior, p0: ArrayLike) -> Posterior:
        """Replaces the prior's precision."""
        old = posterior.prior_precision
        precision = {k: p - old[k] + p0 for k, p in posterior.precision.items()}
        prior = {k: jnp.asarray(p0, p.dtype) for k, p in precision.items()}
        return Posterior(posterior.mean, precision, prior)


def _by_tokens(source: Source, zero: Total, work: Work) -> Total:
    problem = source.problem
    add: Add = functools.partial(kfac.add_batch, problem.network, problem.lora)
    return over_training_data(source, zero, add, work, _batch_size(source))


def _batch_size(source: Source) -> int:
    """Returns the examples at a time of training, whose gradients have had room."""
    config = source.config
    return max(1, (config.hyper.batch_size or 8) // config.accumulate)
