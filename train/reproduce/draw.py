"""The figures of recipes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivon_jax.train.predictors.base import Row
from ivon_jax.train.report import figures
from ivon_jax.train.report.tables import COLUMNS, standard_error
from ivon_jax.train.reproduce.collate import Difference, Found, differences
from ivon_jax.train.reproduce.recipe import AVERAGE, Kind, Recipe
from ivon_jax.train.reproduce.report import cases_of, published_differences


def draw(recipe: Recipe, found: Found, out: Path) -> list[str]:
    """Draws the results.

    Args:
        recipe: the recipe.
        found: its numbers.
        out: folder of the figures.

    Returns:
        Names of the files; none if there are no numbers yet.
    """
    if not any(found.values()):
        return []
    return _DRAWN[recipe.kind](recipe, found, out)


def _differences(recipe: Recipe, found: Found, out: Path) -> list[str]:
    """Draws each line's differences: by case as dots, and on average with intervals."""
    lines = [x for x in recipe.lines if recipe.reference_of(x)]
    figure = figures.new_figure(4.5 * len(recipe.metrics), 1.5 + 0.6 * len(lines))
    panels = figure.subplots(1, len(recipe.metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, recipe.metrics, strict=True):
        for height, line in enumerate(lines):
            ours = dict(differences(recipe, found, line, metric))
            paper = dict(published_differences(recipe, line, metric))
            for values, color, up in ((ours, "tab:blue", -0.12), (paper, "gray", 0.12)):
                _bar(axes, values, height + up, color)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_xlabel(f"difference in {COLUMNS[metric][0]}")
    names = [f"{x.title}\nminus {recipe.reference_of(x).title}" for x in lines]  # type: ignore[union-attr]
    panels[0].set_yticks(range(len(lines)), names, fontsize=8)
    panels[0].invert_yaxis()
    for name, color in (("here", "tab:blue"), ("the paper", "gray")):
        panels[-1].plot([], [], "o", color=color, label=name)
    panels[-1].legend(fontsize=8)
    return _saved(figure, out, recipe.name)


def _bar(
    axes: Any, values: Mapping[str, Difference], height: float, color: str
) -> None:
    cases = [value.mean for case, value in values.items() if case != AVERAGE]
    axes.plot(cases, [height] * len(cases), ".", color=color, alpha=0.5)
    # Of one case there is no average.
    last = values.get(AVERAGE) or next(iter(values.values()), None)
    if last is None:
        return
    axes.plot([last.mean], [height], "o", color=color)
    if last.low is not None:
        axes.plot([last.low, last.high], [height] * 2, color=color)


def _trade_off(recipe: Recipe, found: Found, out: Path) -> list[str]:
    """Draws a figure for each case, or one of the average."""
    cases = cases_of(recipe, found)
    titles = {line.title for line in recipe.lines}
    swept = {name: own for name, own in found.items() if name not in titles}
    if recipe.averaged:
        groups = {recipe.name: cases}
    else:
        groups = {f"{recipe.name}-{case}": [case] for case in cases}
    names = []
    for name, own in groups.items():
        rows = []
        for by_case in swept.values():
            if all(by_case.get(case) for case in own):
                # Of cases, whose numbers of seeds may differ yet.
                seeds = [list(by_case[case].values()) for case in own]
                means = {
                    k: float(np.mean([np.mean([x[k] for x in one]) for one in seeds]))
                    for k in _AXES
                }
                rows.append(seeds[0][0] | means)
        for row in rows:
            row.pop("errors", None)  # which are of one seed
        figures.trade_off(out / f"{name}.png", rows)
        names.append(f"{name}.png")
    return names


_AXES = ("accuracy", "ece", "nll")


def _sizes(recipe: Recipe, found: Found, out: Path) -> list[str]:
    """Draws a metric over the cases, which are numbers."""
    (metric,) = recipe.metrics
    figure = figures.new_figure(6, 4.5)
    axes = figure.subplots()
    for line in recipe.lines:
        by_case = sorted((int(k), v) for k, v in found[line.title].items())
        own = [[100 * row[metric] for row in v.values()] for _, v in by_case]
        axes.errorbar(
            [k for k, _ in by_case],
            [np.mean(x) for x in own],
            [standard_error(np.array(x)) for x in own],
            marker="o",
            label=line.title,
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="training examples", ylabel=COLUMNS[metric][0])
    axes.legend()
    return _saved(figure, out, recipe.name)


def _steps(recipe: Recipe, found: Found, out: Path) -> list[str]:
    """Draws metrics along runs: averages over cases, with standard errors over seeds.

    Seeds that not all cases have yet are left out.
    """
    figure = figures.new_figure(4.5 * len(recipe.metrics), 4)
    panels = figure.subplots(1, len(recipe.metrics), squeeze=False)[0]
    colors = figures.colors_of([line.row for line in recipe.lines])
    for axes, (metric, scale) in zip(panels, recipe.metrics.items(), strict=True):
        for line, color in zip(recipe.lines, colors, strict=True):
            cases = list(found[line.title].values())
            seeds = sorted(set.intersection(*map(set, cases))) if cases else []
            if not seeds:
                continue
            logs = [[case[seed]["log"] for case in cases] for seed in seeds]
            along = np.mean([[x[recipe.along] for x in own] for own in logs], (0, 1))
            values = np.array(
                [[scale * np.array(x[metric]) for x in own] for own in logs]
            )
            values = values.mean(axis=1)
            mean = values.mean(axis=0)
            axes.plot(along, mean, color=color, label=line.title)
            error = np.array([standard_error(column) for column in values.T])
            band = (mean - error, mean + error)
            axes.fill_between(along, *band, color=color, alpha=0.2, linewidth=0)
        axes.set(xlabel=recipe.along, ylabel=COLUMNS[metric][0])
    panels[0].legend()
    return _saved(figure, out, recipe.name)


def _votes(recipe: Recipe, found: Found, out: Path) -> list[str]:
    """Draws the vote's accuracy over the number of outputs."""
    figure = figures.new_figure(6, 4.5)
    axes = figure.subplots()
    for line in recipe.lines:
        rows: Sequence[Row] = [
            row for own in found[line.title].values() for row in own.values()
        ]
        if rows:
            mean = np.mean([row["curve"]["vote"] for row in rows], axis=0)
            style = "--" if "pruned" in line.title else "-"
            axes.plot(rows[0]["curve"]["outputs"], 100 * mean, style, label=line.title)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="outputs of a question, n", ylabel="vote %")
    axes.legend()
    return _saved(figure, out, recipe.name)


def _saved(figure: Any, out: Path, name: str) -> list[str]:
    figures.save(figure, out / f"{name}.png")
    return [f"{name}.png"]


_DRAWN: dict[Kind, Callable[[Recipe, Found, Path], list[str]]] = {
    "table": _differences,
    "trade_off": _trade_off,
    "sizes": _sizes,
    "steps": _steps,
    "votes": _votes,
}
