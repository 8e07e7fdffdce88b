"""Figures of votes: by number of outputs and models, and how far to trust them."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ivon_jax.mbr.confidence import confidence_bin, risk_coverage
from ivon_jax.train.predictors.base import Row
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.report.figures import PANELS, colors_of, new_figure, save
from ivon_jax.train.report.tables import has_spread, label, name_of

BINS = 10


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Draws the figures of votes.

    Args:
        folder: the folder of the figures.
        rows: rows of results; those without votes are left out.

    Returns:
        The figures: ``accuracy_by_outputs.png``, ``vote_reliability.png`` and, if there
        are several models, ``models_by_outputs.png``; none if no row has votes.
    """
    voted = [row for row in rows if "curve" in row]
    if not voted:
        return []
    found: dict[str, Callable[[Any, Sequence[Row]], None]] = {
        "accuracy_by_outputs": _by_outputs,
        "vote_reliability": _reliability,
    }
    if any(row["grid"] for row in voted):
        found["models_by_outputs"] = _by_models
    paths = []
    for name, panels in found.items():
        # Each adds the panels it needs, side by side.
        figure = new_figure(1, 1)
        panels(figure, voted)
        paths.append(folder / f"{name}.png")
        save(figure, paths[-1])
    return paths


def plain(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows at temperature 1 without pruning, if there are any; else all.

    Of rows that differ in the number of samples only, the one of most is taken.
    """
    found: dict[Any, Row] = {}
    chosen = [row for row in rows if (row["tau"], row["prune"]) == (1, 0)]
    for row in chosen or rows:
        settings = [row.get(name) for name in ("predict", "point", "tau", "prune")]
        kind = (name_of(row), *settings)
        if kind not in found or row["outputs"] > found[kind]["outputs"]:
            found[kind] = row
    return list(found.values())


def _by_outputs(figure: Any, rows: Sequence[Row]) -> None:
    """Draws maj@n of each row, the same with pruning, and pass@n."""
    unpruned = plain(rows)
    panels = {"vote (maj@n)": (unpruned, "vote")}
    if pruned := [row for row in rows if row["prune"] and row["tau"] == 1]:
        names = {name_of(row) for row in pruned}
        beside = [row for row in unpruned if name_of(row) in names]
        beside = [row for row in beside if row not in pruned]
        panels["vote, with and without pruning"] = ([*beside, *pruned], "vote")
    panels["any output right (pass@n)"] = (unpruned, "pass")
    every = _across(figure, len(panels), sharey=True)
    for axes, (title, (drawn, what)) in zip(every, panels.items(), strict=True):
        for row, style in zip(drawn, _styles(drawn), strict=True):
            numbers = np.array(row["curve"]["outputs"])
            mean = 100 * np.array(row["curve"][what])
            error = 100 * np.array(row["curve"][f"{what}_error"])
            axes.plot(numbers, mean, label=label(row), **style)
            axes.fill_between(
                numbers, mean - error, mean + error, color=style["color"], alpha=0.12
            )
            if what == "vote":
                level = 100 * row["greedy_accuracy"]
                look = {"color": style["color"], "linestyle": ":", "linewidth": 1}
                axes.axhline(level, **look)
        axes.set_title(title, fontsize=10)
        counts = sorted({n for row in drawn for n in row["curve"]["outputs"]})
        _log2(axes, counts, "outputs of a question, n")
        axes.legend(fontsize=8)
    every[0].set_ylabel("accuracy % (dotted: greedy; bands: standard error)")


def _by_models(figure: Any, rows: Sequence[Row]) -> None:
    """Draws maj@n against the number of models, a line for each n."""
    import matplotlib

    drawn = [row for row in plain(rows) if row["grid"]][:PANELS]
    every = _across(figure, len(drawn), sharey=True)
    for axes, row in zip(every, drawn, strict=True):
        points: dict[int, list[dict[str, float]]] = {}
        for point in row["grid"]:
            total = int(point["models"] * point["outputs"])
            points.setdefault(total, []).append(point)
        lines = {n: own for n, own in sorted(points.items()) if len(own) > 1}
        shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(lines)))
        for shade, (total, own) in zip(shades, lines.items(), strict=True):
            own = sorted(own, key=lambda point: point["models"])
            mean = [100 * point["vote"] for point in own]
            error = [100 * point["vote_error"] for point in own]
            counts = [point["models"] for point in own]
            axes.errorbar(
                counts, mean, error, label=f"n = {total}", color=shade, marker="o"
            )
        axes.set_title(textwrap.fill(label(row), 40), fontsize=10)
        _log2(
            axes,
            sorted({point["models"] for point in row["grid"]}),
            "models (outputs of each: n / models)",
        )
        axes.legend(fontsize=8)
    every[0].set_ylabel("accuracy of the vote %")


def _reliability(figure: Any, rows: Sequence[Row]) -> None:
    """Draws accuracy against the vote's share, and risk against coverage."""
    drawn = plain(rows)
    shown = drawn[: PANELS - 1]
    *every, last = _across(figure, len(shown) + 1)
    edges = np.linspace(0, 1, BINS + 1)
    for axes, row in zip(every, shown, strict=True):
        accuracy, questions = binned(row["vote_share"], row["vote_right"])
        style = {"width": 1 / BINS, "align": "edge"}
        axes.bar(edges[:-1], accuracy, color="tab:blue", alpha=0.7, **style)
        axes.bar(edges[:-1], questions, color="tab:gray", alpha=0.5, **style)
        axes.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1)
        auroc = f", AUROC {row['vote_auroc']:.2f}" if "vote_auroc" in row else ""
        scores = f"ECE {100 * row['vote_ece']:.1f} %{auroc}"
        name = textwrap.fill(label(row), 36)
        axes.set_title(f"{name}\n{row['outputs']} outputs, {scores}", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="share of the vote")
    every[0].set_ylabel("accuracy (blue), share of questions (gray)")
    for row, style in zip(drawn, _styles(drawn), strict=True):
        risk = risk_coverage(np.array(row["vote_share"]), np.array(row["vote_right"]))
        coverage = np.arange(1, len(risk) + 1) / len(risk)
        style = style | {"marker": ""}
        last.plot(100 * coverage, 100 * risk, label=label(row), **style)
    last.set(xlabel="questions answered, most confident first, %", ylabel="wrong %")
    last.set_ylim(bottom=0)
    last.set_title("risk and coverage", fontsize=9)
    last.legend(fontsize=8)


