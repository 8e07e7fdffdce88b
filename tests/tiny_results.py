"""Folders of evaluated runs, made without a model: what a report reads."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tiny

from ivon_jax import Particles, Posterior
from ivon_jax.kinds import Distribution
from ivon_jax.train.config import DataConfig, TrainConfig, resolve
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.runs import run, status
from ivon_jax.train.splits import example_metadata, find_examples, find_task

LABELS = ("no", "yes")
STEPS = 40
# What ends a script, opens a comment, ends a line of JavaScript, or turns text around.
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!-- <script> ]]> &lt;b&gt; ${1} {{x}}",
    "a\u2028b\u2029c \u202egnp.exe\u202c \x00 \x1b[31m",
    "\\u003c/script> \"'`",
)


def gaussian(seed: int = 0) -> Posterior:
    rng = np.random.default_rng(seed)
    mean = {"x": {"lora_a": rng.normal(size=(6, 2)), "lora_b": rng.normal(size=(2, 4))}}
    mean = {"x": {k: jnp.float32(v) for k, v in mean["x"].items()}}
    precision = {f"x/{k}": jnp.full(v.shape, 4.0) for k, v in mean["x"].items()}
    return Posterior(mean, precision, {})


def point() -> Posterior:
    return Posterior.point(gaussian().mean)


def members() -> Particles:
    return Particles.of([gaussian(seed).mean for seed in range(3)])


def numbers(labels: Any, draws: int) -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(draws, len(labels), 1))
    return np.float32(labels[:, None] + 0.2 * noise)


def tokens(lengths: Sequence[int], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of learnt tokens, and their labels."""
    labels = [(7, i) for i, length in enumerate(lengths) for _ in range(length)]
    rng = np.random.default_rng(0)
    largest = np.log(rng.uniform(0.4, 1, size=(draws, len(labels))))
    own = largest - rng.integers(0, 2, largest.shape) * rng.random(largest.shape)
    return np.float32(np.stack([own, largest], axis=-1)), np.array(labels, np.int32)


def log_probs(labels: Any, seed: int, draws: int, classes: int = 2) -> np.ndarray:
    """Predictions that are right more often than not, and sure by different degrees."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(len(labels), classes))
    common[np.arange(len(labels)), labels] += 1.5
    logits = common * 1.5 + 0.5 * rng.normal(size=(draws, *common.shape))
    return np.float32(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))


def write_examples(folder: Path, texts: Sequence[str]) -> DataConfig:
    """Write a custom task whose evaluation texts these are."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "label": LABELS[i % 3 % 2]} for i, text in enumerate(texts)]
    path = tiny.write_rows(folder / "rows.jsonl", rows)
    return DataConfig(
        task="custom", train_file=path, eval_file=path, prompt="{text}", labels=LABELS
    )


def write_numbers(folder: Path, count: int) -> DataConfig:
    """Write the pairs of a task that asks for a number."""
    (folder / "stsb").mkdir(parents=True)
    rows = [
        {"sentence1": f"first {i}", "sentence2": f"second {i}", "label": i / count}
        for i in range(count)
    ]
    for name in ("train", "validation"):
        tiny.write_rows(folder / "stsb" / f"{name}.jsonl", rows)
    return DataConfig(task="stsb", data_dir=folder)


def write_text(folder: Path, completions: Sequence[str]) -> DataConfig:
    """Write a text task with these completions."""
    folder.mkdir(parents=True)
    rows = [{"prompt": f"{i}:", "completion": x} for i, x in enumerate(completions)]
    path = tiny.write_rows(folder / "text.jsonl", rows)
    return DataConfig("text", train_file=path, eval_file=path)


def plain_texts(count: int) -> list[str]:
    return [f"text number {i}" for i in range(count)]


def write_run(
    folder: Path,
    data: DataConfig,
    predictors: Sequence[Predictor] = (Mean(), Samples(4)),
    posterior: Distribution | None = None,
    method: str = "ivon-lora",
    seed: int = 0,
    predictions: Any = None,
    labels: Any = None,
    state: status.State = "evaluated",
) -> Path:
    """Write a run with an evaluation of random predictions.

    `predictions(predictor)` returns others; then labels may be of any kind.
    """
    task = find_task(data)
    config = TrainConfig("some/model", data=data, method=method)
    config = resolve(config, task.preset, 64)
    config = dataclasses.replace(
        config, hyper=dataclasses.replace(config.hyper, steps=STEPS)
    )
    examples = find_examples(task, data, config.seed, ["test"])
    counted = example_metadata(examples)
    if labels is None:
        kind = np.int32 if task.label_words else np.float32
        labels = np.array([one.label for one in examples["test"]], kind)
    known = {"task": task.name, "model": "some/model", "model_fingerprint": "abc"}
    folder.mkdir(parents=True)
    run.write_config(folder, config, **known, **counted, train_examples=64)
    posterior = gaussian() if posterior is None else posterior
    posterior.save(folder / run.POSTERIOR, step=STEPS, ess=64)
    rng = np.random.default_rng(seed)
    lines = [
        {"step": i, "loss": 2 * 0.95**i + 0.1 * rng.random(), "seconds": 0.5 * i}
        for i in range(1, STEPS + 1)
    ]
    lines[5]["loss"] = None  # a step that was skipped
    lines[-1] |= {"eval_nll": 0.5, "eval_accuracy": 0.75}
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / run.METRICS).write_text(text)
    status.write(folder, STEPS, STEPS, "trained" if state == "evaluated" else state)
    if predictors:
        evaluate(
            folder, config, predictors, {**known, **counted}, seed, predictions, labels
        )
    return folder


def evaluate(folder, config, predictors, about, seed, predictions, labels) -> None:
    rows = []
    answer = "class" if labels.dtype == np.int32 and labels.ndim == 1 else "number"
    answer = "text" if labels.ndim == 2 else answer
    for index, one in enumerate(predictors):
        made = (
            log_probs(labels, seed + index, one.passes)
            if predictions is None
            else predictions(one)
        )
        run.write_predictions(folder, one.name, answer, made, labels)
        rows.append(one.row(config.method) | score(answer, made, labels))
    values = {"config": {}, **about, "best": False, "test": False, "step": STEPS}
    values |= {"rows": rows, "versions": run.versions()}
    run.write_json(folder / f"evaluation-{predictors[-1].name}.json", values)
    status.evaluated(folder)


def score(answer: str, predictions: np.ndarray, labels: Any) -> dict[str, float]:
    """Some metrics, by NumPy."""
    if answer == "number":
        error = predictions[..., 0].mean(axis=0) - labels
        return {"mse": float(np.square(error).mean())}
    if answer == "text":
        return {"token_accuracy": 0.5}
    probs = np.exp(predictions.astype(float)).mean(axis=0)
    own = probs[np.arange(len(labels)), labels]
    right = probs.argmax(axis=1) == labels
    return {
        "accuracy": float(right.mean()),
        "ece": 0.1,
        "nll": float(-np.log(own).mean()),
        "brier": 0.3,
        "aurc": 0.1,
    }
