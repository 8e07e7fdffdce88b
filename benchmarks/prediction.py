"""Prediction by several adapters against PEFT on torch: same model and prompts.

    python -m benchmarks.prediction --data-dir DATA

A round is one average over samples for all examples. Ours draws the samples from a
posterior and evaluates them a batch at a time, prompts in a row one after another and
what all begin with once. PEFT passes once with each of as many adapters: beside the
weights (`peft`), merged into them first (`peft_merged`), or with the common prefix
computed once a batch (`peft_prefix`). All sort the prompts by length. Each has a
process, and they take rounds in turn, after one that compiles.
"""

import tempfile
from pathlib import Path
from typing import Any

import tyro

from benchmarks.contest import Entry, compared, race
from benchmarks.prompts import find
from benchmarks.timing import machine, write

CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("benchmarks.our_side", {}),
    "peft": ("benchmarks.peft_side", {}),
    "peft_merged": ("benchmarks.peft_side", {"merged": True}),
    "peft_prefix": ("benchmarks.peft_side", {"prefix": True}),
}


def main(
    out: Path = Path("runs/benchmarks/prediction.json"),
    data_dir: Path | None = None,
    task: str = "arc_easy",
    examples: int = 400,
    samples: int = 10,
    batch_size: int = 32,
    rounds: int = 3,
) -> None:
    """Measures and writes the results.

    Args:
        out: output file.
        data_dir: the task's files; default: IVON_JAX_DATA.
        task: any task of the command line; see also `benchmarks.finetune`.
        examples: test examples of a task.
        samples: samples or adapters.
        batch_size: prompts at a time.
        rounds: measured rounds, at least 2.
    """
    before = machine()
    prompts = find(task, data_dir, batch_size, 1, examples)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.json"
        prompts.write(path)
        own = {"path": str(path), "samples": samples, "batch_size": batch_size}
        entries = {
            name: Entry(module, "prediction", own | arguments)
            for name, (module, arguments) in CONTESTANTS.items()
        }
        results = race(entries, rounds)
    write(
        out,
        {
            "machine": before,
            "task": task,
            "examples": len(prompts.tokens),
            "samples": samples,
            "batch_size": batch_size,
            "rounds": rounds,
            "results": compared(results, "peft"),
        },
    )


if __name__ == "__main__":
    tyro.cli(main)
