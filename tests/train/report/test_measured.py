"""What comparisons over seeds share, and what a table says if they do not."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_fits import command

from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.report import measured
from ivon_jax.train.runs import run

METRICS = ("accuracy", "ece", "ece15", "nll", "brier")


def compared(folder: Path, seed: int, rate: float = 1e-3, **data) -> Path:
    """Writes what a table reads of a comparison of Adam."""
    hyper = AdamHyper(steps=4, batch_size=8, learning_rate=rate)
    recorded = {"eval_fingerprint": data.pop("scored", "a"), "model_fingerprint": "m"}
    config = TrainConfig(
        seed=seed, method="adam", hyper=hyper, data=DataConfig(**data), mesh="data=1"
    )
    config = dataclasses.replace(config, checkpoint_steps=seed + 1)
    (folder / "adam").mkdir(parents=True)
    run.write_config(folder / "adam", config, **recorded)
    row = {"method": "adam", "predict": "mean", "samples": 0, "tau": 1.0, "prune": 0.0}
    results = {"task": "t", "model": "m", "train_examples": 8, "eval_examples": 4}
    results |= {"steps": 4, "seed": seed, "versions": {}, "seconds": {"adam": 1.0}}
    rows = [row | dict.fromkeys(METRICS, 0.5)]
    (folder / "results.json").write_text(json.dumps(results | {"rows": rows}))
    return folder


@pytest.mark.parametrize(
    ("first", "second", "noted"),
    [
        ({}, {}, ""),
        ({}, {"rate": 1e-4}, "adam learning_rate: 0.0001 of"),
        ({}, {"scored": "b"}, "adam eval_fingerprint: b of"),
    ],
)
def test_a_table_notes_what_differs_besides_the_seed(
    first, second, noted, tmp_path, capsys
):
    folders = [
        compared(tmp_path / "0", 0, **first),
        compared(tmp_path / "1", 1, **second),
    ]
    lines = list(measured.unlike(folders))
    assert len(lines) == bool(noted)
    assert command("table", *folders) == 0
    said = capsys.readouterr()
    assert "50.0 ± 0.0" in said.out
    assert ("differs by more than the seed" in said.err) == bool(noted)
    assert noted in said.err


def test_held_out_examples_are_of_the_seed(tmp_path):
    own = [{"validation_examples": 2, "scored": x} for x in "ab"]
    folders = [compared(tmp_path / str(i), i, **x) for i, x in enumerate(own)]
    assert not list(measured.unlike(folders))
