"""Tables and figures of a comparison."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ivon_jax import metrics
from ivon_jax.files import write_bytes

# Metric: title, factor, digits. A table has those that its rows have.
COLUMNS = {
    "accuracy": ("accuracy %", 100, 1),
    "matthews": ("Matthews %", 100, 1),
    "f1": ("F1 %", 100, 1),
    "ece": ("ECE (10) %", 100, 1),
    "ece15": ("ECE (15) %", 100, 1),
    "nll": ("NLL", 1, 3),
    "brier": ("Brier", 1, 3),
    "pearson": ("Pearson %", 100, 1),
    "spearman": ("Spearman %", 100, 1),
    "mse": ("MSE", 1, 3),
}
# What comparisons in one table must share.
ALIKE = ("task", "model", "train_examples", "eval_examples", "steps")
COLORS = {"adam": "tab:orange", "ivon-lora": "tab:blue"}

Row = dict[str, Any]


def label(row: Row) -> str:
    """Names a row: the method, and how it predicts."""
    if row["predict"] == "mean":
        pruned = f", prune {row['prune']:g}" if row["prune"] else ""
        point = row["method"] in ("adam", "adapter")  # which have nothing else
        return row["method"] + ("" if point else "@mean") + pruned
    return (
        f"{row['method']}, {row['samples']} samples, tau {row['tau']:g},"
        f" prune {row['prune']:g}"
    )


def table(rows: Sequence[Row]) -> str:
    """Formats rows as a Markdown table; what is between 0 and 1 in percent."""
    columns = _columns(rows)
    cells = [["", *(title for title, *_ in columns.values())]]
    for row in rows:
        values = [
            f"{scale * row[name]:.{digits}f}"
            for name, (_, scale, digits) in columns.items()
        ]
        cells.append([label(row), *values])
    return markdown(cells)


def _columns(rows: Sequence[Row]) -> dict[str, tuple[str, int, int]]:
    """The columns that all rows have."""
    return {k: v for k, v in COLUMNS.items() if all(k in row for row in rows)}


def read_comparisons(directories: Sequence[Path]) -> list[list[Row]]:
    """Reads the rows of comparisons that differ by seed.

    Args:
        directories: folders written by "ivon-jax compare".

    Returns:
        The rows of each.

    Raises:
        ValueError: there is none, or one is no comparison, or not like the first, or
            of a seed that another has too.
    """
    if not directories:
        raise ValueError("directories: name at least one comparison")
    runs: list[list[Row]] = []
    seeds: list[int] = []
    for directory in directories:
        path = directory / "results.json"
        try:
            results = json.loads(path.read_text())
            table(results["rows"])
            alike = {name: results[name] for name in ALIKE}
            seed = results["seed"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: not the results of a comparison") from None
        if not runs:
            first = alike
        for name, value in alike.items():
            if value != first[name]:
                raise ValueError(f"{path}: {name} is {value}, not {first[name]}")
        if seed in seeds:
            raise ValueError(f"{path}: seed {seed} occurs twice")
        seeds.append(seed)
        runs.append(results["rows"])
    return runs


def seeds_table(runs: Sequence[Sequence[Row]]) -> str:
    """Formats mean and standard error over runs that have the same rows.

    Args:
        runs: the rows of each run, in the same order.

    Raises:
        ValueError: the runs were not made alike.
    """
    names = [[label(row) for row in rows] for rows in runs]
    if any(name != names[0] for name in names):
        raise ValueError("runs: they predict in different ways; compare like with like")
    columns = _columns([row for rows in runs for row in rows])
    cells = [["", *(title for title, *_ in columns.values())]]
    for same in zip(*runs, strict=True):
        line = [label(same[0])]
        for name, (_, scale, digits) in columns.items():
            values = np.array([row[name] for row in same])
            mean, error = scale * values.mean(), scale * _standard_error(values)
            line.append(f"{mean:.{digits}f} ± {error:.{digits}f}")
        cells.append(line)
    return markdown(cells)


def _standard_error(values: Float[np.ndarray, " n"]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """Lays cells out as an aligned Markdown table, the first row as its head."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def training_curves(path: Path, logs: dict[str, list[Row]]) -> None:
    """Draws the training loss of each method, smoothed, over faint raw values."""
    figure = _figure(6, 4)
    axes = figure.subplots()
    for method, lines in logs.items():
        steps = [line["step"] for line in lines]
        # None, the loss of a skipped step, becomes NaN: a gap.
        loss = np.array([line["loss"] for line in lines], float)
        window = max(len(loss) // 20, 1)
        smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
        axes.plot(steps, loss, color=COLORS[method], alpha=0.15, linewidth=0.8)
        axes.plot(steps[window - 1 :], smooth, color=COLORS[method], label=method)
    axes.set(xlabel="step", ylabel="training loss (at the posterior sample)")
    axes.set_ylim(bottom=0)
    axes.legend()
    _save(figure, path)


def reliability(
    path: Path,
    predictions: dict[str, Float[np.ndarray, "n c"]],
    labels: Int[np.ndarray, " n"],
    bins: int = 10,
) -> None:
    """Draws accuracy against confidence, and how many predictions a bin holds."""
    figure = _figure(4 * len(predictions), 4.4)
    panels = figure.subplots(1, len(predictions), sharey=True, squeeze=False)[0]
    edges = np.linspace(0, 1, bins + 1)
    for axes, (name, log_probs) in zip(panels, predictions.items(), strict=True):
        predicted, right = jnp.asarray(log_probs), jnp.asarray(labels)
        found = metrics.reliability(predicted, right, bins)
        ece = float(metrics.ece(predicted, right, bins))
        count = np.asarray(found.count)
        style = {"width": 1 / bins, "align": "edge"}
        axes.bar(edges[:-1], found.accuracy, color="tab:blue", alpha=0.7, **style)
        share = count / count.sum()
        axes.bar(edges[:-1], share, color="tab:gray", alpha=0.5, **style)
        axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
        axes.set(title=f"{name}\nECE {100 * ece:.1f} %", xlabel="confidence")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    panels[0].set_ylabel("accuracy (blue), share of predictions (gray)")
    _save(figure, path)


def trade_off(path: Path, rows: Sequence[Row]) -> None:
    """Draws accuracy against ECE over tau and over pruning, with the Pareto front."""
    figure = _figure(6.5, 5)
    axes = figure.subplots()
    sampled = [row for row in rows if row["predict"] == "samples"]
    # A curve is of one ensemble size: that of the sweep, which comes last.
    sampled = [row for row in sampled if row["samples"] == sampled[-1]["samples"]]
    mean = [row for row in rows if row["predict"] == "mean"]
    # The mean is the end of the temperature curve.
    at_mean = [row for row in mean if row["method"] != "adam" and not row["prune"]]
    curves = {
        "tau": sorted((r for r in sampled if not r["prune"]), key=lambda r: r["tau"])
        + at_mean,
        "prune": sorted(
            (r for r in sampled if r["tau"] == 1), key=lambda r: r["prune"]
        ),
    }
    # Labels above and below: the two curves share the point of tau 1 unpruned.
    looks = zip(curves.items(), "os", (4, -12), strict=True)
    for (name, curve), marker, height in looks:
        axes.plot(*_points(curve), marker=marker, linestyle="--", label=f"over {name}")
        for row in curve:
            value = "∞" if row["predict"] == "mean" else f"{row[name]:g}"
            where = (100 * row["ece"], 100 * row["accuracy"])
            axes.annotate(value, where, textcoords="offset points", xytext=(5, height))
    front = pareto_front(curves["tau"] + curves["prune"])
    axes.plot(*_points(front), color="red", linewidth=1, label="Pareto front")
    adam = [row for row in mean if row["method"] == "adam"]
    axes.plot(*_points(adam), "*", color="black", markersize=14, label="Adam")
    axes.set(xlabel="ECE % (lower is better)", ylabel="accuracy % (higher is better)")
    axes.legend()
    _save(figure, path)


def pareto_front(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows that no other equals or beats in both ECE and accuracy."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["ece"], -row["accuracy"])):
        if not front or row["accuracy"] > front[-1]["accuracy"]:
            front.append(row)
    return front


def _points(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return [100 * r["ece"] for r in rows], [100 * r["accuracy"] for r in rows]


def _figure(width: float, height: float) -> Any:
    # Not pyplot: it keeps figures and a backend in global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, path: Path) -> None:
    image = io.BytesIO()
    figure.savefig(image, dpi=150)
    write_bytes(path, image.getvalue())
