"""Recipes of the tables and figures of the paper."""

import dataclasses
import math
import shlex
from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from ivon_jax.checks import AT_LEAST_ONE, check

Scale = Literal["paper", "small"]
Kind = Literal["table", "trade_off", "sizes", "steps", "votes"]
AVERAGE = "average"


class Published(NamedTuple):
    """A number of the paper, in the units of its table.

    Attributes:
        mean: the mean over runs.
        error: its standard error; None if the paper has none.
    """

    mean: float
    error: float | None


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ by case and seed.

    Attributes:
        name: folder of its runs; recipes that name the same group share them.
        cases: options of each case, by its name: a task, or a number of examples.
        commands: commands of a case and seed, without ``ivon-jax``; ``{case}`` stands
            for its options, ``{seed}`` for the seed and ``{out}`` for the folder. Each
            continues where it was interrupted.
    """

    name: str
    cases: Mapping[str, str]
    commands: tuple[str, ...]

    def runs(self, out: str, seeds: int) -> Iterator["Run"]:
        """Yields the runs of all seeds, those of the first one first."""
        for seed in range(seeds):
            for case, options in self.cases.items():
                folder = f"{out}/{self.name}/{case}/{seed}"
                filled = [
                    x.replace("{out}", shlex.quote(folder))
                    .replace("{seed}", str(seed))
                    .replace("{case}", options)
                    for x in self.commands
                ]
                words = tuple(tuple(shlex.split(x)) for x in filled)
                yield Run(folder, case, seed, words)


class Run(NamedTuple):
    """Commands that fill a folder.

    Attributes:
        folder: the folder.
        case: name of the case.
        seed: the seed.
        commands: words of each command, without ``ivon-jax``.
    """

    folder: str
    case: str
    seed: int
    commands: tuple[tuple[str, ...], ...]

    @property
    def line(self) -> str:
        """The commands as a line of a shell."""
        return " && ".join(shlex.join(["ivon-jax", *x]) for x in self.commands)


class Line(NamedTuple):
    """A line of a table or figure: a row of results of a group.

    Attributes:
        title: its name in the paper.
        row: its name in tables of results, as ``ivon-lora@mean``; ``*`` stands for any
            text, as the settings that a fit found.
        group: name of the group; empty for the first one.
        reference: title of the line that it is compared with; empty for the first one.
    """

    title: str
    row: str
    group: str = ""
    reference: str = ""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A table or figure.

    Attributes:
        name: its name in the command line.
        title: what it shows.
        claim: what the paper says of it.
        kind: how it is drawn and tabulated.
        groups: the runs, by scale.
        lines: its lines, the reference first.
        metrics: fields of rows of results, each with the factor to the paper's unit.
        published: the paper's numbers by metric, title of the line and case; empty of
            a figure without numbers.
        headlines: field of a case, in place of the metric, where it is not the same for
            all cases.
        averaged: of a trade-off: draw the average over cases, not each.
        along: of steps: what metrics are drawn over.
    """

    name: str
    title: str
    claim: str
    kind: Kind
    groups: Mapping[Scale, tuple[Group, ...]]
    lines: tuple[Line, ...]
    metrics: Mapping[str, float]
    published: Mapping[str, Mapping[str, Mapping[str, Published]]] = dataclasses.field(
        default_factory=dict
    )
    headlines: Mapping[str, str] = dataclasses.field(default_factory=dict)
    averaged: bool = False
    along: Literal["step", "seconds"] = "step"

    def runs(self, scale: Scale, out: str, seeds: int) -> list[Run]:
        """Returns the runs of all groups.

        Args:
            scale: which models and data.
            out: folder of all runs.
            seeds: number of seeds; they are 0, 1, ...

        Raises:
            ValueError: there are no seeds.
        """
        check("seeds", seeds, AT_LEAST_ONE)
        return [x for group in self.groups[scale] for x in group.runs(out, seeds)]

    def group_of(self, line: Line, scale: Scale) -> str:
        """Returns the name of a line's group."""
        return line.group or self.groups[scale][0].name

    def reference_of(self, line: Line) -> Line | None:
        """Returns the line that a line is compared with; None of a reference."""
        title = line.reference or self.lines[0].title
        found = next(other for other in self.lines if other.title == title)
        return None if found is line else found


def published(text: str) -> dict[str, dict[str, dict[str, Published]]]:
    """Reads numbers of the paper from a table as plain text.

    A line begins a metric and names the cases; those below have a line's title, a
    colon, and a number for each case: ``70.5_0.2`` is 70.5 with standard error 0.2.

    Args:
        text: the table.

    Raises:
        ValueError: a line has more or fewer numbers than there are cases.

    Example:
        >>> found = published('''
        ... accuracy  wg_s      average
        ... Adam:     70.5_0.2  79.5''')
        >>> found["accuracy"]["Adam"]["wg_s"]
        Published(mean=70.5, error=0.2)
    """
    found: dict[str, dict[str, dict[str, Published]]] = {}
    metric, cases = "", []
    for line in filter(None, map(str.strip, text.splitlines())):
        title, colon, numbers = line.partition(":")
        if not colon:
            metric, *cases = line.split()
            found[metric] = {}
            continue
        values = [_number(word) for word in numbers.split()]
        found[metric][title] = dict(zip(cases, values, strict=True))
    return found


def _number(word: str) -> Published:
    mean, _, error = word.partition("_")
    return Published(float(mean), float(error) if error else None)


def difference(one: Published, other: Published) -> Published:
    """Returns a published difference, as of independent runs.

    The paper does not tell the differences of single seeds.
    """
    error = None
    if one.error is not None and other.error is not None:
        error = math.hypot(one.error, other.error)
    return Published(one.mean - other.mean, error)


def average(values: Mapping[str, Published]) -> Published:
    """Returns the average over cases, as of independent runs.

    Example:
        >>> average({"a": Published(1.0, 0.3), "b": Published(2.0, 0.4)})
        Published(mean=1.5, error=0.25)
    """
    own = [value for case, value in values.items() if case != AVERAGE]
    errors = [value.error for value in own]
    error = None
    if all(x is not None for x in errors):
        error = math.hypot(*(x or 0.0 for x in errors)) / len(own)
    return Published(sum(value.mean for value in own) / len(own), error)
