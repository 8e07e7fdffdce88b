"""What the hyper-parameters of every method must do, whatever they are."""

import dataclasses
import math
from typing import Any

import pytest

from ivon_jax.train.config import TrainConfig
from ivon_jax.train.config_json import from_json, to_json
from ivon_jax.train.methods.base import RUN, Hyper
from ivon_jax.train.methods.registry import METHODS

pytestmark = pytest.mark.parametrize("method", METHODS)


@pytest.mark.parametrize("family", RUN)
def test_hyper_parameters_survive_json(method, family):
    kind = METHODS[method].hyper_type
    for hyper in (kind(), kind(steps=3), kind().resolve(family, 100)):
        config = TrainConfig(method=method, hyper=hyper)
        assert from_json(to_json(config), TrainConfig) == config
    with pytest.raises(ValueError, match="config.hyper: unknown key 'nonsense'"):
        values = to_json(TrainConfig(method=method))
        values["hyper"]["nonsense"] = 1
        from_json(values, TrainConfig)


def numbers(hyper: Hyper) -> dict[str, Any]:
    values = vars(hyper).items()
    return {k: v for k, v in values if type(v) in (int, float)}


@pytest.mark.parametrize("family", RUN)
def test_every_number_has_a_range(method, family):
    kind = METHODS[method].hyper_type
    known = numbers(kind().resolve(family, 100))
    assert {"steps", "warmup", "batch_size"} < known.keys()
    for name, value in known.items():
        bad = [-1] if type(value) is int else [-1.0, math.nan, math.inf]
        for wrong in bad:
            with pytest.raises(ValueError, match=f"^{name}: {wrong} is not "):
                kind(**{name: wrong}).resolve(family, 100)
    for name in ("steps", "batch_size"):
        with pytest.raises(ValueError, match=f"^{name}: 0 is not a number > 0"):
            kind(**{name: 0}).resolve(family, 100)
    with pytest.raises(ValueError, match="^warmup: 5 is not <= steps"):
        kind(steps=4, warmup=5).resolve(family, 100)


def test_every_preset_is_complete(method):
    kind = METHODS[method].hyper_type
    assert kind.PRESETS.keys() == RUN.keys()
    for family in RUN:
        given = {f.name for f in dataclasses.fields(kind)} - set(kind.PRESETS[family])
        missing = {k for k, v in vars(kind().resolve(family, 100)).items() if v is None}
        assert missing <= given
