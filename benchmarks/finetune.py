"""LoRA training speed against PEFT on torch: same data, model, batches, optimizer.

    python -m benchmarks.finetune --data-dir DATA --out runs/benchmarks/finetune.json

Both train rank-8 adapters on q_proj and v_proj with Adam in float32, pad each batch
to its longest prompt (ours to its `bucket`; packed, to that of its longest two prompts
in a row), and compute the output layer at the last positions only. The same prompts go
to one, then to the other.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks.timing import machine, summary, write
from ivon_jax.lora import LoraConfig, init_adapters
from ivon_jax.models import known
from ivon_jax.train.batches import Batch, train_batches
from ivon_jax.train.config import DataConfig, MethodConfig, TrainConfig
from ivon_jax.train.host_memory import keep_freed_memory
from ivon_jax.train.methods import Adam, IvonLora, Method
from ivon_jax.train.prepare import Problem, prepare
from ivon_jax.train.step import Streams, TrainState, train_step

Step = Callable[[Batch], float]


def ours(problem: Problem, method: Method) -> Step:
    """Our jitted step; returns the loss."""
    streams = Streams.from_seed(0)
    tokens = jnp.zeros((1, 1), jnp.int32)
    adapters = init_adapters(problem.model, streams.adapters, tokens)
    state = TrainState(jnp.zeros([], jnp.int32), adapters, method.init(adapters))
    # Committed like the output of a step, which is then compiled but once.
    state = jax.device_put(state, jax.local_devices()[0])

    def step(batch: Batch) -> float:
        nonlocal state
        state, logs = train_step(
            problem.model, method, state, problem.params, problem.answers,
            jax.device_put(batch), streams,
        )  # fmt: skip
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


def main(
    out: Path = Path("runs/benchmarks/finetune.json"),
    data_dir: Path | None = None,
    task: str = "arc_easy",
    steps: int = 30,
    batch_size: int = 8,
) -> None:
    """Measures and writes the results.

    Args:
        out: where to write.
        data_dir: the task's files; default: IVON_JAX_DATA.
        task: any task of the command line.
        steps: measured batches, after those that see each padded length first.
        batch_size: prompts a batch.
    """
    keep_freed_memory()  # as the command line does
    before = machine()
    data = DataConfig(task, data_dir, eval_examples=8)
    name = "smollm2-135m-instruct"
    problem = prepare(TrainConfig(name, "adam", 0, data, LoraConfig(), MethodConfig()))
    gguf = known.fetch(name)
    adam = Adam(1e-4, 0.9, 0.999, 1e-8, 10**6, 1)
    ivon = IvonLora(1e-2, 1e5, 0.05, 0.9, 0.9995, 5e-3, 1, 10**6, 1)
    makers: dict[str, Callable[[], Step]] = {
        "ours": lambda: ours(problem, adam),
        "ours_packed": lambda: ours(problem, adam),
        "ours_ivon_packed": lambda: ours(problem, ivon),
        "peft": lambda: peft(gguf, problem.answers),
    }
    batches = {}
    for label in makers:
        pack = 2 if "packed" in label else 1
        stream = train_batches(problem.train, batch_size, 0, pack=pack)
        batches[label] = [next(stream) for _ in range(steps)]
    runs, first = {}, {}
    for label, make in makers.items():
        start = time.perf_counter()
        runs[label] = make()
        runs[label](batches[label][0])
        first[label] = time.perf_counter() - start
    shapes = {
        label: {batch.tokens.shape: batch for batch in batches[label]}
        for label in makers
    }
    for label, run in runs.items():
        for batch in shapes[label].values():
            run(batch)
    seconds: dict[str, list[float]] = {label: [] for label in runs}
    losses: dict[str, list[float]] = {label: [] for label in runs}
    for i in range(steps):
        for label, run in runs.items():
            start = time.perf_counter()
            losses[label].append(run(batches[label][i]))
            seconds[label].append(time.perf_counter() - start)
    write(
        out,
        {
            "machine": before,
            "task": task,
            "batch_size": batch_size,
            "tokens_per_batch": {
                label: float(np.mean([batch.tokens.size for batch in batches[label]]))
                for label in ("ours", "ours_packed")
            },
            "compiled_shapes": {label: len(shapes[label]) for label in shapes},
            "seconds_to_first_step": first,
            "step": {label: summary(values) for label, values in seconds.items()},
            "examples_per_s": {
                label: batch_size * len(v) / sum(v) for label, v in seconds.items()
            },
            "mean_loss": {label: float(np.mean(v)) for label, v in losses.items()},
            "speedup_over_peft": {
                label: _ratios(seconds["peft"], seconds[label])
                for label in runs
                if label != "peft"
            },
            "adapters": dataclasses.asdict(problem.model.config),
        },
    )


def _ratios(theirs: list[float], mine: list[float]) -> dict[str, float]:
    """Spread of the ratio over batches."""
    ratios = [p / o for o, p in zip(mine, theirs, strict=True)]
    names = ("lower_quartile", "median", "upper_quartile")
    return dict(zip(names, statistics.quantiles(ratios, n=4), strict=True))


if __name__ == "__main__":
    tyro.cli(main)
