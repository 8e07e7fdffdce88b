"""IVON-LoRA against Adam on a small network that is not a language model.

    python -m benchmarks.digits --out runs/benchmarks/digits.json

An MLP that classifies the digits 0 to 4 is adapted, by LoRA on all its layers, to the
digits 5 to 9 with eight examples of each. Both methods have a grid of learning rates
and steps (IVON-LoRA also of lambda), selected by mean NLL on validation examples over
all seeds. The test examples are the same for every seed, so that none of them selects.
Needs scikit-learn.
"""

import functools
import itertools
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Key, PyTree

import ivon_jax
from benchmarks.timing import machine, write
from ivon_jax.ensemble import average, ensemble_log_probs
from ivon_jax.lora import Lora, LoraConfig, init_adapters
from ivon_jax.train.report.tables import markdown

CLASSES, SHOTS, VALIDATION, TEST, BATCH, SAMPLES = 5, 8, 20, 80, 8, 32
RATES = {"adam": (3e-3, 1e-2, 3e-2, 1e-1), "ivon-lora": (0.1, 0.3, 1.0, 3.0)}
STEPS = (50, 100, 200, 400)
ESS = {"adam": (0.0,), "ivon-lora": (100.0, 300.0, 1000.0)}

Data = tuple[Float[Array, "n 64"], Any]


