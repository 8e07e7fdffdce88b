"""Grid search on training examples that are held out, one run a grid point.

    python -m benchmarks.tune --method ivon-lora --learning-rates 0.015 0.03 \
        --gammas 150 --train-examples 512 --validation-examples 256 --out runs/tune

Every point is a run folder of its own, and one that is complete is not run again, so
the grid can grow and an interrupted search goes on. The evaluation set is never
touched.
"""

import dataclasses
import itertools
import json
import shutil
import sys
from pathlib import Path

import tyro
from ivon_jax.train.prepare import Problem, find_task, prepare
from tyro.conf import OmitArgPrefixes as Flat

from ivon_jax.train.config import (
    DataConfig,
    MethodConfig,
    MethodName,
    TrainConfig,
    resolve,
)
from ivon_jax.train.evaluate import Prediction, predict, score
from ivon_jax.train.loop import train
from ivon_jax.train.report import tables
from ivon_jax.train.runs import run
from ivon_jax.train.step import Streams


@dataclasses.dataclass(frozen=True)
class Grid:
    """What to search.

    Attributes:
        learning_rates: peak learning rates.
        steps: lengths of training.
        gammas: of lambda = gamma * sqrt(N), IVON-LoRA only.
        beta2s: decays of the Hessian estimate.
        samples: posterior samples to average, IVON-LoRA only.
    """

    learning_rates: tuple[float, ...]
    steps: tuple[int, ...] = (350,)
    gammas: tuple[float | None, ...] = (None,)
    beta2s: tuple[float | None, ...] = (None,)
    samples: int = 5

    def points(self) -> list[MethodConfig]:
        """Returns the grid's points."""
        product = itertools.product(
            self.learning_rates, self.steps, self.gammas, self.beta2s
        )
        return [
            MethodConfig(learning_rate=rate, steps=steps, gamma=gamma, beta2=beta2)
            for rate, steps, gamma, beta2 in product
        ]


def name_of(config: TrainConfig) -> str:
    """Names a point's folder after what the grid varies."""
    hyper = config.hyper
    varied = [("lr", hyper.learning_rate), ("steps", hyper.steps)]
    varied += [("gamma", hyper.gamma), ("beta2-", hyper.beta2)]
    parts = [f"{name}{value:g}" for name, value in varied if value is not None]
    return "-".join([config.method, *parts])


def run_point(
    problem: Problem, config: TrainConfig, samples: int, out: Path
) -> list[tables.Row]:
    """Trains one point and scores it on the held-out examples."""
    result = out / "validation.json"
    config = resolve(config, problem.task.family, len(problem.train))
    if result.exists():
        if run.read_config(out)[0] != config:
            raise ValueError(f"{out}: was run with other settings; choose a new folder")
        return json.loads(result.read_text())
    if (out / run.CONFIG).exists():  # interrupted, so begin again
        shutil.rmtree(out)
    posterior = train(problem, config, out)
    key = Streams.from_seed(config.seed).ensemble
    rows = []
    for how in [Prediction(0), Prediction(samples)][: 1 + bool(posterior.precision)]:
        log_probs = predict(problem, posterior, how, key)
        rows.append(score(out.name, how, log_probs, problem.eval.labels))
    run.write_json(result, rows)
    return rows


def main(
    data: Flat[DataConfig],
    grid: Flat[Grid],
    out: Path,
    method: MethodName = "ivon-lora",
    model: str = "smollm2-135m-instruct",
    seed: int = 10,
) -> None:
    """Searches a grid and prints the table of all its points."""
    if data.validation_examples is None:
        raise ValueError("validation_examples: needed, else the test set is tuned on")
    configs = [
        TrainConfig(model, method, seed, data, hyper=point) for point in grid.points()
    ]
    family = find_task(data).family
    for config in configs:
        resolve(config, family, num_examples=1)  # before the model is loaded
    problem = prepare(configs[0])
    rows = []
    for config in configs:
        rows += run_point(problem, config, grid.samples, out / name_of(config))
    print(tables.table(rows))


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except ValueError as error:
        sys.exit(f"tune: {error}")
