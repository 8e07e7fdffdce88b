"""Training-free Bayesianization: noise on A as large as the predictions allow (TFB).

Shi et al., "Training-Free Bayesianization for Low-Rank Adapters of Large Language
Models", NeurIPS 2025 (arXiv 2412.05723).
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ivon_jax._tree import by_path, nest
from ivon_jax.checks import AT_LEAST_ONE, FINITE_POSITIVE
from ivon_jax.ensemble import pool
from ivon_jax.posterior import Posterior
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.fits.base import SAMPLES, UNSET_SAMPLES, Fit, Fitted, Work
from ivon_jax.train.keys import Streams
from ivon_jax.train.options import unset
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.runs.progress import say
from ivon_jax.train.sources import Source

# Singular values of B below this share of the matrix's largest have no noise.
SMALLEST = 1e-6


class Search(NamedTuple):
    """How to search, by criterion.

    Attributes:
        tolerance: largest change that is allowed.
        low: lower end of the search.
        high: its upper end.
        halvings: number of values tried.
    """

    tolerance: float
    low: float
    high: float
    halvings: int


SEARCHES = {
    "nll": Search(0.003, 1e-4, 0.2, 8),
    "accuracy": Search(0.01, 1e-4, 0.2, 8),
    "official": Search(0.003, 0.001, 0.015, 5),
}


def _by_criterion(name: str) -> str:
    return "; ".join(f"{k}: {getattr(rule, name):g}" for k, rule in SEARCHES.items())


@dataclasses.dataclass(frozen=True)
class Tfb(Fit):
    """Gives an adapter's A a Gaussian, of one scale for all layers (TFB).

    With B = U diag(d) V^T the noise in a layer's weight is isotropic in the range of U,
    with standard deviation sigma. sigma is searched on training examples, whose labels
    are the classes predicted without noise, by predictions averaged over samples. All
    values of sigma share the samples' noise.

    Attributes:
        criterion: nll: the largest sigma by which the NLL changes by no more than the
            tolerance, as a share of the NLL without noise (the paper's rule); accuracy:
            by which no larger share of the predicted classes changes; official: as the
            published code, which divides the change of the NLL by the number of
            examples too, and takes the smallest sigma tried that changed it by more.
        tolerance: largest change.
        samples: posterior samples to average.
        anchors: number of training examples, at most all.
        low: lower end of the search.
        high: upper end of the search.
    """

    criterion: Literal["nll", "accuracy", "official"] = "nll"
    tolerance: Annotated[float | None, unset("FLOAT", _by_criterion("tolerance"))] = (
        None
    )
    samples: Annotated[int | None, UNSET_SAMPLES] = None
    anchors: int = 500
    low: Annotated[float | None, unset("FLOAT", _by_criterion("low"))] = None
    high: Annotated[float | None, unset("FLOAT", _by_criterion("high"))] = None

    name: ClassVar = "tfb"
    classes_only: ClassVar = True
    one_mean: ClassVar = True
    RULES: ClassVar = {
        "tolerance": FINITE_POSITIVE,
        "samples": AT_LEAST_ONE,
        "anchors": AT_LEAST_ONE,
        "low": FINITE_POSITIVE,
        "high": FINITE_POSITIVE,
    }

    def __post_init__(self) -> None:
        """Checks each number, and that the ends of the search are in order."""
        super().__post_init__()
        if not self._search.low < self._search.high:
            raise ValueError(
                f"low: {self._search.low} is not < high, {self._search.high}"
            )

    @property
    def _search(self) -> Search:
        given = {k: getattr(self, k) for k in ("tolerance", "low", "high")}
        known = {k: v for k, v in given.items() if v is not None}
        return SEARCHES[self.criterion]._replace(**known)

    @property
    def splits(self) -> tuple[str, ...]:
        """The training examples."""
        return ("train",)

    def fit(self, sources: Sequence[Source], work: Work) -> Fitted:
        """Searches sigma.

        Raises:
            ValueError: no B has a singular value above 0.
        """
        (source,) = sources
        mean, scales = rotated(source.posterior.mean)
        anchors = _some(
            source.problem.splits["train"], self.anchors, source.config.seed
        )
        sampled = Samples(self.samples or SAMPLES)

        def log_probs(posterior: Posterior, predictor: Predictor) -> np.ndarray:
            streams = Streams.from_seed(source.config.seed)
            found = predict(
                source.problem,
                anchors,
                posterior,
                predictor,
                streams,
                chunk_size=work.chunk_size,
            )
            return pool(found)

        without = log_probs(Posterior.point(mean), Mean())
        curve: list[dict[str, float]] = []

        def holds(sigma: float) -> bool:
            noisy = log_probs(noised(mean, scales, sigma), sampled)
            curve.append({"sigma": sigma, **_changes(without, noisy)})
            return self._holds(curve[-1])

        sigma = bisect(self.criterion, holds, self._search)
        on_first_process(functools.partial(self._report_end, curve))
        numbers = {"sigma": sigma, "anchors": len(anchors), "curve": curve}
        return Fitted(noised(mean, scales, sigma), (sampled,), numbers)

    def _holds(self, changes: Mapping[str, float]) -> bool:
        return changes[self.criterion] <= self._search.tolerance

    def _report_end(self, curve: Sequence[Mapping[str, float]]) -> None:
        """Prints a note if the largest sigma that holds may be beyond an end."""
        search, held = self._search, [self._holds(changes) for changes in curve]
        if all(held):
            say(f"tfb: every sigma that was tried holds: raise --high {search.high:g}")
        elif not any(held):
            say(f"tfb: no sigma that was tried holds: lower --low {search.low:g}")


def rotated(adapters: PyTree) -> tuple[PyTree, dict[str, Float[np.ndarray, "..."]]]:
    """Rotates adapters so that the rows of B are orthogonal, in float64.

    With b = V diag(d) U^T (`ivon_jax.lora`'s orientation, the transpose of PEFT's) the
    new pair is a V and diag(d) U^T; the product is the same.

    Args:
        adapters: the ``lora`` collection; other leaves than A and B stay.

    Returns:
        The new adapters, and d of each A by its path: [..., rank], largest first, and 0
        where it is below `SMALLEST` of the largest.

    Raises:
        ValueError: there are no adapters, or every d is 0.

    Example:
        >>> pair = {"a": jnp.ones((3, 2)), "b": jnp.eye(2, 4) * 2.0}
        >>> new, scales = rotated({"layer": pair})
        >>> print(scales["layer/a"], (new["layer"]["a"] @ new["layer"]["b"])[0])
        [2. 2.] [2. 2. 0. 0.]
    """
    leaves = by_path(adapters)
    scales = {}
    for name in [name for name in leaves if name.rpartition("/")[2] == "a"]:
        pair = name[:-1] + "b"
        a, b = (np.asarray(leaves[x], np.float64) for x in (name, pair))
        rank, size = b.shape[-2:]
        # With fewer outputs than its rank, B gets some that are zero: V is square.
        more = [(0, 0)] * (b.ndim - 1) + [(0, max(rank - size, 0))]
        v, d, u = np.linalg.svd(np.pad(b, more), full_matrices=False)
        d = np.where(d < SMALLEST * d.max(axis=-1, keepdims=True), 0.0, d)
        leaves[name] = jnp.asarray(a @ v, jnp.float32)
        leaves[pair] = jnp.asarray((d[..., None] * u)[..., :size], jnp.float32)
        scales[name] = d
    if not any(d.any() for d in scales.values()):
        raise ValueError("tfb: needs adapters with a B that is not zero")
    return nest(leaves), scales


def noised(
    mean: PyTree, scales: dict[str, Float[np.ndarray, "..."]], sigma: float
) -> Posterior:
    """Returns the posterior whose product AB has noise of scale sigma.

    Column i of A has standard deviation sigma / d_i, which d_i makes sigma again. Where
    d_i is 0 the column changes nothing, and is a point.

    Args:
        mean: adapters of `rotated`.
        scales: its singular values.
        sigma: standard deviation.
    """
    leaves = by_path(mean)

    def precision(name: str, d: Float[np.ndarray, "..."]) -> Float[Array, "..."]:
        column = np.where(d > 0, np.square(d / sigma), np.inf)[..., None, :]
        whole = np.broadcast_to(column, leaves[name].shape)
        return jnp.asarray(whole, jnp.float32)

    return Posterior(mean, {k: precision(k, d) for k, d in scales.items()}, {})


def bisect(criterion: str, holds: Callable[[float], bool], how: Search) -> float:
    """Bisects for the largest sigma that holds.

    Args:
        criterion: "official" halves the interval itself and takes its upper end, the
            smallest value that did not hold; others halve the interval of log sigma and
            take its lower end, the largest one that did.
        holds: returns whether a sigma changes little.
        how: the interval, and the number of halvings.

    Example:
        >>> how = Search(tolerance=0, low=0.01, high=1.0, halvings=20)
        >>> print(f"{bisect('nll', lambda sigma: sigma <= 0.3, how):.4f}")
        0.3000
    """
    low, high = how.low, how.high
    official = criterion == "official"
    for _ in range(how.halvings):
        middle = (low + high) / 2 if official else math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return high if official else low


def _changes(
    without: Float[np.ndarray, "n c"], noisy: Float[np.ndarray, "n c"]
) -> dict[str, float]:
    """Returns by criterion how much noise changes predictions."""
    n = len(without)
    chosen = without.argmax(axis=1)
    before, after = (-x[np.arange(n), chosen].mean() for x in (without, noisy))
    # Without any loss, any change is too much.
    share = abs(after - before) / before if before > 0 else math.inf
    changed = float(np.mean(noisy.argmax(axis=1) != chosen))
    return {"nll": float(share), "accuracy": changed, "official": float(share / n)}


def _some(encoded: Encoded, count: int, seed: int) -> Encoded:
    """Draws examples without replacement; all if there are no more."""
    if count >= len(encoded):
        return encoded
    drawn = np.random.default_rng(seed).choice(len(encoded), count, replace=False)
    return encoded.take(drawn)
