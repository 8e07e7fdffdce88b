"""Kept tokens per second of decoding, against transformers' `generate`.

    taskset -c 0 python -m benchmarks.generation --data-dir DATA
    ivon-jax export runs/text/ivon-lora --format hf --out runs/sums-model
    taskset -c 0 python -m benchmarks.generation --model runs/sums-model --tasks sums

Both sample from the model itself (temperature 1, no filters) in float32, on the same
cores, in processes of their own that take turns. A token is kept if it is of an output,
its stop token included: what is computed for rows that have ended, or as padding, does
not count. A piece of work is all outputs of some prompts; ours does each once before
any is timed, transformers the first one. Seconds are those of the clock, and of the
processor in all threads: on a machine that is shared, pin both to one core.

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

import itertools
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.contest import Contestant, Entry, Raced, Values, race
from benchmarks.prompts import MODEL
from benchmarks.timing import machine, write

MOST = 64  # rows that transformers is given at a time, at most
TaskName = Literal["sums", "gsm8k"]


def main(
    out: Path = Path("runs/benchmarks/generation.json"),
    model: str = MODEL,
    tasks: tuple[TaskName, ...] = ("sums", "gsm8k"),
    data_dir: Path | None = None,
    prompts: int = 8,
    outputs: tuple[int, ...] = (8, 64, 512),
    max_tokens: int = 128,
    rows: tuple[int, ...] = (32, 64),
) -> None:
    """Measures, prints a table, and writes the results.

    Args:
        out: output file.
        model: a known model, or a folder in the hub's layout. One that was trained on
            the task ends its answers by itself.
        tasks: whose first evaluation questions are asked.
        data_dir: folder with the rows of gsm8k.
        prompts: number of prompts of each task.
        outputs: numbers of outputs of each prompt.
        max_tokens: limit of an output's tokens.
        rows: outputs that transformers makes at a time, of several prompts or of a
            part of one, besides all of one prompt; the best is compared with.
    """
    about = {"machine": machine(), "model": model, "prompts": prompts}
    about["max_tokens"] = max_tokens
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for task in tasks:
            path = Path(folder) / f"{task}.json"
            path.write_text(json.dumps(questions(model, task, prompts, data_dir)))
            for count in outputs:
                asked = {"model": model, "path": str(path), "outputs": count}
                asked["max_tokens"] = max_tokens
                results = contest(asked, prompts, rows)
                found.append({"task": task, "outputs": count} | summary(results))
                write(out, about | {"rows": found})
    print(table(found))


def questions(
    model: str, task: TaskName, count: int, data_dir: Path | None
) -> list[list[int]]:
    """Returns the tokens of a task's first questions."""
    from ivon_jax.train.data.examples import load_examples
    from ivon_jax.train.generate import open_model
    from ivon_jax.train.generate.prompts import encode_prompts
    from ivon_jax.train.tasks.registry import get_task

    examples = load_examples(get_task(task), "eval", data_dir=data_dir)[:count]
    texts = [str(example.prompt) for example in examples]
    return [x.tolist() for x in encode_prompts(open_model(model).tokenizer, texts)]


