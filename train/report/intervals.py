"""Standard errors and intervals of results over their evaluation examples."""

import math
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ivon_jax.metrics import bootstrap
from ivon_jax.train.predictors.base import Row

INTERVAL = (0.025, 0.975)
RESAMPLES = 2000
Z = 1.959963984540054  # the normal distribution's quantile of 0.975


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Returns Wilson's 95 % interval of a rate.

    It is the rates of which the successes are less than 1.96 standard deviations away.
    It is never empty, also where all trials or none succeed.

    Args:
        successes: number of successes.
        trials: number of trials; of none, every rate is possible.

    Example:
        >>> low, high = wilson(8, 10)
        >>> f"{low:.3f} {high:.3f}"
        '0.490 0.943'

    References:
        Wilson, "Probable inference, the law of succession, and statistical inference",
        JASA 1927.
    """
    if not trials:
        return 0.0, 1.0
    rate, square = successes / trials, Z**2 / trials
    centre = rate + square / 2
    spread = math.sqrt(square * (rate * (1 - rate) + square / 4))
    low, high = (centre - spread) / (1 + square), (centre + spread) / (1 + square)
    # Exact at the ends, but for rounding.
    return (0.0 if not successes else low), (1.0 if successes == trials else high)


# Where metrics can be; others can be anywhere.
SHARE, POSITIVE = (0.0, 1.0), (0.0, math.inf)
RANGES = {
    **dict.fromkeys(("accuracy", "ece", "token_accuracy", "sequence_accuracy"), SHARE),
    **dict.fromkeys(("nll", "sequence_nll", "brier", "mse", "rmse"), POSITIVE),
    "perplexity": (1.0, math.inf),
    "pearson": (-1.0, 1.0),
    "density_nll": (-math.inf, math.inf),
}


def normal(name: str, value: float, error: float) -> tuple[float, float, float]:
    """Returns a value with its normal 95 % interval, as far as a metric can be.

    Args:
        name: the metric.
        value: its value.
        error: its standard error.

    Example:
        >>> normal("ece", 0.25, 0.5)
        (0.25, 0.0, 1.0)
    """
    least, most = RANGES.get(name, (-math.inf, math.inf))
    return value, max(value - Z * error, least), min(value + Z * error, most)


def with_intervals(
    rows: Sequence[Row],
    log_probs: Float[np.ndarray, "m n c"],
    labels: Int[np.ndarray, " n"],
    seed: int,
) -> list[Row]:
    """Adds standard errors and intervals of differences, by a bootstrap.

    Args:
        rows: rows of results.
        log_probs: the predictions of each row, averaged over draws.
        labels: the right classes.
        seed: seed of the resamples.

    Returns:
        The rows with ``errors`` and ``differences``; see `with_resamples`.
    """
    found = bootstrap(jnp.asarray(log_probs), jnp.asarray(labels), seed=seed)
    return with_resamples(rows, found)


def with_resamples(
    rows: Sequence[Row], found: Mapping[str, Float[np.ndarray, "r m"]]
) -> list[Row]:
    """Adds standard errors and intervals of differences, from resamples.

    Args:
        rows: rows of results.
        found: metrics of each row on the same resamples.

    Returns:
        The rows with ``errors``, the standard error of each metric, and
        ``differences``, the 95 % interval of each metric's difference to the first row.
        Both rows of a difference are scored on the same resamples.
    """

    def added(index: int) -> Row:
        errors = {name: bootstrap_error(x[:, index]) for name, x in found.items()}
        intervals = {
            name: _interval(x[:, index] - x[:, 0]) for name, x in found.items()
        }
        return {"errors": errors, "differences": intervals}

    return [row | added(index) for index, row in enumerate(rows)]


def with_vote_intervals(rows: Sequence[Row], seed: int) -> list[Row]:
    """Adds them for vote accuracy, by a bootstrap over questions.

    Args:
        rows: rows of results; unless all have votes, they are returned as they are.
        seed: seed of the resamples.

    Returns:
        The rows with ``errors`` and ``differences`` of ``vote_accuracy``.
    """
    if not all("vote_right" in row for row in rows):
        return list(rows)
    right = np.array([row["vote_right"] for row in rows], np.float64)
    count = right.shape[1]
    drawn = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    found = np.stack([own[drawn].mean(axis=1) for own in right])
    return [
        row
        | {
            "errors": {"vote_accuracy": float(own.std(ddof=1))},
            "differences": {
                "vote_accuracy": np.quantile(own - found[0], INTERVAL).tolist()
            },
        }
        for row, own in zip(rows, found, strict=True)
    ]


def bootstrap_error(resamples: Float[np.ndarray, " r"]) -> float:
    """Returns a metric's standard deviation over resamples; NaN without any.

    Resamples where it is not defined, as a correlation of equal numbers, are left out.
    """
    finite = resamples[np.isfinite(resamples)]
    return float(finite.std(ddof=1)) if len(finite) > 1 else math.nan


def _interval(resamples: Float[np.ndarray, " r"]) -> list[float]:
    finite = resamples[np.isfinite(resamples)]
    if not len(finite):
        return [math.nan, math.nan]
    return [float(q) for q in np.quantile(finite, INTERVAL)]
