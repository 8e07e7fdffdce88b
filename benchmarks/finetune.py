"""LoRA training speed against PEFT on torch: same model, prompts, batches, optimizer.

    python -m benchmarks.finetune --data-dir DATA --out runs/benchmarks/finetune.json

All train rank-8 adapters on q_proj and v_proj in float32 with dropout 0.1, and compute
the output layer at the last positions only. PEFT pads each batch to its longest prompt;
`peft_prefix` computes what all prompts begin with once, `peft_compiled` is by
torch.compile. Ours puts the prompts one after another, with the prefix once;
`ours_padded` has a row for each, `ours_none` keeps all activations, `ours_names` fewer,
and `ours_no_dropout` is the bound of what cheaper masks can gain. Each has a process,
and they take the same batches in turn, after one of each shape. `others_cores` says how
many cores other programs used meanwhile: with more than a few hundredths of one the
ratios are not those of an idle machine.

With `--run-steps` whole runs are timed too, from the command to the posterior: ours
without any compiled program, then again with those of the first, and PEFT's loading and
steps.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks.contest import Entry, Process, compared, race
from benchmarks.our_side import layout_of
from benchmarks.prompts import Prompts, find
from benchmarks.timing import machine, write
from ivon_jax.train.data.layout import padded_lengths

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("benchmarks.our_side", {}),
    "ours_ivon": ("benchmarks.our_side", {"method": "ivon-lora"}),
    "ours_padded": ("benchmarks.our_side", {"padded": True}),
    "ours_none": ("benchmarks.our_side", {"remat": "none"}),
    "ours_names": ("benchmarks.our_side", {"remat": "names"}),
    "ours_no_dropout": ("benchmarks.our_side", {"dropout": 0.0}),
    "peft": ("benchmarks.peft_side", {}),
    "peft_prefix": ("benchmarks.peft_side", {"prefix": True}),
    "peft_compiled": ("benchmarks.peft_side", {"compiled": True}),
}


def main(
    out: Path = Path("runs/benchmarks/finetune.json"),
    data_dir: Path | None = None,
    task: str = "arc_easy",
    steps: int = 30,
    batch_size: int = 8,
    contestants: tuple[str, ...] = tuple(CONTESTANTS),
    run_steps: int = 0,
) -> None:
    """Measures and writes the results.

    Args:
        out: output file.
        data_dir: the task's files; default: IVON_JAX_DATA.
        task: any task of the command line; "instruction", 200 common tokens before 20
            to 40 own ones; or full batches of random prompts, as 4x256.
        steps: measured batches, at least 2.
        batch_size: prompts per batch.
        contestants: those that race; peft must be among them.
        run_steps: steps of whole runs; 0 for none.
    """
    before = machine()
    prompts = find(task, data_dir, batch_size, max(steps, run_steps))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.json"
        prompts.write(path)
        entries = {
            name: Entry(module, "training", {"path": str(path), **arguments})
            for name, (module, arguments) in CONTESTANTS.items()
            if name in contestants
        }
        results = race(entries, steps)
        found = compared(results, "peft")
        for name, raced in results.items():
            found[name]["mean_loss"] = float(np.mean(raced.column("loss")))
            if "tokens" in raced.pieces[0]:
                found[name]["tokens"] = float(np.mean(raced.column("tokens")))
        runs = {}
        if run_steps and task == prompts.task:
            runs = whole_runs(entries["peft"], task, data_dir, batch_size, run_steps)
    write(
        out,
        {
            "machine": before,
            "task": task,
            "batch_size": len(prompts.batches[0]),
            "steps": steps,
            "prefix": prompts.prefix,
            "shapes": shapes(prompts),
            "results": found,
            "run_steps": run_steps,
            "runs": runs,
        },
    )


def shapes(prompts: Prompts) -> dict[str, int]:
    """Returns for how many shapes a step may be compiled."""
    lengths = np.array([len(ids) for ids in prompts.tokens])
    return {
        "ours_at_most": len(layout_of(prompts, padded=False).shapes),
        "padded_lengths": len(padded_lengths(lengths)),
    }


def whole_runs(
    peft: Entry, task: str, data_dir: Path | None, batch_size: int, steps: int
) -> dict[str, dict[str, float]]:
    """Times whole runs, one after another.

    Args:
        peft: PEFT's contestant.
        task: the task.
        data_dir: its files.
        batch_size: prompts per batch.
        steps: steps of each run.

    Returns:
        Seconds of the clock, and of the processor where it is ours.
    """
    words = ["train", "--task", task, "--method", "adam", "--learning-rate", 1e-4]
    words += ["--batch-size", batch_size, "--steps", steps, "--eval-examples", 8]
    words += [] if data_dir is None else ["--data-dir", data_dir]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("ours_cold", "ours_warm"):
            found[name] = command([*words, "--out", place / name], place / "compiled")
    start = time.perf_counter()
    process = Process("benchmarks.contest", peft.text())
    try:
        process.read()
        for index in range(steps):
            process.ask(str(index))
    finally:
        process.kill()
    found["peft"] = {"seconds": time.perf_counter() - start}
    return found


def command(words: Sequence[Any], compiled: Path) -> dict[str, float]:
    """Times a command of ours, given the folder of compiled programs."""
    code = "from ivon_jax.train.entry import main; main()"
    start, before = time.perf_counter(), os.times()
    subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(compiled)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after = os.times()
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {"seconds": time.perf_counter() - start, "cpu_s": cpu}


if __name__ == "__main__":
    tyro.cli(main)
