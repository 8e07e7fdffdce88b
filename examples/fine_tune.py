"""Fine-tunes a language model and evaluates it, from Python.

The same as `ivon-jax train` and `ivon-jax evaluate`, on a tiny random model. For a
real one put its name, as "smollm2-135m-instruct", in place of the folder.

    python examples/fine_tune.py
"""

import tempfile
from pathlib import Path
from typing import Any

from ivon_jax.lora import LoraConfig
from ivon_jax.testing import LABELS, PROMPT, write_data, write_model
from ivon_jax.train import loop
from ivon_jax.train.config import DataConfig, TrainConfig, resolve
from ivon_jax.train.evaluate import evaluate, predictors_for
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.predictors.wanted import Wanted
from ivon_jax.train.problem import prepare
from ivon_jax.train.report.tables import table
from ivon_jax.train.sources import read_run
from ivon_jax.train.splits import settled


def main() -> list[dict[str, Any]]:
    """Returns the rows of the table of results."""
    folder = Path(tempfile.mkdtemp())
    model, files = write_model(folder / "model"), write_data(folder / "data")
    config = TrainConfig(
        model=str(model),
        data=DataConfig(
            task="custom",
            train_file=files / "train.jsonl",
            eval_file=files / "eval.jsonl",
            prompt=PROMPT,
            labels=LABELS,
        ),
        lora=LoraConfig(rank=4),
        hyper=IvonLoraHyper(
            steps=80, learning_rate=0.3, gamma=2000.0, clip_radius=0.02
        ),
    )
    # The model and the examples; then everything that was left open is filled in.
    problem = prepare(config)
    config = resolve(config, problem.task.preset, len(problem.splits["train"]))
    config = settled(config, problem.task)
    loop.train(problem, config, folder / "run")

    wanted = Wanted(samples=8, tau=1.0)
    run = read_run(folder / "run", mesh="data=1")
    rows = evaluate(run, predictors_for(run, wanted), folder / "run")
    print(table(rows))
    return rows


if __name__ == "__main__":
    main()
