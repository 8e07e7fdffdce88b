"""LoRA training speed against PEFT on torch: same data, model, batches, optimizer.

    python -m benchmarks.finetune --data-dir DATA --out runs/benchmarks/finetune.json

Both train rank-8 adapters on q_proj and v_proj with Adam in float32, and compute the
output layer at the last positions only. PEFT pads each batch to its longest prompt.
Ours puts the prompts one after another, with the prefix that they share once;
`ours_padded` has a row for each, padded. All are given the same prompts in turn.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from benchmarks.steps import make_method
from benchmarks.timing import machine, summary, write
from ivon_jax.models import cache
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.data.batches import Batch, train_batches
from ivon_jax.train.data.layout import Layout
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Method
from ivon_jax.train.pod.host_memory import keep_freed_memory
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.step import first_state, train_step

Step = Callable[[Batch], float]


def ours(problem: Problem, method: Method, prefix: np.ndarray | None) -> Step:
    """Our jitted step; returns the loss."""
    fixed = problem.fixed(Streams.from_seed(0), prefix)
    state = first_state(problem.network, method, None, fixed.streams.adapters)
    # Committed like the output of a step, so that it is compiled only once.
    state = jax.device_put(state, jax.local_devices()[0])

    def step(batch: Batch) -> float:
        nonlocal state
        state, logs = train_step(
            problem.network, method, state, fixed, jax.device_put(batch)
        )
        return float(logs["loss"])

    return step


def peft(gguf: Path, answers: Any) -> Step:
    """The same with transformers' torch class and PEFT; returns the loss."""
    import torch
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    config = PeftConfig(
        r=8, lora_alpha=16, lora_dropout=0.1, target_modules=["q_proj", "v_proj"]
    )
    model = get_peft_model(base, config).train()
    optimizer = torch.optim.Adam(
        [p for p in model.parameters() if p.requires_grad], lr=1e-4
    )
    columns = torch.tensor(np.asarray(answers))

    def step(batch: Batch) -> float:
        lengths, labels = batch.lengths[:, 0], batch.labels[:, 0]
        longest = int(lengths.max())
        tokens = np.zeros((len(lengths), longest), np.int64)
        mask = np.zeros_like(tokens)
        rows = zip(batch.tokens, lengths, strict=True)
        for i, (row, length) in enumerate(rows):  # left padding
            tokens[i, longest - length :] = row[:length]
            mask[i, longest - length :] = 1
        out = model(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask),
            logits_to_keep=1,
            use_cache=False,
        )
        loss = torch.nn.functional.cross_entropy(
            out.logits[:, -1, columns], torch.tensor(labels).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


class Contestant(NamedTuple):
    """A contestant: the function that makes its step, and its batches."""

    make: Callable[[], Step]
    batches: list[Batch]


class Result(NamedTuple):
    """Measurements: seconds to the first step, seconds and losses of later ones."""

    first: float
    seconds: list[float]
    losses: list[float]


def race(contestants: dict[str, Contestant]) -> dict[str, Result]:
    """Times contestants in turn, after each has compiled every shape."""
    runs, results = {}, {}
    for label, (make, batches) in contestants.items():
        start = time.perf_counter()
        runs[label] = make()
        runs[label](batches[0])
        results[label] = Result(time.perf_counter() - start, [], [])
    for label, (_, batches) in contestants.items():
        for batch in {_shape(batch): batch for batch in batches}.values():
            runs[label](batch)
    for turn in zip(*(c.batches for c in contestants.values()), strict=True):
        for label, batch in zip(contestants, turn, strict=True):
            start = time.perf_counter()
            results[label].losses.append(runs[label](batch))
            results[label].seconds.append(time.perf_counter() - start)
    return results


def _shape(batch: Batch) -> tuple[int, ...]:
    assert batch.packed is not None
    return (*batch.tokens.shape, *batch.packed.token.shape)


def main(
    out: Path = Path("runs/benchmarks/finetune.json"),
    data_dir: Path | None = None,
    task: str = "arc_easy",
    steps: int = 30,
    batch_size: int = 8,
) -> None:
    """Measures and writes the results.

    Args:
        out: output file.
        data_dir: the task's files; default: IVON_JAX_DATA.
        task: any task of the command line.
        steps: measured batches, after one of each shape.
        batch_size: prompts per batch.
    """
    keep_freed_memory()  # as the command line does
    before = machine()
    data = DataConfig(task, data_dir, eval_examples=8)
    name = "smollm2-135m-instruct"
    problem = prepare(TrainConfig(name, data=data))
    objective: Any = problem.objective
    lora: Any = problem.network.module
    gguf = cache.fetch(name)
    adam = make_method("adam", learning_rate=1e-4)
    ivon = make_method("ivon-lora", ess=1e5)
    train = problem.splits["train"]
    prefix = train.tokens[0][: objective.prefix_length(train)]
    rest = train.without_prefix(len(prefix))
    layout = Layout.of(rest, batch_size, prefix=len(prefix))
    alone = Layout.of(train, batch_size, rows=batch_size)
    packed = list(islice(train_batches(rest, layout, 0), steps))
    padded = list(islice(train_batches(train, alone, 0), steps))
    results = race(
        {
            "ours": Contestant(lambda: ours(problem, adam, prefix), packed),
            "ours_ivon": Contestant(lambda: ours(problem, ivon, prefix), packed),
            "ours_padded": Contestant(lambda: ours(problem, adam, None), padded),
            "peft": Contestant(lambda: peft(gguf, objective.label_ids), padded),
        }
    )
    theirs = results["peft"].seconds
    write(
        out,
        {
            "machine": before,
            "task": task,
            "batch_size": batch_size,
            "tokens_per_batch": {
                "ours": float(
                    np.mean([len(prefix) + batch.tokens.size for batch in packed])
                ),
                "ours_padded": float(np.mean([batch.tokens.size for batch in padded])),
            },
            "adapters": dataclasses.asdict(lora.config),
            "results": {
                label: {
                    "seconds_to_first_step": result.first,
                    "step": summary(result.seconds),
                    "examples_per_s": batch_size * steps / sum(result.seconds),
                    "mean_loss": float(np.mean(result.losses)),
                    "speedup_over_peft": _ratios(theirs, result.seconds),
                }
                for label, result in results.items()
            },
        },
    )


def _ratios(theirs: list[float], ours: list[float]) -> dict[str, float]:
    """Returns quartiles of the ratio over batches."""
    ratios = [t / m for t, m in zip(theirs, ours, strict=True)]
    names = ("lower_quartile", "median", "upper_quartile")
    return dict(zip(names, statistics.quantiles(ratios, n=4), strict=True))


if __name__ == "__main__":
    tyro.cli(main)
