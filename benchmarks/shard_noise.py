"""Effect of a posterior sample for each data-parallel group (--noise per-shard).

    python -m benchmarks.shard_noise --out runs/benchmarks/shard_noise.json

First the variance of one step's Hessian estimate over keys, at fixed parameters: with
the same prompts in every group, so that only the samples differ, and with a batch split
between the groups, as in training. Then a short run from the same start.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import ivon_jax
from benchmarks.timing import machine, write
from ivon_jax._state import posterior_precision
from ivon_jax.train.config import DataConfig, TrainConfig, make_method, resolve
from ivon_jax.train.data.batches import Batch, train_batches
from ivon_jax.train.data.layout import Layout
from ivon_jax.train.keys import Streams
from ivon_jax.train.loop import train
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.predict import validate
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.report.tables import markdown
from ivon_jax.train.runs import run

GROUPS = (1, 2, 4, 8)
# Columns of variances, and their fields in the results.
HEADS = {"variance, same prompts": "same_prompts", "split batch": "split_batch"}


def variance(
    problem: Problem, config: TrainConfig, batch: Batch, keys: int
) -> dict[str, float]:
    """Measures the variance of a step's Hessian estimate over keys.

    Args:
        problem: the model.
        config: the resolved run; its mesh determines the number of groups.
        batch: the batch, with a leading axis of groups if there is more than one.
        keys: number of keys.

    Returns:
        The mean over all entries of the adapters, and its standard error; gradients
        vary much in size between samples, so many keys are needed.
    """
    method: Any = make_method(config)
    network = problem.network
    adapters = network.trainable.fresh(network.module, jax.random.key(0))
    # B is zero at the start, where A has no gradient.
    adapters = jax.tree.map(
        lambda a: a + 0.01 * jax.random.normal(jax.random.key(1), a.shape), adapters
    )
    state = method.init(adapters)
    precision = posterior_precision(state)

    @jax.jit
    def estimate(key: Any, frozen: Any, objective: Any) -> Any:
        def loss_fn(adapters: Any, batch: Batch) -> Any:
            outputs = objective.outputs(network.bind(adapters, frozen, {}), batch)
            return objective.loss(outputs, batch) / batch.weights.sum()

        value_and_grad = ivon_jax.value_and_grad(loss_fn, groups=method.groups)
        _, _, moments = value_and_grad(key, adapters, state, batch)
        return {k: precision[k] * v for k, v in moments.noise_grad.items()}

    base = jax.device_put((problem.frozen, problem.objective), jax.devices()[0])
    found = [jax.device_get(estimate(jax.random.key(i), *base)) for i in range(keys)]
    rows = np.array([np.concatenate([f[k].ravel() for k in precision]) for f in found])
    of_key = np.square(rows - rows.mean(0)).mean(1) * keys / (keys - 1)
    error = of_key.std(ddof=1) / np.sqrt(keys)
    return {"variance": float(of_key.mean()), "standard_error": float(error)}


def grouped(batch: Batch, groups: int) -> Batch:
    """Splits a batch's rows among groups."""
    if groups == 1:
        return batch
    return jax.tree.map(lambda part: part.reshape(groups, -1, *part.shape[1:]), batch)


def main(
    out: Path = Path("runs/benchmarks/shard_noise.json"),
    keys: int = 40,
    rows: int = 1,
    batch_size: int = 8,
    steps: int = 40,
) -> None:
    """Measures and writes the results.

    Args:
        out: output file.
        keys: keys of each variance; with two the standard error is always 0.
        rows: prompts of a group where all groups have the same.
        batch_size: prompts of the split batch, and of the run's batches.
        steps: steps of the run.
    """
    jax.config.update("jax_num_cpu_devices", max(GROUPS))
    before = machine()
    data = DataConfig(train_examples=256, eval_examples=100)
    hyper = IvonLoraHyper(
        steps=steps,
        batch_size=batch_size,
        learning_rate=0.03,
        gamma=75.0,
        noise="per-shard",
    )
    results: dict[int, dict[str, Any]] = {}
    streams = Streams.from_seed(0)
    for groups in GROUPS:
        start = time.monotonic()
        config = TrainConfig(data=data, hyper=hyper, mesh=f"data={groups}")
        problem = prepare(config)
        config = resolve(config, problem.task.preset, len(problem.splits["train"]))
        # A row for each prompt, as groups are made of rows.
        layout = Layout.of(problem.splits["train"], batch_size, rows=batch_size)
        batch = next(train_batches(problem.splits["train"], layout, 0))
        same = jax.tree.map(lambda p, n=groups: np.concatenate([p[:rows]] * n), batch)
        with tempfile.TemporaryDirectory() as folder:
            posterior = train(problem, config, Path(folder) / "run")
            lines = (Path(folder) / "run" / run.METRICS).read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in lines]
        results[groups] = {
            "same_prompts": variance(problem, config, grouped(same, groups), keys),
            "split_batch": variance(problem, config, grouped(batch, groups), keys),
            "last_losses": float(np.mean(losses[-steps // 4 :])),
            **validate(problem, problem.splits["test"], posterior, streams),
            "seconds": time.monotonic() - start,
        }
        print(groups, results[groups], file=sys.stderr, flush=True)
    sizes = {"keys": keys, "rows": rows, "batch_size": batch_size, "steps": steps}
    write(out, {"machine": before, **sizes, "groups": results})
    print(table(results))


def table(results: dict[int, dict[str, Any]]) -> str:
    """Writes a Markdown table; variances are shares of that with one group."""
    cells = [["groups", *HEADS, "last losses", "NLL", "accuracy"]]
    one = {field: results[1][field]["variance"] for field in HEADS.values()}
    for groups, found in results.items():
        shares = (
            f"{share:.3f} ± {error:.3f}"
            for field in HEADS.values()
            for share, error in [np.divide([*found[field].values()], one[field])]
        )
        scores = (found[k] for k in ("last_losses", "eval_nll", "eval_accuracy"))
        cells.append([str(groups), *shares, *(f"{score:.3f}" for score in scores)])
    return markdown(cells)


if __name__ == "__main__":
    tyro.cli(main)
