"""Kept tokens per second of decoding, against transformers' `generate`.

    python -m benchmarks.generation

Both sample from the model itself (temperature 1, no filters) in float32 with the same
number of threads. A token is kept if it is of an output, its stop token included: what
is computed for rows that have ended, or as padding, does not count. The first call of
each shape, which compiles, is not timed. Seconds are those of the clock, and of the
processor in all threads. To be run on an idle machine: torch's threads spin while they
wait for each other, so that other programs slow it down more than XLA, by either clock.

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

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from jaxtyping import Int

from benchmarks.timing import machine, write
from ivon_jax.models.cache import fetch
from ivon_jax.train.data.exchanges import Message
from ivon_jax.train.data.task import Task
from ivon_jax.train.generate import Options, Writer, open_model
from ivon_jax.train.generate.engine import stream
from ivon_jax.train.generate.prompts import encode_prompts
from ivon_jax.train.tasks.registry import get_task

Prompts = Sequence[Int[np.ndarray, " _"]]
MODEL = "smollm2-135m-instruct"


def main(
    out: Path = Path("runs/benchmarks/generation.json"),
    prompts: int = 4,
    outputs: tuple[int, ...] = (8, 64, 512),
    max_tokens: int = 128,
    rows: tuple[int, ...] = (8, 32, 64),
    threads: int = 2,
) -> None:
    """Measures and writes the results.

    Args:
        out: output file.
        prompts: number of prompts, questions of the task `sums` asked in a chat.
        outputs: numbers of outputs of each prompt.
        max_tokens: limit of an output's tokens.
        rows: outputs that transformers makes at a time, of several prompts where one
            has fewer; the best is compared with.
        threads: threads of torch; XLA uses all cores.
    """
    writer, theirs = open_model(MODEL), torch_model(threads)
    tokens = find_prompts(writer, get_task("sums"), prompts)
    results: dict[str, Any] = {"machine": machine(), "prompts": prompts, "rows": []}
    for count in outputs:
        options = Options(outputs=count, max_tokens=max_tokens)
        decode_all(writer, tokens, options)  # compiles
        ours = measure(partial(decode_all, writer, tokens, options))
        found = {
            size: measure(partial(torch_all, theirs, tokens, options, size))
            for size in rows
        }
        best = max(found.values(), key=lambda row: row["kept_per_cpu_second"])
        ratio = {
            name: ours[name] / best[name]
            for name in ("kept_per_second", "kept_per_cpu_second")
        }
        row = {"outputs": count, "ours": ours, "transformers": found, "ratio": ratio}
        results["rows"].append(row)
        write(out, results)


def find_prompts(writer: Writer, task: Task, count: int) -> Prompts:
    """Returns the first prompts of a text task, asked in a chat."""
    assert task.rows and task.exchange
    exchanges = [task.exchange(row) for row in task.rows("eval")[:count]]
    chats = [[Message("user", str(exchange.prompt))] for exchange in exchanges]
    return encode_prompts(writer.tokenizer, chats)


def measure(run: Callable[[], int]) -> dict[str, float]:
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


def decode_all(writer: Writer, prompts: Prompts, options: Options) -> int:
    """Decodes with this library; returns the number of tokens."""
    grown = (output for part in stream(writer, prompts, options) for output in part)
    return sum(len(output.tokens) for output in grown if output.finish)


def torch_model(threads: int) -> Any:
    """Loads the same weights into transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    path = fetch(MODEL)
    return AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


def torch_all(model: Any, prompts: Prompts, options: Options, rows: int) -> int:
    """Samples with transformers; returns the number of tokens it keeps.

    Args:
        model: the model.
        prompts: tokens of the prompts; those of a batch are padded on the left.
        options: number of outputs and limit.
        rows: number of outputs at a time.
    """
    import torch

    end = model.config.eos_token_id
    kept = 0
    together = max(1, rows // options.outputs)
    for start in range(0, len(prompts), together):
        part = prompts[start : start + together]
        width = max(map(len, part))
        ids = np.zeros((len(part), width), np.int64)
        for row, tokens in zip(ids, part, strict=True):
            row[width - len(tokens) :] = tokens
        mask = np.arange(width) >= width - np.array([[len(x)] for x in part])
        left = options.outputs
        while left > 0:
            count = min(left, rows)
            left -= count
            with torch.no_grad():
                out = model.generate(
                    torch.tensor(ids),
                    attention_mask=torch.tensor(mask).long(),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    num_return_sequences=count,
                    max_new_tokens=options.max_tokens,
                    pad_token_id=end,
                    eos_token_id=end,
                )
            new = out[:, width:].numpy() == end
            ends = np.where(new.any(1), new.argmax(1) + 1, new.shape[1])
            kept += int(ends.sum())
    return kept


if __name__ == "__main__":
    tyro.cli(main)
