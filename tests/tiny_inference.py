"""A tiny run that has learned something, and its command line."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_runs

from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper


def write_run(folder: Path) -> Path:
    """Train the tiny model for some steps; return the run's folder."""
    model, data = tiny.write_task(folder, layers=1)
    hyper = IvonLoraHyper(
        steps=80, batch_size=8, learning_rate=0.3, gamma=2000.0, clip_radius=0.02
    )
    config = TrainConfig(model, data=data, lora=LoraConfig(rank=4), hyper=hyper)
    return tiny_runs.train(config, folder / "run")


def texts(count: int, seed: int = 7, longest: int = 6) -> list[dict[str, Any]]:
    """Rows without labels."""
    return [{"text": row["text"]} for row in tiny.rows(count, seed, longest)]


def command(*args: object, stdin: bytes | None = None) -> int:
    """Run the command in this process; return its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", *map(str, args)])
        if stdin is not None:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def predicted(run: Path, folder: Path, rows: Any, *options: object) -> list[dict]:
    """Predict rows by the command line, from a file to a file."""
    folder.mkdir()
    file = tiny.write_rows(folder / "in.jsonl", rows)
    out = folder / "out.jsonl"
    assert command("predict", run, "--file", file, "--out", out, *options) == 0
    return lines(out)