def binned(
    share: Sequence[float], right: Sequence[bool]
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    """Returns the accuracy of votes in the bins of their shares, and the bins' sizes.

    Args:
        share: share of each vote.
        right: whether it is right.

    Returns:
        The accuracy, 0 where there are no votes; and the share of all votes.
    """
    index = confidence_bin(np.array(share), BINS)
    count = np.bincount(index, minlength=BINS)
    hits = np.bincount(index, weights=np.array(right, float), minlength=BINS)
    return hits / np.maximum(count, 1), count / len(index)


def _styles(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns each row's color, by its run, and line, by mean, pruning and samples."""
    names = list(dict.fromkeys(map(name_of, rows)))
    colors = dict(zip(names, colors_of(names), strict=True))
    found = []
    for row in rows:
        mean = row["predict"] == Mean.kind and has_spread(row)
        marker = "x" if row["prune"] else "s" if mean else "o"
        dashes = "-." if row["prune"] else "--" if mean else "-"
        line = {"linestyle": dashes, "marker": marker}
        found.append({"color": colors[name_of(row)], "markersize": 4, **line})
    return found


def _across(figure: Any, count: int, **options: Any) -> list[Any]:
    """Makes panels side by side."""
    figure.set_size_inches(4.8 * count, 4.4)
    return list(figure.subplots(1, count, squeeze=False, **options)[0])


def _log2(axes: Any, counts: Sequence[int], title: str) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlabel(title)