def contest(
    asked: Mapping[str, Any], prompts: int, rows: Sequence[int]
) -> dict[str, Raced]:
    """Lets both make the outputs of all prompts.

    A piece of work has as many prompts as the largest of `rows` has room for.

    Args:
        asked: arguments of both.
        prompts: number of prompts.
        rows: see `main`.
    """
    outputs = asked["outputs"]
    most = min(prompts, max(1, max(rows) // outputs))
    ways = {"prompt by prompt": (1, min(outputs, MOST))}
    for size in rows:
        together = min(most, size // outputs)
        if together > 1:
            ways[f"{together} prompts at a time"] = (together, outputs)
        elif size < min(outputs, MOST):
            ways[f"{size} outputs at a time"] = (1, size)
    asked = {**asked, "piece": most}
    entries = {"ours": Entry("benchmarks.generation", "ours", asked)}
    for name, (together, at_once) in ways.items():
        how = {**asked, "together": together, "rows": at_once}
        entries[name] = Entry("benchmarks.generation", "theirs", how)
    return race(entries, -(-prompts // most))


def summary(results: dict[str, Raced]) -> dict[str, Any]:
    """Returns kept tokens per second of each, and ratios: ours by the best other's."""
    speeds = {
        name: {
            f"kept_per_{unit}": sum(raced.column("kept")) / sum(raced.column(unit))
            for unit in ("seconds", "cpu_s")
        }
        | {"kept": sum(raced.column("kept"))}
        | {"others_cores": max(raced.column("others_cores"))}
        for name, raced in results.items()
    }
    others = [row for name, row in speeds.items() if name != "ours"]
    ratios = {
        unit: speeds["ours"][unit] / max(row[unit] for row in others)
        for unit in ("kept_per_seconds", "kept_per_cpu_s")
    }
    return {"contestants": speeds, "ratios": ratios}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns kept tokens per second as a Markdown table."""
    lines = [
        "| prompts | outputs | ours | transformers | at its best | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        speeds = {k: v["kept_per_seconds"] for k, v in row["contestants"].items()}
        ours = speeds.pop("ours")
        name = max(speeds, key=lambda name: speeds[name])
        values = f"{ours:.0f} | {speeds['prompt by prompt']:.0f} | {speeds[name]:.0f}"
        ratio = row["ratios"]["kept_per_seconds"]
        lines.append(
            f"| {row['task']} | {row['outputs']} | {values} ({name}) | {ratio:.1f} |"
        )
    return "\n".join(lines)


def ours(
    model: str, path: str, outputs: int, max_tokens: int, piece: int
) -> Contestant:
    """Samples with this library.

    Args:
        model: the model.
        path: file of `questions`.
        outputs: number of outputs of each prompt.
        max_tokens: limit of an output's tokens.
        piece: prompts of a piece of work.
    """
    from ivon_jax.train.generate import Options, open_model
    from ivon_jax.train.generate.engine import stream
    from ivon_jax.train.pod.host_memory import keep_freed_memory

    keep_freed_memory()  # as the command line does
    pieces = _pieces(path, piece)
    writer = open_model(model)
    options = Options(outputs=outputs, max_tokens=max_tokens)

    def work(index: int) -> Values:
        tokens = [np.array(prompt, np.int32) for prompt in pieces[index]]
        grown = itertools.chain.from_iterable(stream(writer, tokens, options))
        return {"kept": sum(len(x.tokens) for x in grown if x.finish)}

    return Contestant(work, tuple(range(1, len(pieces))))


def theirs(
    model: str,
    path: str,
    outputs: int,
    max_tokens: int,
    piece: int,
    together: int,
    rows: int,
) -> Contestant:
    """Samples with transformers.

    Args:
        model: the model.
        path: file of `questions`.
        outputs: number of outputs of each prompt.
        max_tokens: limit of an output's tokens.
        piece: prompts of a piece of work.
        together: number of prompts at a time, padded on the left.
        rows: number of outputs of a prompt at a time.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from ivon_jax.models.cache import fetch

    pieces, place = _pieces(path, piece), Path(model)
    file = {} if place.is_dir() else {"gguf_file": fetch(model).name}
    network: Any = AutoModelForCausalLM.from_pretrained(
        place if place.is_dir() else fetch(model).parent, dtype=torch.float32, **file
    )
    end = network.eval().config.eos_token_id

    def kept(part: Sequence[Sequence[int]], count: int) -> int:
        width = max(map(len, part))
        ids = torch.tensor([[end] * (width - len(x)) + list(x) for x in part])
        mask = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in part])
        with torch.no_grad():
            out = network.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=count,
                max_new_tokens=max_tokens,
                pad_token_id=end,
                eos_token_id=end,
            )
        new = out[:, width:].numpy() == end
        return int(np.where(new.any(1), new.argmax(1) + 1, new.shape[1]).sum())

    def work(index: int) -> Values:
        asked = pieces[index]
        found = 0
        for start in range(0, len(asked), together):
            for first in range(0, outputs, rows):
                part = asked[start : start + together]
                found += kept(part, min(rows, outputs - first))
        return {"kept": found}

    return Contestant(work)


def _pieces(path: str, size: int) -> list[list[list[int]]]:
    """Reads the file of `questions`; returns the prompts of each piece of work."""
    prompts = json.loads(Path(path).read_text())
    return [prompts[i : i + size] for i in range(0, len(prompts), size)]


if __name__ == "__main__":
    tyro.cli(main)
