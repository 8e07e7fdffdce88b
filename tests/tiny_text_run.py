"""A run on text whose posterior samples differ much."""

import dataclasses
from pathlib import Path

from ivon_jax.lora import LoraConfig
from ivon_jax.testing.tiny import write_rows, write_text_model
from ivon_jax.train import loop
from ivon_jax.train.config import DataConfig, TrainConfig, resolve
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.problem import prepare

ROWS = [
    {"prompt": f"{a}+{b}=", "completion": f"{a + b}"} for a in range(6) for b in (1, 9)
]


def train_text(folder: Path) -> Path:
    """Train in a folder, and return the run's."""
    model = write_text_model(folder / "model")
    file = write_rows(folder / "rows.jsonl", ROWS)
    hyper = IvonLoraHyper(steps=6, batch_size=4, learning_rate=0.3, ess=200.0)
    config = TrainConfig(
        str(model),
        data=DataConfig("text", train_file=file, eval_file=file),
        lora=LoraConfig(rank=2, dropout=0.0),
        hyper=dataclasses.replace(hyper, clip_radius=0.02),
    )
    config = resolve(config, "text", len(ROWS))
    loop.train(prepare(config), config, folder / "run", False)
    return folder / "run"
