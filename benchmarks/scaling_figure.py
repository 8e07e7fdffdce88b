"""The figure and the tables of benchmarks/scaling.py."""

from pathlib import Path
from typing import Any

import numpy as np

from ivon_jax.train.report.tables import markdown

LABELS = {
    "batch": "prompts of 64 tokens",
    "length": "tokens a prompt, 4 prompts",
    "rank": "rank, 4 prompts of 64 tokens",
    "samples": "Monte-Carlo samples a step",
    "devices": "fake devices, 8 prompts of 64 tokens",
    "ensemble": "posterior samples averaged",
    "depth": "layers, width 128, 2 prompts of 32 tokens",
}
STYLES = {
    "adam": ("tab:orange", "s", "ours, Adam"),
    "ivon": ("tab:blue", "o", "ours, IVON-LoRA"),
    "peft": ("black", "^", "PEFT on torch, Adam"),
    "vmap": ("tab:red", "^", "vmap"),
    "chunks of 5": ("tab:purple", "s", "chunks of 5"),
    "loop": ("tab:green", "o", "loop"),
    "scanned": ("tab:blue", "o", "layers scanned"),
    "unrolled": ("tab:brown", "s", "layers unrolled"),
}


def figure(results: dict[str, Any], path: Path) -> None:
    """Draws every sweep: time above, memory (or the time to the first step) below.

    Args:
        results: results of benchmarks/scaling.py.
        path: file of the figure.
    """
    from matplotlib.figure import Figure

    picture: Any = Figure(figsize=(16, 13), layout="constrained")
    picture.suptitle(
        f"Medians of {results['rounds']} steps, bars from quartile to quartile;"
        f" {results['machine']['cpu']}, {results['machine']['cores']} cores"
    )
    panels: Any = picture.subplots(4, 4)
    for index, sweep in enumerate(LABELS):
        row, column = 2 * (index // 4), index % 4
        above, below = panels[row : row + 2, column]
        _panel(above, results[sweep], "median_ms")
        above.set(ylabel="a step (ms)", xlabel=LABELS[sweep], yscale="log")
        bottom, top = above.dataLim.intervaly
        above.set_ylim(bottom / 2, 3 * top)
        _round_ticks(above.yaxis)
        above.legend(fontsize="small")
        field, name = "memory_mb", "memory (MB)"
        if sweep == "depth":
            field, name = "first_s", "compiling and first step (s)"
        _panel(below, results[sweep], field)
        below.set(ylabel=name, xlabel=LABELS[sweep])
        below.set_ylim(0, 1.1 * below.dataLim.ymax)
    for axes in panels[2:, 3]:
        axes.axis("off")
    picture.savefig(path, dpi=100)


def _panel(axes: Any, points: dict[int, Any], field: str) -> None:
    sizes = [int(size) for size in points]
    for name in next(iter(points.values())):
        color, marker, label = STYLES[name]
        middle = np.array([point[name][field] for point in points.values()])
        style = {"color": color, "marker": marker, "markersize": 5, "label": label}
        spread = None
        if field == "median_ms":
            low, high = (
                np.array([point[name][q] for point in points.values()])
                for q in ("q1_ms", "q3_ms")
            )
            spread = [middle - low, high - middle]
        axes.errorbar(sizes, middle, spread, capsize=3, **style)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(sizes, labels=[*map(str, sizes)])
    axes.grid(alpha=0.3)


def _round_ticks(axis: Any) -> None:
    """Writes a logarithmic axis as 20, 50, 100 instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def tables(results: dict[str, Any]) -> str:
    """Writes every sweep as a Markdown table: a row a size, a column a contestant.

    Args:
        results: results of benchmarks/scaling.py.
    """
    return "\n\n".join(_table(sweep, results[sweep]) for sweep in LABELS)


def _table(sweep: str, points: dict[int, Any]) -> str:
    first = next(iter(points.values()))
    rows = [[LABELS[sweep], *(STYLES[name][2] for name in first)]]
    for size, point in points.items():
        cells = (
            f"{x['median_ms']:.0f} ms, "
            + (
                f"{x['first_s']:.1f} s"
                if sweep == "depth"
                else f"{x['memory_mb']:.0f} MB"
            )
            for x in point.values()
        )
        rows.append([str(size), *cells])
    return markdown(rows)
