"""The registry of predictors."""

from collections.abc import Mapping
from typing import Any

from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.predictors.linearised import Linearised
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.point import Point
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.predictors.temperature import Scaled

PREDICTORS: dict[str, Any] = {
    predictor.kind: predictor
    for predictor in (Mean, Samples, Dropout, Point, Linearised, Scaled)
}


def predictor_of(row: Mapping[str, Any]) -> Predictor:
    """Rebuilds the predictor of a row of results.

    Raises:
        KeyError: the row was not made by `evaluate`.
    """
    if isinstance(row.get("of"), str):  # it wraps another predictor
        inner = {k: v for k, v in row.items() if k != "of"} | {"predict": row["of"]}
        row = {**row, "of": predictor_of(inner)}
    return PREDICTORS[row["predict"]].from_fields(row)
