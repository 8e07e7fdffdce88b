"""Figures of results."""

import io
import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ivon_jax import metrics
from ivon_jax.files import write_bytes
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.predictors.base import Row
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.report.intervals import Z, wilson
from ivon_jax.train.report.tables import label, name_of

# Axes of the trade-off: title and factor.
AXES = {"ece": ("ECE %", 100), "nll": ("NLL", 1)}
PANELS = 4  # reliability diagrams in a row
# Colors of runs that are not named by their method.
FREE = ("black", "deeppink", "teal", "goldenrod", "navy", "limegreen", "maroon")


def training_curves(path: Path, logs: dict[str, list[Row]]) -> None:
    """Draws the training loss of each method, averaged over a window of steps.

    Bands are the averages' 95 % intervals, as if steps were independent.
    """
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for method, lines in logs.items():
        steps = [line["step"] for line in lines]
        # None, the loss of a skipped step, becomes NaN: a gap.
        loss = np.array([line["loss"] for line in lines], float)
        window = max(len(loss) // 20, 1)
        windows = np.lib.stride_tricks.sliding_window_view(loss, window)
        mean, color = windows.mean(axis=1), METHODS[method].color
        error = Z * windows.std(axis=1, ddof=window > 1) / np.sqrt(window)
        band = {"color": color, "alpha": 0.2, "linewidth": 0}
        axes.fill_between(steps[window - 1 :], mean - error, mean + error, **band)
        axes.plot(steps[window - 1 :], mean, color=color, label=method)
    axes.set(xlabel="step", ylabel="training loss (at the posterior sample)")
    axes.set_ylim(bottom=0)
    axes.legend()
    save(figure, path)


def reliability(
    path: Path,
    predictions: dict[str, Float[np.ndarray, "n c"]],
    labels: Int[np.ndarray, " n"],
    bins: int = 10,
) -> None:
    """Draws accuracy against confidence, and the share of predictions in each bin.

    Bars on the accuracies are Wilson's 95 % intervals.
    """
    across = min(len(predictions), PANELS)
    down = -(-len(predictions) // across)
    figure = new_figure(4 * across, 5 * down)
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes in panels.flat[len(predictions) :]:
        axes.set_axis_off()
    edges = np.linspace(0, 1, bins + 1)
    for axes, (name, log_probs) in zip(panels.flat, predictions.items(), strict=False):
        predicted, right = jnp.asarray(log_probs), jnp.asarray(labels)
        found = metrics.reliability(predicted, right, bins)
        ece = float(metrics.ece(predicted, right, bins))
        count = np.asarray(found.count)
        style = {"width": 1 / bins, "align": "edge"}
        axes.bar(edges[:-1], found.accuracy, color="tab:blue", alpha=0.7, **style)
        axes.errorbar(**_accuracies(found), color="black", fmt="none", capsize=2)
        share = count / count.sum()
        axes.bar(edges[:-1], share, color="tab:gray", alpha=0.5, **style)
        axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
        title = f"{textwrap.fill(name, 40)}\nECE {100 * ece:.1f} %"
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("confidence")
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    for axes in panels[:, 0]:
        axes.set_ylabel("accuracy (blue), share of predictions (gray)")
    save(figure, path)


def _accuracies(found: metrics.Reliability) -> dict[str, Any]:
    """Returns the bins' centres, accuracies, and their distances to the intervals."""
    count, accuracy = np.asarray(found.count), np.asarray(found.accuracy, np.float64)
    (filled,) = np.nonzero(count)
    right = np.rint(accuracy * count).astype(int)
    ends = [wilson(int(right[i]), int(count[i])) for i in filled]
    low, high = np.array(ends).reshape(-1, 2).T
    inside = accuracy[filled]
    distances = np.maximum([inside - low, high - inside], 0)
    return {"x": (filled + 0.5) / len(count), "y": inside, "yerr": distances}


def trade_off(path: Path, rows: Sequence[Row]) -> None:
    """Draws accuracy against ECE and NLL, with curves over tau and over pruning.

    Bars are standard errors, if the rows have them.
    """
    figure = new_figure(14, 6)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, x in zip(panels, AXES, strict=True):
        _trade_off(axes, rows, x)
    panels[0].set_ylabel("accuracy % (higher is better)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper")
    save(figure, path)


def _trade_off(axes: Any, rows: Sequence[Row], x: str) -> None:
    """Draws a panel: the curves of each run, its other rows, the Pareto front."""
    drawn: list[Row] = []
    names = list(dict.fromkeys(map(name_of, rows)))
    for name, color in zip(names, colors_of(names), strict=True):
        own = _one_ensemble([row for row in rows if name_of(row) == name])
        curves = _curves(own)
        # Labels above and below: the two curves share the point of tau 1 unpruned.
        looks = zip(curves.items(), "os", (4, -12), strict=False)
        for (setting, curve), marker, height in looks:
            points = _points(curve, x)
            style = {"color": color, "marker": marker, "linestyle": "--"}
            axes.plot(*points, label=f"{name} over {setting}", **style)
            for row, *where in zip(curve, *points, strict=True):
                value = "∞" if row["predict"] == Mean.kind else f"{row[setting]:g}"
                offset = {"textcoords": "offset points", "xytext": (5, height)}
                axes.annotate(value, where, fontsize=8, color=color, **offset)
        placed = [row for curve in curves.values() for row in curve]
        others = [row for row in own if row not in placed]
        for row, marker in zip(others, itertools.cycle("*PXDv^"), strict=False):
            style = {"color": color, "markeredgecolor": "black"}
            point = _points([row], x)
            axes.plot(*point, marker, label=label(row), markersize=12, **style)
        _bars(axes, own, x, color)
        drawn += own
    front = _points(pareto_front(drawn, x), x)
    # Rings, as a front of one point has no line.
    rings: dict[str, Any] = {"marker": "o", "markersize": 16, "fillstyle": "none"}
    axes.plot(*front, color="red", lw=1, label="Pareto front", zorder=1, **rings)
    axes.set_xlabel(f"{AXES[x][0]} (lower is better)")


def _one_ensemble(rows: Sequence[Row]) -> list[Row]:
    """Leaves samples out that are not of the sweep's number, which comes last."""
    sizes = [row["samples"] for row in rows if row["predict"] == Samples.kind]
    return [
        row
        for row in rows
        if row["predict"] != Samples.kind or row["samples"] == sizes[-1]
    ]


def _curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns a run's rows on the curve over tau, and on that over pruning, if any.

    They are of the last row's predictor: sweeps come last.
    """
    kind = rows[-1]["predict"]
    swept = [row for row in rows if row["predict"] == kind != Mean.kind]
    # The mean is the end of the temperature curve.
    mean = [row for row in rows if row["predict"] == Mean.kind and not row["prune"]]
    taus = sorted((r for r in swept if not r["prune"]), key=lambda r: r["tau"])
    prunes = sorted((r for r in swept if r["tau"] == 1), key=lambda r: r["prune"])
    curves = {"tau": taus + mean, "prune": prunes}
    return {k: v for k, v in curves.items() if swept and len({r[k] for r in v}) > 1}


def _bars(axes: Any, rows: Sequence[Row], x: str, color: Any) -> None:
    """Draws the standard errors of rows that have them."""
    rows = [row for row in rows if "errors" in row]
    across, up = _points([row["errors"] for row in rows], x)
    style = {"fmt": "none", "ecolor": color, "alpha": 0.35, "elinewidth": 1}
    axes.errorbar(*_points(rows, x), xerr=across, yerr=up, **style)


def pareto_front(rows: Sequence[Row], x: str = "ece") -> list[Row]:
    """Returns the rows that no other equals or beats in both `x` and accuracy."""
    front: list[Row] = []
    for row in sorted(rows, key=lambda row: (row[x], -row["accuracy"])):
        if not front or row["accuracy"] > front[-1]["accuracy"]:
            front.append(row)
    return front


def _points(rows: Sequence[Row], x: str) -> tuple[list[float], list[float]]:
    scale = AXES[x][1]
    return [scale * row[x] for row in rows], [100 * row["accuracy"] for row in rows]


def colors_of(names: Sequence[str]) -> list[str]:
    """Returns a color for each run: its method's own, or one that no method has.

    Args:
        names: the runs.
    """
    free = itertools.cycle(FREE)
    return [METHODS[x].color if x in METHODS else next(free) for x in names]


def new_figure(width: float, height: float) -> Any:
    """Returns an empty figure of this size in inches."""
    # Not pyplot: it keeps figures and a backend in global state.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path) -> None:
    """Writes a figure as PNG, whole or not at all."""
    image = io.BytesIO()
    figure.savefig(image, dpi=150)
    write_bytes(path, image.getvalue())
