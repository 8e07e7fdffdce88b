"""The Markdown of a table or figure: ours, and the paper's, with differences."""

from collections.abc import Iterator, Mapping

import numpy as np

from ivon_jax.train.report.intervals import Z
from ivon_jax.train.report.tables import COLUMNS, markdown, standard_error
from ivon_jax.train.reproduce.collate import Difference, Found, differences
from ivon_jax.train.reproduce.recipe import (
    AVERAGE,
    Line,
    Published,
    Recipe,
    Scale,
    average,
    difference,
)

NONE = ""


def report(recipe: Recipe, scale: Scale, found: Found, images: list[str]) -> str:
    """Writes the report.

    Args:
        recipe: the recipe.
        scale: its scale.
        found: its numbers.
        images: names of its figures.
    """
    runs = {
        group.name: sorted(
            {
                seed
                for line in recipe.lines
                if recipe.group_of(line, scale) == group.name
                for by_seed in found[line.title].values()
                for seed in by_seed
            }
        )
        for group in recipe.groups[scale]
    }
    seeds = ", ".join(
        f"{name}: {' '.join(map(str, own)) or 'none yet'}" for name, own in runs.items()
    )
    parts = [
        f"# {recipe.name}: {recipe.title}",
        f"The paper: {recipe.claim}.",
        f"Scale {scale}; finished seeds of each group of runs: {seeds}.",
        _DIFFERENCES,
    ]
    for metric in recipe.metrics:
        parts += [f"## {COLUMNS[metric][0]}", _means(recipe, found, metric)]
        parts += filter(None, [_differences(recipe, found, metric)])
    parts += [f"![{recipe.title}]({name})" for name in images]
    return "\n\n".join(parts) + "\n"


_DIFFERENCES = """Differences are between lines of the same seeds, with 95 % intervals:
ours by Student's t over seeds, the paper's from its standard errors, as if its runs
were independent. "sign" compares the averages if both intervals exclude 0."""


def cases_of(recipe: Recipe, found: Found) -> list[str]:
    """Returns the cases of which there is a number, ours or the paper's."""
    ours = (case for line in recipe.lines for case in found[line.title])
    paper = (
        case
        for lines in recipe.published.values()
        for cases in lines.values()
        for case in cases
    )
    return [x for x in dict.fromkeys([*paper, *ours]) if x != AVERAGE]


def _means(recipe: Recipe, found: Found, metric: str) -> str:
    """Tabulates means and standard errors over seeds, ours and the paper's.

    A line that lacks a case that another one of ours has is not averaged: its cases may
    be the easier ones.
    """
    cases, digits = cases_of(recipe, found), COLUMNS[metric][2]
    ours = {case for line in recipe.lines for case in found[line.title]}
    cells = [["", *cases, AVERAGE]]
    for line in recipe.lines:
        values = {}
        for case, by_seed in found[line.title].items():
            field = recipe.headlines.get(case, metric)
            own = [recipe.metrics[metric] * row[field] for row in by_seed.values()]
            error = standard_error(np.array(own)) if len(own) > 1 else None
            values[case] = Published(float(np.mean(own)), error)
        for source, numbers, whole in (
            ("", values, set(values) == ours),
            (", paper", recipe.published.get(metric, {}).get(line.title, {}), True),
        ):
            if numbers:
                mean = numbers.get(AVERAGE) or (average(numbers) if whole else None)
                cells.append(
                    [
                        line.title + source,
                        *(_mean(numbers.get(case), digits) for case in cases),
                        _mean(mean, digits),
                    ]
                )
    return markdown(cells)


def _mean(value: Published | None, digits: int) -> str:
    if value is None:
        return NONE
    error = "" if value.error is None else f" ± {value.error:.{digits}f}"
    return f"{value.mean:.{digits}f}{error}"


def _differences(recipe: Recipe, found: Found, metric: str) -> str:
    """Tabulates differences; empty if there are none."""
    cases, digits = cases_of(recipe, found), COLUMNS[metric][2]
    cells = [["", *cases, AVERAGE, "sign"]]
    for line in recipe.lines:
        reference = recipe.reference_of(line)
        if reference is None:
            continue
        ours = dict(differences(recipe, found, line, metric))
        if len(ours) == 1:
            ours[AVERAGE] = next(iter(ours.values()))
        paper = dict(published_differences(recipe, line, metric))
        title = f"{line.title} minus {reference.title}"
        verdict = sign(ours.get(AVERAGE), paper.get(AVERAGE))
        for source, values, last in ((", paper", paper, NONE), ("", ours, verdict)):
            if values:
                shown = (_interval(values.get(x), digits) for x in (*cases, AVERAGE))
                cells.append([title + source, *shown, last])
    return markdown(cells) if len(cells) > 1 else ""


def published_differences(
    recipe: Recipe, line: Line, metric: str
) -> Iterator[tuple[str, Difference]]:
    """Yields the paper's differences by case and on average."""
    reference = recipe.reference_of(line)
    numbers: Mapping[str, Mapping[str, Published]] = recipe.published.get(metric, {})
    if reference is None or not {line.title, reference.title} <= numbers.keys():
        return
    own, other = numbers[line.title], numbers[reference.title]
    values = {x: difference(own[x], other[x]) for x in own if x != AVERAGE}
    values[AVERAGE] = average(values)
    for case, (mean, error) in values.items():
        reach = None if error is None else Z * error
        low, high = (None, None) if reach is None else (mean - reach, mean + reach)
        yield case, Difference(mean, low, high, seeds=5)


def sign(ours: Difference | None, paper: Difference | None) -> str:
    """Compares the signs of two differences.

    Example:
        >>> sign(Difference(1.0, 0.5, 1.5, 5), Difference(2.0, 1.0, 3.0, 5))
        'same'
    """
    if ours is None or paper is None:
        return NONE
    if not (_clear(ours) and _clear(paper)):
        return "not clear"
    return "same" if ours.mean * paper.mean > 0 else "opposite"


def _clear(value: Difference) -> bool:
    """Returns whether an interval excludes 0."""
    if value.low is None or value.high is None:
        return False
    return value.low > 0 or value.high < 0


def _interval(value: Difference | None, digits: int) -> str:
    return NONE if value is None else value.text(digits)
