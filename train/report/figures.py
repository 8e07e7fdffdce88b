"""Figures of results."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ivon_jax import metrics
from ivon_jax.files import write_bytes
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.report.tables import Row, has_spread


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
        axes.plot(steps, loss, color=METHODS[method].color, alpha=0.15, linewidth=0.8)
        axes.plot(
            steps[window - 1 :], smooth, color=METHODS[method].color, label=method
        )
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
    """Draws accuracy against confidence, and the share of predictions in each bin."""
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
    methods = list(dict.fromkeys(row["method"] for row in rows))
    swept = [name for name in methods if has_spread(name)]
    front: list[Row] = []
    for method in swept:
        curves = _curves([row for row in rows if row["method"] == method])
        # Labels above and below: the two curves share the point of tau 1 unpruned.
        looks = zip(curves.items(), "os", (4, -12), strict=True)
        for (name, curve), marker, height in looks:
            label = f"over {name}" if len(swept) == 1 else f"{method} over {name}"
            axes.plot(*_points(curve), marker=marker, linestyle="--", label=label)
            for row in curve:
                value = "∞" if row["predict"] == Mean.kind else f"{row[name]:g}"
                where = (100 * row["ece"], 100 * row["accuracy"])
                offset = {"textcoords": "offset points", "xytext": (5, height)}
                axes.annotate(value, where, **offset)
        front += [row for curve in curves.values() for row in curve]
    axes.plot(*_points(pareto_front(front)), color="red", lw=1, label="Pareto front")
    for method in methods:
        if method not in swept:
            points = _points([row for row in rows if row["method"] == method])
            style = {"color": METHODS[method].color, "markeredgecolor": "black"}
            axes.plot(*points, "*", label=method, markersize=14, **style)
    axes.set(xlabel="ECE % (lower is better)", ylabel="accuracy % (higher is better)")
    axes.legend()
    _save(figure, path)


def _curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Returns a method's rows on the curve over tau, and on that over pruning."""
    sampled = [row for row in rows if row["predict"] == Samples.kind]
    # A curve has one ensemble size: that of the sweep, which comes last.
    sampled = [row for row in sampled if row["samples"] == sampled[-1]["samples"]]
    # The mean is the end of the temperature curve.
    mean = [row for row in rows if row["predict"] == Mean.kind and not row["prune"]]
    taus = sorted((r for r in sampled if not r["prune"]), key=lambda r: r["tau"])
    prunes = sorted((r for r in sampled if r["tau"] == 1), key=lambda r: r["prune"])
    return {"tau": taus + mean, "prune": prunes}


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
