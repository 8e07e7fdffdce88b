"""A run's results at every setting of tau, pruning and abstention.

A page has them as plain JSON: numbers, not text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ivon_jax.ensemble import average
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.report.evaluated import Evaluated
from ivon_jax.train.report.intervals import bootstrap_error, normal
from ivon_jax.train.report.reliable import LEVELS, Ranked
from ivon_jax.train.report.resamples import resampled

Values = dict[str, Any]


class Kind(NamedTuple):
    """The metrics that are shown for a kind of answer.

    Attributes:
        headline: metrics of a run at a glance.
        quality: metric on the vertical axis of the trade-off.
        against: metrics on its horizontal axes.
    """

    headline: tuple[str, ...]
    quality: str
    against: tuple[str, ...]


KINDS: Mapping[str, Kind] = {
    "class": Kind(("accuracy", "ece", "nll"), "accuracy", ("ece", "nll")),
    "number": Kind(("rmse", "density_nll", "pearson"), "rmse", ("density_nll",)),
    "text": Kind(("token_accuracy", "nll", "perplexity"), "token_accuracy", ("nll",)),
}


def points(
    run: Evaluated, answer: str, settings: Sequence[Predictor], seed: int = 0
) -> list[Values]:
    """Computes what sliders show: metrics with intervals, at every setting.

    Args:
        run: the run.
        answer: the kind of answer.
        settings: the predictors, of which the run has predictions.
        seed: seed of the bootstrap of numbers and text.

    Returns:
        For each setting ``tau`` (None for the mean), ``prune``, ``samples`` and
        ``levels``: at each level of abstention, ``values`` of metrics as (value, low,
        high). Of classes also ``bins`` and ``curve``, see `reliable`.
    """
    read = [run.predictions(one) for one in settings]
    labels = read[0][1]
    found: list[Values] = []
    if answer == "class":
        for predictions, _ in read:
            mean = np.asarray(average(jnp.asarray(predictions)))
            found.append(_of_classes(Ranked.of(mean, labels)))
    else:
        values, resamples = resampled(answer, [p for p, _ in read], labels, seed)
        for index, own in enumerate(values):
            spread = {k: bootstrap_error(x[:, index]) for k, x in resamples.items()}
            whole = {k: normal(k, v, spread[k]) for k, v in own.items()}
            found.append({"levels": [{"values": whole}]})
    return [
        _setting(predictor) | values
        for predictor, values in zip(settings, found, strict=True)
    ]


def _setting(predictor: Predictor) -> Values:
    fields = predictor.fields()
    return {
        "tau": None if isinstance(predictor, Mean) else fields["tau"],
        "prune": fields["prune"],
        "samples": fields["samples"],
    }


def _of_classes(ranked: Ranked) -> Values:
    levels = []
    for level in LEVELS:
        one = ranked.accepted(level)
        values = {"accuracy": one.accuracy, "ece": one.ece, "nll": one.nll}
        levels.append(
            {
                "threshold": one.threshold,
                "size": one.size,
                "errors": one.errors,
                "values": values,
            }
        )
    bins = [one._asdict() for one in ranked.bins()]
    return {"levels": levels, "bins": bins, "curve": ranked.curve()}