def mean_loss(logits: Float[Array, "n c"], labels: Any) -> Float[Array, ""]:
    """Returns the mean cross-entropy."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(losses)


class MLP(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x: Float[Array, "n 64"]) -> Float[Array, "n 5"]:
        """Returns logits."""
        for _ in range(2):
            x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(CLASSES)(x)


MODEL = Lora(MLP(), LoraConfig(rank=4, alpha=8.0, dropout=0.0, targets=("all-linear",)))


def load(seed: int) -> tuple[Data, Data, Data, Data]:
    """Splits the digits: old ones, and new ones for training, validation and test.

    Args:
        seed: seed of the training and validation examples.
    """
    from sklearn.datasets import load_digits

    pixels, digits = load_digits(return_X_y=True)
    pixels = (pixels / 16).astype(np.float32)
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    new: list[Any] = []
    for digit in range(CLASSES, 2 * CLASSES):
        part = fixed.permutation(np.flatnonzero(digits == digit))
        drawn = np.split(rng.permutation(part[TEST:]), [SHOTS, SHOTS + VALIDATION])
        new.append((*drawn[:2], part[:TEST]))
    parts = [np.concatenate(part) for part in zip(*new, strict=True)]
    chosen = [np.flatnonzero(digits < CLASSES), *parts]
    old, train, validation, test = (
        (jnp.asarray(pixels[i]), jnp.asarray(digits[i] % CLASSES)) for i in chosen
    )
    return old, train, validation, test


def pretrain(data: Data) -> PyTree:
    """Trains the base on the old digits."""
    params = MLP().init(jax.random.key(0), data[0])["params"]
    tx = optax.adam(1e-3)

    @jax.jit
    def run(params: PyTree) -> PyTree:
        def step(carry: Any, _: Any) -> Any:
            params, state = carry

            def loss(params: PyTree) -> Float[Array, ""]:
                logits: Any = MLP().apply({"params": params}, data[0])
                return mean_loss(logits, data[1])

            updates, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), length=300)[0][0]

    return run(params)


@functools.partial(jax.jit, static_argnames=("method", "steps"))
def adapt(
    method: str, steps: int, params: PyTree, data: Data, key: Key[Array, ""],
    rate: Float[Array, ""], ess: Float[Array, ""],
) -> ivon_jax.Posterior:  # fmt: skip
    """Trains adapters on the new digits."""
    schedule = lambda count: rate * (1 - count / steps)  # noqa: E731
    tx: Any = (
        optax.adam(schedule)
        if method == "adam"
        else ivon_jax.ivon_lora(schedule, ess, beta2=1 - 2 / steps)
    )
    adapters = init_adapters(MODEL, jax.random.fold_in(key, steps), data[0])

    def step(carry: Any, count: Array) -> Any:
        adapters, state = carry
        now = jax.random.fold_in(key, count)
        rows = jax.random.choice(now, len(data[1]), (BATCH,), replace=False)

        def loss(adapters: PyTree) -> Float[Array, ""]:
            variables = {"params": params, "lora": adapters}
            logits: Any = MODEL.apply(variables, data[0][rows])
            return mean_loss(logits, data[1][rows])

        if method == "adam":
            updates, state = tx.update(jax.grad(loss)(adapters), state)
        else:
            theta = ivon_jax.sample(now, adapters, state)
            grads = jax.grad(loss)(theta)
            updates, state = tx.update(grads, state, adapters, key=now)
        return (optax.apply_updates(adapters, updates), state), None

    start = (adapters, tx.init(adapters))
    (adapters, state), _ = jax.lax.scan(step, start, jnp.arange(steps))
    if method == "adam":
        return ivon_jax.Posterior.point(adapters)
    return ivon_jax.Posterior.from_state(adapters, state)


@functools.partial(jax.jit, static_argnames="samples")
def score(
    params: PyTree, posterior: ivon_jax.Posterior, data: Data, samples: int
) -> dict[str, Float[Array, ""]]:
    """Computes accuracy, ECE and NLL, at the mean or averaged over samples."""

    def logits(adapters: PyTree) -> Any:
        return MODEL.apply({"params": params, "lora": adapters}, data[0])

    if samples:
        key = jax.random.key(1)
        log_probs = average(ensemble_log_probs(logits, posterior, key, samples))
    else:
        log_probs = jax.nn.log_softmax(logits(posterior.mean))
    found = ivon_jax.metrics.summary(log_probs, data[1])
    return {name: found[name] for name in ("accuracy", "ece", "nll")}


def main(out: Path = Path("runs/benchmarks/digits.json"), seeds: int = 10) -> None:
    """Tunes, compares and writes the results.

    Args:
        out: output file.
        seeds: number of seeds, each of a split, adapters, batches and noise.
    """
    before, start = machine(), time.monotonic()
    splits = [load(seed) for seed in range(seeds)]
    params = pretrain(splits[0][0])
    train, validation, test = (
        jax.tree.map(lambda *parts: jnp.stack(parts), *part)
        for part in list(zip(*splits, strict=True))[1:]
    )
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    rows = []
    for method, samples in (("adam", 0), ("ivon-lora", 0), ("ivon-lora", SAMPLES)):
        grid = jnp.array(list(itertools.product(RATES[method], ESS[method])))
        trials = []
        for steps in STEPS:

            def run(point: Array, train: Data, key: Any, steps: int = steps) -> Any:
                return adapt(method, steps, params, train, key, *point)  # noqa: B023

            # All points of the grid and all seeds at once.
            over_seeds = jax.vmap(run, (None, 0, 0))
            posteriors = jax.vmap(over_seeds, (0, None, None))(grid, train, keys)
            judge = jax.vmap(lambda q, data: score(params, q, data, samples))  # noqa: B023
            on = jax.vmap(judge, (0, None))
            chosen_by = np.asarray(on(posteriors, validation)["nll"]).mean(1)
            final = jax.tree.map(np.asarray, on(posteriors, test))
            for i, (rate, ess) in enumerate(np.asarray(grid).tolist()):
                numbers = {name: values[i].tolist() for name, values in final.items()}
                trials.append((float(chosen_by[i]), steps, rate, ess, numbers))
        nll, steps, rate, ess, numbers = min(trials, key=lambda trial: trial[0])
        rows.append(
            {"method": method, "samples": samples, "steps": steps, "rate": rate,
             "ess": ess, "validation_nll": nll, "test": numbers}
        )  # fmt: skip
    seconds = round(time.monotonic() - start, 1)
    write(out, {"machine": before, "seconds": seconds, "seeds": seeds, "rows": rows})
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Formats means and standard errors over seeds."""
    cells = [["", "accuracy %", "ECE %", "NLL"]]
    for row in rows:
        sampled = f", {row['samples']} samples" if row["samples"] else ""
        ess = f", lambda {row['ess']:g}" if row["ess"] else ""
        line = [
            f"{row['method']}{sampled}"
            f" (rate {row['rate']:.2g}, {row['steps']} steps{ess})"
        ]
        for name, scale, digits in (
            ("accuracy", 100, 1),
            ("ece", 100, 1),
            ("nll", 1, 3),
        ):
            values = scale * np.array(row["test"][name])
            error = values.std(ddof=1) / np.sqrt(len(values))
            line.append(f"{values.mean():.{digits}f} ± {error:.{digits}f}")
        cells.append(line)
    return markdown(cells)


if __name__ == "__main__":
    tyro.cli(main)
