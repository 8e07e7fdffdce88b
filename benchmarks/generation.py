"""Kept tokens per second of decoding, against transformers' `generate`.

    python -m benchmarks.generation --data-dir DATA --cores 0

Both sample from the model itself (temperature 1, no filters) in float32, on the same
cores with as many threads, in processes of their own that take turns. A token is kept
if it is of an output, its stop token included: what is computed for rows that have
ended, or as padding, does not count. Our first call of each case, which compiles, is
not timed. Seconds are those of the clock, and of the processor in all threads: on a
machine that is shared, pin both to one core and compare the latter.

What was measured to choose the design, SmolLM2-135M, float32, two cores of an EPYC
shared with other programs, in processor seconds:

* Layers scanned or unrolled in the loop, per step: 96 and 74 ms with 8 rows, 194 and
  190 ms with 32; and 1.2 against 8 to 14 s to compile, and the weights twice in memory.
  The weights that a scan slices are copied, which arithmetic hides from 16 rows on. So
  the layers stay scanned.
* Rows of a step: 44 ms for 1, 96 for 8, 139 for 16, 194 for 32, 327 for 64.
* Writing all layers' keys and values of a step by one scatter, each row at its own
  position: no slower than one slice at a common position, and 12 of 190 ms in all.
* The draw, for 32 rows and 49,152 tokens: 33 ms by Gumbel noise, 1.1 ms by two uniform
  numbers a row. The threshold of top-p: 288 ms by XLA's sort.
* Products: 90 to 115 GFLOP/s for [8..64, 576] x [576, 1536] in float32; no more in
  bfloat16.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro

from benchmarks.timing import machine, write

MODEL = "smollm2-135m-instruct"
MOST = 64  # rows that transformers is given at a time, at most
TaskName = Literal["sums", "gsm8k"]


class Case(NamedTuple):
    """What both are to make.

    Attributes:
        prompts: tokens of the prompts.
        outputs: number of outputs of each.
        max_tokens: limit of an output's tokens.
    """

    prompts: Sequence[Sequence[int]]
    outputs: int
    max_tokens: int


def main(
    out: Path = Path("runs/benchmarks/generation.json"),
    tasks: tuple[TaskName, ...] = ("sums", "gsm8k"),
    data_dir: Path | None = None,
    prompts: int = 4,
    outputs: tuple[int, ...] = (8, 64, 512),
    max_tokens: int = 128,
    rows: tuple[int, ...] = (32, 64),
    cores: tuple[int, ...] = (),
    rounds: int = 1,
) -> None:
    """Measures, prints a table, and writes the results.

    Args:
        out: output file.
        tasks: whose first evaluation questions are asked, in a chat.
        data_dir: folder with the rows of gsm8k.
        prompts: number of prompts of each task.
        outputs: numbers of outputs of each prompt.
        max_tokens: limit of an output's tokens.
        rows: outputs that transformers makes at a time, of several prompts or of a
            part of one, besides all of one prompt; the best is compared with.
        cores: the cores to use; all by default.
        rounds: timed repetitions, of which the fastest counts.
    """
    # Children of a fresh interpreter: neither library has threads in the other's.
    context = multiprocessing.get_context("spawn")
    used = set(cores) or os.sched_getaffinity(0)
    ours, theirs = _Child(context, _ours, used), _Child(context, _theirs, used)
    found = []
    for task in tasks:
        asked = ours.ask("prompts", task, prompts, data_dir)
        for count in outputs:
            case = Case(asked, count, max_tokens)
            calls = {"ours": partial(ours.ask, "decode", case)}
            calls |= {
                name: partial(theirs.ask, "decode", case, *how)
                for name, how in _ways(count, prompts, rows).items()
            }
            found.append({"task": task, "outputs": count} | race(calls, rounds))
            about = {"machine": machine(), "cores": len(used), "prompts": prompts}
            write(out, about | {"max_tokens": max_tokens, "rows": found})
    print(table(found))


def _ways(outputs: int, prompts: int, rows: Sequence[int]) -> dict[str, Any]:
    """Returns the numbers of prompts and of rows at a time, by name."""
    found = {"prompt by prompt": (1, min(outputs, MOST))}
    for size in rows:
        together = min(prompts, size // outputs)
        if together > 1:
            found[f"{together} prompts at a time"] = (together, outputs)
        elif size < min(outputs, MOST):
            found[f"{size} outputs at a time"] = (1, size)
    return found


def race(
    calls: Mapping[str, Callable[[], dict[str, float]]], rounds: int
) -> dict[str, Any]:
    """Lets contestants take turns.

    Args:
        calls: functions that measure once, of which "ours" is to be warmed up.
        rounds: number of turns of each.

    Returns:
        The fastest turn of each, and ``ratios``: ours by the best of the others.
    """
    calls["ours"]()
    best: dict[str, Any] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            one = call()
            if name not in best or one["cpu_seconds"] < best[name]["cpu_seconds"]:
                best[name] = one
    units = ("kept_per_second", "kept_per_cpu_second")
    others = [row for name, row in best.items() if name != "ours"]
    ratios = {x: best["ours"][x] / max(row[x] for row in others) for x in units}
    return {"contestants": best, "ratios": ratios}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns kept tokens per processor second as a Markdown table."""
    lines = [
        "| prompts | outputs | ours | transformers | at its best | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        speeds = {k: v["kept_per_cpu_second"] for k, v in row["contestants"].items()}
        ours = speeds.pop("ours")
        name = max(speeds, key=lambda name: speeds[name])
        values = f"{ours:.0f} | {speeds['prompt by prompt']:.0f} | {speeds[name]:.0f}"
        ratio = row["ratios"]["kept_per_cpu_second"]
        lines.append(
            f"| {row['task']} | {row['outputs']} | {values} ({name}) | {ratio:.1f} |"
        )
    return "\n".join(lines)


class _Child:
    """A contestant in a process of its own, which does nothing until it is asked."""

    def __init__(self, context: Any, serve: Callable[..., None], cores: set[int]):
        self._pipe, other = context.Pipe()
        context.Process(target=serve, args=(other, cores), daemon=True).start()

    def ask(self, *request: Any) -> Any:
        self._pipe.send(request)
        return self._pipe.recv()


def _serve(pipe: Any, functions: dict[str, Callable[..., Any]]) -> None:
    while True:
        name, *arguments = pipe.recv()
        pipe.send(functions[name](*arguments))


def _ours(pipe: Any, cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)  # before XLA counts them
    from ivon_jax.train.generate import Options, open_model
    from ivon_jax.train.generate.engine import stream

    writer = open_model(MODEL)

    def kept(case: Case) -> int:
        options = Options(outputs=case.outputs, max_tokens=case.max_tokens)
        tokens = [np.array(prompt, np.int32) for prompt in case.prompts]
        grown = (output for part in stream(writer, tokens, options) for output in part)
        return sum(len(output.tokens) for output in grown if output.finish)

    _serve(
        pipe,
        {
            "prompts": partial(_prompts, writer.tokenizer),
            "decode": lambda case: _measure(lambda: kept(case)),
        },
    )


def _prompts(
    tokenizer: Any, task: TaskName, count: int, data_dir: Path | None
) -> list[list[int]]:
    """Returns the tokens of a task's first questions, asked in a chat."""
    from ivon_jax.train.data.examples import load_examples
    from ivon_jax.train.data.exchanges import Message
    from ivon_jax.train.generate.prompts import encode_prompts
    from ivon_jax.train.tasks.registry import get_task

    examples = load_examples(get_task(task), "eval", data_dir=data_dir)[:count]
    chats = [[Message("user", str(example.prompt))] for example in examples]
    return [tokens.tolist() for tokens in encode_prompts(tokenizer, chats)]


def _theirs(pipe: Any, cores: set[int]) -> None:
    os.sched_setaffinity(0, cores)
    import torch
    from transformers import AutoModelForCausalLM

    from ivon_jax.models.cache import fetch

    torch.set_num_threads(len(cores))
    path = fetch(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    model = model.eval()
    _serve(
        pipe, {"decode": lambda *how: _measure(lambda: _torch_kept(torch, model, *how))}
    )


def _torch_kept(torch: Any, model: Any, case: Case, together: int, rows: int) -> int:
    """Samples with transformers; returns the number of tokens it keeps.

    Args:
        torch: the library.
        model: the model.
        case: what to make; prompts of a batch are padded on the left.
        together: number of prompts at a time.
        rows: number of outputs of a prompt at a time.
    """
    end = model.config.eos_token_id
    kept = 0
    for start in range(0, len(case.prompts), together):
        part = case.prompts[start : start + together]
        width = max(map(len, part))
        ids = torch.tensor([[end] * (width - len(x)) + list(x) for x in part])
        mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in part])
        for first in range(0, case.outputs, rows):
            with torch.no_grad():
                out = model.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    num_return_sequences=min(rows, case.outputs - first),
                    max_new_tokens=case.max_tokens,
                    pad_token_id=end,
                    eos_token_id=end,
                )
            new = out[:, width:].numpy() == end
            ends = np.where(new.any(1), new.argmax(1) + 1, new.shape[1])
            kept += int(ends.sum())
    return kept


def _measure(run: Callable[[], int]) -> dict[str, float]:
    """Times a function that returns how many tokens it has kept."""
    start, cpu = time.perf_counter(), time.process_time()
    kept = run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "kept": kept,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "kept_per_second": kept / seconds,
        "kept_per_cpu_second": kept / cpu,
    }


if __name__ == "__main__":
    tyro.cli(main)
