"""Small runs that held examples out, and the command line, for tests of fits."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny

from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper

HYPER = {
    "adam": AdamHyper(steps=6, batch_size=8, learning_rate=0.02),
    "ivon-lora": IvonLoraHyper(steps=6, batch_size=8, learning_rate=0.3, gamma=20.0),
}


def write_task(place: Path, held_out: int | None = 24) -> TrainConfig:
    """Write a model and noisy data; return a run that holds some of them out."""
    model, data = tiny.write_task(place, layers=1)
    for name in ("train", "eval"):
        path = place / "data" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows[::4]:
            row["label"] = tiny.LABELS[1 - tiny.LABELS.index(row["label"])]
        tiny.write_rows(path, rows)
    data = dataclasses.replace(data, validation_examples=held_out)
    return TrainConfig(model, data=data, lora=LoraConfig(rank=2))


def train(config: TrainConfig, out: Path, method: str, **changes: Any) -> Path:
    """Train a method with changes of the configuration."""
    changes = {"hyper": HYPER[method]} | changes
    cli.train(dataclasses.replace(config, method=method, **changes), out)
    return out


def command(*args: object) -> int:
    """Run the command in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", *map(str, args)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def one_line(capsys) -> str:
    """Return the only line of stderr that a refused command wrote."""
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("ivon-")]
    assert len(lines) == 1, lines
    return lines[0]
