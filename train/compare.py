"""Adam against IVON-LoRA on the same adapters, batches and examples."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ivon_jax.ensemble import average
from ivon_jax.files import write_bytes
from ivon_jax.train.config import (
    CompareConfig,
    MethodConfig,
    MethodName,
    TrainConfig,
    resolve,
)
from ivon_jax.train.evaluate import Prediction, check_counts, predict, score
from ivon_jax.train.loop import Interrupted, train
from ivon_jax.train.prepare import find_task, prepare, settled
from ivon_jax.train.report import tables
from ivon_jax.train.runs import run
from ivon_jax.train.step import Streams

# What ``results.json`` holds of each row, metrics as far as the task has them.
ROW = ("method", "predict", "samples", "tau", "prune", *tables.COLUMNS)


def compare(config: CompareConfig, out: Path, resume: bool = False) -> dict[str, Any]:
    """Trains, evaluates and reports both methods.

    Args:
        config: what to compare.
        out: folder for ``results.json``, ``metrics.jsonl``, ``report.md``, figures,
            and a run folder for each method.
        resume: go on with the runs as far as they are in the folder, if they are.

    Returns:
        The contents of ``results.json``.

    Raises:
        ValueError: bad input of any kind, before anything is trained or written; or
            the folder holds another comparison.
        Interrupted: SIGINT or SIGTERM came while training; the runs up to then are
            in their folders, as `train` leaves them.
    """
    check_counts(samples=config.samples, sweep_samples=config.sweep_samples)
    main, sweep = _main(config), _sweep(config)
    task = find_task(config.data)
    if not task.words:
        raise ValueError(f"task: {task.name} has no classes to compare calibration on")
    # Twice: names and values are checked before the model is loaded.
    runs = _runs(config, task.family, num_examples=1)
    run.check_out(out, resume=resume)
    problem = prepare(runs["adam"])
    config = settled(config, problem.task)
    runs = _runs(config, task.family, len(problem.train))
    run.start(out, config, problem.facts, resume=resume)
    posteriors, logs = {}, {}
    for name, train_config in runs.items():
        try:
            posteriors[name] = train(problem, train_config, out / name, resume)
        except Interrupted as error:
            raise Interrupted(f"{name} {error}") from None
        lines = (out / name / run.METRICS).read_text().splitlines()
        logs[name] = [json.loads(line) for line in lines]
    key = Streams.from_seed(config.seed).ensemble
    labels = problem.eval.labels
    rows, kept = [], {}
    done: dict[str, dict[Prediction, np.ndarray]] = {name: {} for name in runs}
    for name, how in main + sweep:
        log_probs = _part(done[name], how)
        if log_probs is None:
            log_probs = predict(problem, posteriors[name], how, key)
        done[name][how] = log_probs
        row = score(name, how, log_probs, labels, task.metrics)
        rows.append({column: row[column] for column in ROW if column in row})
        if (name, how) in main:
            kept[tables.label(rows[-1])] = np.asarray(average(jnp.asarray(log_probs)))
            run.write_predictions(out / name, how.name, log_probs, labels)
    facts = ("task", "model", "train_examples", "eval_examples")
    results = {
        **{name: problem.facts[name] for name in facts},
        "seed": config.seed,
        "steps": runs["adam"].hyper.steps,
        "rows": rows,
        "seconds": {name: lines[-1]["seconds"] for name, lines in logs.items()},
        "versions": run.versions(),
    }
    run.write_json(out / "results.json", results)
    _write_report(out, results, logs, kept, labels)
    return results


def _runs(
    config: CompareConfig, family: str, num_examples: int
) -> dict[str, TrainConfig]:
    """The resolved run of each method, on the same batches."""

    def resolved(method: MethodName, hyper: MethodConfig) -> TrainConfig:
        alone = TrainConfig(
            config.model, method, config.seed, config.data, config.lora, hyper
        )
        return resolve(alone, family, num_examples)

    adam = resolved("adam", config.adam)
    ivon_lora = resolved("ivon-lora", config.ivon_lora)
    for name in ("steps", "batch_size"):
        first, second = (getattr(c.hyper, name) for c in (adam, ivon_lora))
        if first != second:
            raise ValueError(
                f"{name}: {first} of adam and {second} of ivon-lora differ; they are"
                " compared on the same batches"
            )
    return {"adam": adam, "ivon-lora": ivon_lora}


def _main(config: CompareConfig) -> list[tuple[str, Prediction]]:
    return [
        ("adam", Prediction(0)),
        ("ivon-lora", Prediction(0)),
        ("ivon-lora", Prediction(config.samples)),
    ]


def _sweep(config: CompareConfig) -> list[tuple[str, Prediction]]:
    """Every temperature unpruned and every pruning ratio at tau 1, each once.

    All points share the key, so their samples share the noise and differ only by
    what is swept; and they share one compiled program.
    """
    points = [Prediction(config.sweep_samples, tau=tau) for tau in config.taus]
    points += [Prediction(config.sweep_samples, prune=prune) for prune in config.prunes]
    named = dict.fromkeys(("ivon-lora", how) for how in points)
    return [point for point in named if point not in _main(config)]


def _part(
    done: dict[Prediction, Float[np.ndarray, "_ n c"]], how: Prediction
) -> Float[np.ndarray, "s n c"] | None:
    """Finds predictions among those of more samples, the first of which they are."""
    for other, log_probs in done.items():
        enough = 0 < how.samples <= other.samples
        if enough and dataclasses.replace(other, samples=how.samples) == how:
            return log_probs[: how.samples]
    return None


def _write_report(
    out: Path,
    results: dict[str, Any],
    logs: dict[str, list[dict[str, Any]]],
    kept: dict[str, Float[np.ndarray, "n c"]],
    labels: Int[np.ndarray, " n"],
) -> None:
    lines = [{"method": name, **line} for name in logs for line in logs[name]]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_bytes(out / run.METRICS, text.encode())
    tables.training_curves(out / "training.png", logs)
    tables.reliability(out / "reliability.png", kept, labels)
    tables.trade_off(out / "trade_off.png", results["rows"])
    write_bytes(out / "report.md", _report(results).encode())


def _report(results: dict[str, Any]) -> str:
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in results["seconds"].items())
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    return f"""# {results["task"]}: Adam and IVON-LoRA

{results["model"]}, {results["train_examples"]} training examples, {results["steps"]}
steps, seed {results["seed"]}; {results["eval_examples"]} evaluation examples.

{tables.table(results["rows"])}

ECE with 10 and 15 equal-width bins of the largest probability. Brier is summed over
classes. Training took {seconds}.

![Training loss](training.png)

![Reliability diagrams](reliability.png)

![Accuracy against calibration](trade_off.png)

{versions}
"""
