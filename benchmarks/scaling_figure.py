"""The figure of benchmarks/scaling.py."""

from pathlib import Path
from typing import Any

import numpy as np

LABELS = {
    "batch": "prompts of 64 tokens",
    "length": "tokens a prompt (4 prompts)",
    "rank": "rank (4 prompts of 64 tokens)",
    "samples": "Monte-Carlo samples a step",
    "devices": "fake devices (8 prompts)",
    "ensemble": "posterior samples averaged",
    "depth": "layers (width 128, 2 prompts of 32 tokens)",
}
STYLES = {
    "adam": ("tab:orange", "ours, Adam"),
    "ivon": ("tab:blue", "ours, IVON-LoRA"),
    "peft": ("black", "PEFT on torch, Adam"),
    "vmap": ("tab:red", "ensemble, vmap"),
    "chunks of 5": ("tab:purple", "ensemble, chunks of 5"),
    "loop": ("tab:green", "ensemble, loop"),
    "scanned": ("tab:blue", "layers scanned"),
    "unrolled": ("tab:brown", "layers unrolled"),
}


def figure(results: dict[str, Any], path: Path) -> None:
    """Draws every sweep: time above, memory (or the time to the first step) below."""
    from matplotlib.figure import Figure

    picture: Any = Figure(figsize=(15, 12), layout="constrained")
    panels: Any = picture.subplots(4, 4)
    shown: dict[str, Any] = {}
    for index, sweep in enumerate(LABELS):
        row, column = 2 * (index // 4), index % 4
        top, bottom = panels[row, column], panels[row + 1, column]
        points = results[sweep]
        key, below = "memory_mb", "MB while stepping"
        if sweep == "depth":
            key, below = "first_s", "seconds to compile and step"
        for name in next(iter(points.values())):
            color, label = STYLES[name]
            low, middle, high, lower = (
                np.array([point[name][field] for point in points.values()])
                for field in ("q1_ms", "median_ms", "q3_ms", key)
            )
            style = {"color": color, "marker": "o", "markersize": 4}
            spread = [middle - low, high - middle]
            shown[label] = top.errorbar([*points], middle, spread, capsize=3, **style)
            bottom.plot([*points], lower, **style)
        for axes, name in ((top, "ms a step"), (bottom, below)):
            axes.set(xlabel=LABELS[sweep], ylabel=name, xscale="log")
            axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
            axes.minorticks_off()
            axes.set_xticks([*points], labels=[*map(str, points)])
            axes.grid(alpha=0.3)
    for axes in panels[2:, 3]:
        axes.axis("off")
    panels[2, 3].legend(shown.values(), shown.keys(), loc="center")
    picture.savefig(path, dpi=100)
