"""Tables of the races of `benchmarks.finetune`, from their files."""

from collections.abc import Mapping
from typing import Any

from ivon_jax.train.report.tables import markdown

Races = Mapping[str, Mapping[str, Any]]

TASKS = {
    "boolq": "BoolQ",
    "arc_easy": "ARC-Easy",
    "sst2": "SST-2",
    "city-continent": "cities",
    "instruction": "200-token instruction",
    "16x64": "16 random prompts of 64 tokens",
    "4x256": "4 random prompts of 256 tokens",
}
CONTESTANTS = {
    "ours": "ours, Adam",
    "ours_ivon": "ours, IVON-LoRA",
    "ours_none": "ours, Adam, remat none",
    "ours_padded": "ours, Adam, padded rows",
    "peft_prefix": "PEFT, prefix shared by hand",
}


def table(races: Races) -> str:
    """Returns the speed of each contestant in units of PEFT's, a row a task.

    Args:
        races: what `benchmarks.finetune` wrote, of each task.
    """
    raced = {name for race in races.values() for name in race["results"]}
    columns = {k: title for k, title in CONTESTANTS.items() if k in raced}
    rows = [["", "batches", *columns.values()]]
    for task in (x for x in TASKS if x in races):
        found = races[task]["results"]
        cells = [_cell(found[k]) if k in found else "" for k in columns]
        rows.append([TASKS[task], str(races[task]["steps"]), *cells])
    return markdown(rows)


def sentence(races: Races) -> str:
    """Returns the medians of ours with Adam, in a sentence."""
    medians = {
        title: races[task]["results"]["ours"]["speedup_over_peft"]["median"]
        for task, title in TASKS.items()
        if task in races
    }
    ranked = sorted(medians.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{title} {value:.2f}" for title, value in ranked)
    return (
        "Speed of a training step relative to PEFT on torch (two CPU cores, float32,"
        f" with dropout): {listed} ([how](docs/scaling.md))."
    )


def _cell(found: Mapping[str, Any]) -> str:
    low, middle, high = (found["speedup_over_peft"][k] for k in ("q1", "median", "q3"))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"
