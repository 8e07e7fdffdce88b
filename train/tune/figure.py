"""The figure of a search."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivon_jax.train.report.figures import new_figure, save
from ivon_jax.train.tune.space import Range, Space
from ivon_jax.train.tune.study import Trial

ACROSS = 3


def draw(path: Path, trials: Sequence[Trial], space: Space, title: str) -> None:
    """Draws the scores of all trials, in their order and over each hyper-parameter.

    Args:
        path: the PNG file.
        trials: the trials, of which those without a finite score are left out.
        space: what was searched.
        title: name of the score.
    """
    scored = [trial for trial in trials if trial.finite]
    across = min(1 + len(space), ACROSS)
    down = -(-(1 + len(space)) // across)
    figure = new_figure(4.2 * across, 3.6 * down)
    panels = figure.subplots(down, across, sharey=True, squeeze=False)
    first, *others = panels.flat
    _points(first, scored, [trial.number for trial in scored])
    done = [trial for trial in scored if trial.state == "complete"]
    best = np.minimum.accumulate([_score(trial) for trial in done])
    first.step([t.number for t in done], best, where="post", color="tab:red")
    first.plot([], [], color="tab:red", label="best so far")
    first.set_xlabel("trial")
    first.xaxis.get_major_locator().set_params(integer=True)
    first.legend(fontsize=8)
    for axes, (name, choice) in zip(others, space.items(), strict=False):
        _over(axes, scored, name, choice)
    for axes in others[len(space) :]:
        axes.set_axis_off()
    for row in panels:
        row[0].set_ylabel(title)
    save(figure, path)


def _over(axes: Any, trials: Sequence[Trial], name: str, choice: Any) -> None:
    """Draws scores over a hyper-parameter; values that are no numbers as names."""
    values = [trial.point[name] for trial in trials]
    corners = choice.corners
    numbers = all(type(x) in (int, float) for x in corners)
    if numbers:
        _points(axes, trials, values)
        positive = all(x > 0 for x in corners)
        wide = positive and max(corners) >= 10 * min(corners)
        if choice.log if isinstance(choice, Range) else wide:
            axes.set_xscale("log")
    else:
        _points(axes, trials, [corners.index(value) for value in values])
        names = ["preset" if x is None else f"{x}" for x in corners]
        axes.set_xticks(range(len(corners)), names)
        axes.margins(x=0.2)
    axes.set_xlabel(name)


def _points(axes: Any, trials: Sequence[Trial], places: Sequence[float]) -> None:
    """Draws trials: dots, and crosses where they were stopped early."""
    for state, marker, label in (
        ("complete", "o", "scored"),
        ("pruned", "x", "pruned"),
    ):
        chosen = [i for i, trial in enumerate(trials) if trial.state == state]
        if chosen:
            x = [places[i] for i in chosen]
            y = [_score(trials[i]) for i in chosen]
            axes.plot(x, y, marker, color="tab:blue", alpha=0.7, label=label)


def _score(trial: Trial) -> float:
    assert trial.score is not None
    return trial.score
