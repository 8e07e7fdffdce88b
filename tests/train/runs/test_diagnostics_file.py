"""A diagnosis is kept as JSON and shown as it is."""

import json

import numpy as np

from ivon_jax.diagnostics import QUANTILES, Diagnosis
from ivon_jax.train.runs import diagnostics


def test_numbers_and_advice_are_written_and_shown(tmp_path, capsys):
    found = Diagnosis(
        np.int32(7),
        np.float32(0.25),
        np.float32([1, 1, 1, 1, 2]),
        np.float32([0, 0, 0, 1, 2]),
        np.float32(np.inf),
    )
    diagnostics.record(tmp_path, found)
    values = json.loads((tmp_path / "diagnostics.json").read_text())
    (advice,) = values.pop("advice")
    assert values == {
        "steps": 7,
        "clipped": 0.25,
        "hess": [1, 1, 1, 1, 2],
        "signal_to_noise": [0, 0, 0, 1, 2],
        "noise": None,
        "quantiles": list(QUANTILES),
    }
    shown = capsys.readouterr().err
    assert f"advice: {advice}\n" in shown
    assert "clipped: 25.0% of the last step's entries" in shown
