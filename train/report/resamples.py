"""Metrics of predictions on resamples of the evaluation examples, for each answer.

Shapes: s draws, n examples, t tokens, r resamples, m rows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ivon_jax.ensemble import average
from ivon_jax.metrics import bootstrap, resampled_means
from ivon_jax.train.objectives.text import text_metrics, text_terms

# Halvings of an interval of logarithms that find a noise variance.
HALVINGS = 40

Metrics = dict[str, Float[np.ndarray, "r m"]]
Values = dict[str, float]


def resampled(
    answer: str,
    predictions: Sequence[Float[np.ndarray, "_ _ c"]],
    labels: Any,
    seed: int,
) -> tuple[list[Values], Metrics]:
    """Computes metrics of rows, and the same on resamples of the examples.

    Args:
        answer: the kind of answer, "class", "number" or "text".
        predictions: the predictions of each row, of each draw.
        labels: what is right; see `run.write_predictions`.
        seed: seed of the resamples.

    Returns:
        Metrics of each row that its evaluation does not have, and all metrics that can
        be resampled.
    """
    if answer == "class":
        log_probs = jnp.stack([average(jnp.asarray(one)) for one in predictions])
        return [{}] * len(predictions), bootstrap(
            log_probs, jnp.asarray(labels), seed=seed
        )
    terms, summary = OTHERS[answer]
    columns = np.stack([terms(one, labels) for one in predictions], axis=1)
    found = summary(resampled_means(columns, seed=seed))
    whole = summary(columns.mean(axis=0)[None])
    rows = [
        {k: float(v[0, i]) for k, v in whole.items()} for i in range(columns.shape[1])
    ]
    return rows, found


def number_terms(
    predictions: Float[np.ndarray, "s n 1"], labels: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n k"]:
    """Returns the terms of the metrics of numbers, of each example.

    They are the squared error, the Gaussian NLL, and the moments of a correlation.
    """
    draws = predictions[..., 0].astype(np.float64)
    mean, target = draws.mean(axis=0), labels.astype(np.float64)
    square = np.square(mean - target)
    # A shift keeps the moments of a correlation from cancelling.
    x, y = mean - target.mean(), target - target.mean()
    columns = [square, gaussian_nll(square, draws.var(axis=0))]
    return np.stack([*columns, x, y, x * x, y * y, x * y], axis=1)


def number_metrics(means: Float[np.ndarray, "r m k"]) -> Metrics:
    """Computes RMSE, NLL and Pearson's correlation of the means of `number_terms`."""
    square, nll, x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    spread = (xx - x * x) * (yy - y * y)  # of equal numbers nothing, but for rounding
    defined = spread > 1e-12 * xx * yy
    safe = np.sqrt(np.where(defined, spread, 1.0))
    pearson = np.where(defined, (xy - x * y) / safe, np.nan)
    return {
        "rmse": np.sqrt(square),
        "mse": square,
        "density_nll": nll,
        "pearson": pearson,
    }


def gaussian_nll(
    square: Float[np.ndarray, " n"], variance: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Returns the NLL, in nats, of a Gaussian around the mean of the draws.

    Its variance is that of the draws plus a noise variance, the likeliest one on the
    other half of the examples: of those at even places for those at odd ones.

    Args:
        square: squared errors of the mean.
        variance: variances of the draws.
    """
    nll = np.zeros_like(square)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        other = slice(1 - (part.start or 0), None, 2)
        noise = _noise(square[other], variance[other]) if len(square[other]) else 1.0
        whole = variance[part] + noise
        nll[part] = (np.log(2 * np.pi * whole) + square[part] / whole) / 2
    return nll


def _noise(square: Float[np.ndarray, " n"], variance: Float[np.ndarray, " n"]) -> float:
    """Returns the noise variance v of largest likelihood, by bisection of its slope.

    Above all squared errors the likelihood falls in v. If it falls everywhere, the
    draws are wide enough by themselves, and the noise is a millionth of the largest
    of them.
    """
    top = float(square.max()) or 1e-12
    low, high = np.log(top * 1e-6), np.log(top)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        whole = variance + np.exp(middle)
        rises = float(np.sum(square / whole**2 - 1 / whole)) > 0
        low, high = (middle, high) if rises else (low, middle)
    return float(np.exp(low))


Terms = Callable[[Any, Any], Float[np.ndarray, "n k"]]
OTHERS: Mapping[str, tuple[Terms, Callable[[Any], Metrics]]] = {
    "number": (number_terms, number_metrics),
    "text": (text_terms, text_metrics),
}
