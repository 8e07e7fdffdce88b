"""The numbers of finished runs, by line, case and seed."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from ivon_jax.errors import prefixed
from ivon_jax.train.predictors.base import Row
from ivon_jax.train.report.logs import read_log
from ivon_jax.train.report.tables import label, standard_error
from ivon_jax.train.reproduce.recipe import AVERAGE, Line, Recipe, Run, Scale
from ivon_jax.train.runs import status
from ivon_jax.train.runs.evaluations import latest_evaluations

RESULTS = "results.json"
# By title of the line, case and seed.
Found = dict[str, dict[str, dict[int, Row]]]


class Difference(NamedTuple):
    """The mean of paired differences over seeds.

    Attributes:
        mean: the mean.
        low: lower end of its 95 % interval by Student's t; None of one seed.
        high: upper end.
        seeds: number of seeds.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Difference":
        """Computes mean and interval.

        Example:
            >>> found = Difference.of([1.0, 2.0, 3.0])
            >>> f"{found.mean:.1f} [{found.low:.2f}, {found.high:.2f}]"
            '2.0 [-0.48, 4.48]'
        """
        mean, count = float(np.mean(values)), len(values)
        if count < 2:
            return cls(mean, None, None, count)
        error = standard_error(np.array(values))
        reach = float(stdtrit(count - 1, 0.975)) * error
        return cls(mean, mean - reach, mean + reach, count)

    def text(self, digits: int) -> str:
        """Writes the mean, and the interval if there is one.

        Example:
            >>> Difference(1.0, 0.5, 1.5, 5).text(1)
            '+1.0 [+0.5, +1.5]'
        """
        text = f"{self.mean:+.{digits}f}"
        if self.low is None or self.high is None:
            return text
        return f"{text} [{self.low:+.{digits}f}, {self.high:+.{digits}f}]"


def finished(run: Run) -> bool:
    """Returns whether all commands of a run were completed."""
    return all(map(_finished, run.commands))


def _finished(words: Sequence[str]) -> bool:
    """Returns whether a command was completed, by the files that it writes last."""
    command, *options = words
    named = dict(itertools.pairwise(options))
    if command == "evaluate":
        # Of other settings there may be one too; to repeat it costs an evaluation.
        prune = f"-prune{named['--prune']}*" if "--prune" in named else ""
        return any(Path(options[0]).glob(f"evaluation-*{prune}.json"))
    out = Path(named["--out"])
    if command == "tune":
        return (out / f"best-{named['--method']}.json").exists()
    if command == "compare":
        return (out / RESULTS).exists()
    found = status.read(out) if out.is_dir() else None
    return found is not None and found.state in ("trained", "evaluated")


def rows_of(folder: Path) -> list[Row]:
    """Reads the rows of a comparison, then those of evaluations of its runs.

    Evaluations of earlier steps and of best states are left out.

    Args:
        folder: folder of a comparison, or of single runs.

    Raises:
        ValueError: a file is damaged.
    """
    rows: dict[str, Row] = {}
    if (path := folder / RESULTS).exists():
        wrong = (OSError, ValueError, KeyError, TypeError)
        with prefixed(f"{path}: not results", wrong):
            for row in json.loads(path.read_text())["rows"]:
                rows.setdefault(label(row), row)
    for directory in sorted(path for path in folder.iterdir() if path.is_dir()):
        for one in latest_evaluations(directory):
            if not one.values.get("best"):  # whose rows have the same labels
                for name, row in one.rows_by(label).items():
                    rows.setdefault(name, row)
    return list(rows.values())


def collate(recipe: Recipe, scale: Scale, out: Path, seeds: int) -> Found:
    """Reads the rows of a recipe's lines from the runs that are finished.

    Args:
        recipe: the recipe.
        scale: its scale.
        out: folder of all runs.
        seeds: number of seeds.

    Raises:
        ValueError: a file is damaged.
    """
    found: Found = {line.title: {} for line in recipe.lines}
    for run in recipe.runs(scale, str(out), seeds):
        if not finished(run):
            continue
        group = Path(run.folder).relative_to(out).parts[0]
        lines = [x for x in recipe.lines if recipe.group_of(x, scale) == group]
        for title, row in _lines(recipe, lines, Path(run.folder)):
            found.setdefault(title, {}).setdefault(run.case, {})[run.seed] = row
    return found


def _lines(
    recipe: Recipe, lines: Sequence[Line], folder: Path
) -> Iterator[tuple[str, Row]]:
    """Yields the row of each line; of a trade-off, those of all points too."""
    if recipe.kind == "steps":
        yield from ((line.title, _curve(folder / line.row)) for line in lines)
        return
    rows = rows_of(folder)
    for line in lines:
        for row in rows:
            if fnmatchcase(label(row), line.row):
                yield line.title, row
                break
    if recipe.kind == "trade_off":
        yield from ((label(row), row) for row in rows)


def _curve(folder: Path) -> Row:
    """Reads the scores along a run: the last ones, and all of them."""
    scored = [x for x in read_log(folder) if "eval_nll" in x]
    if not scored:
        raise ValueError(f"{folder}: has no scores along a run; needs --eval-steps")
    names = [k for k in scored[-1] if k.startswith("eval_")]
    lists = {k.removeprefix("eval_"): [x[k] for x in scored] for k in names}
    lists |= {k: [x[k] for x in scored] for k in ("step", "seconds")}
    return {k: v[-1] for k, v in lists.items()} | {"log": lists}


def differences(
    recipe: Recipe, found: Found, line: Line, metric: str
) -> Iterator[tuple[str, Difference]]:
    """Yields a line's difference to its reference, by case and on average.

    Differences are paired: of one seed, hence of the same examples, batches and
    initial adapters. The average is over the cases that every seed has.

    Args:
        recipe: the recipe.
        found: its numbers.
        line: the line.
        metric: the metric.
    """
    reference = recipe.reference_of(line)
    if reference is None:
        return
    scale, by_case = recipe.metrics[metric], {}
    for case, own in found[line.title].items():
        other = found[reference.title].get(case, {})
        field = recipe.headlines.get(case, metric)
        values = {
            seed: scale * (own[seed][field] - other[seed][field])
            for seed in sorted(own.keys() & other.keys())
        }
        if values:
            by_case[case] = values
            yield case, Difference.of(list(values.values()))
    if len(by_case) > 1 and (averages := list(_averages(by_case))):
        yield AVERAGE, Difference.of(averages)


def _averages(by_case: Mapping[str, Mapping[int, float]]) -> Iterator[float]:
    """Yields the average over cases of each seed that all cases have."""
    for seed in sorted(set.intersection(*(set(x) for x in by_case.values()))):
        yield float(np.mean([values[seed] for values in by_case.values()]))


def to_json(recipe: Recipe, scale: Scale, found: Found) -> dict[str, Any]:
    """Returns every number of every seed, with the differences and the paper's."""
    fields = ("method", "predict", "samples", "tau", "prune", "passes", "step_seconds")
    kept = {*fields, *recipe.metrics, *recipe.headlines.values(), "log", "curve"}
    lines = {
        title: {
            case: {
                str(seed): {k: v for k, v in row.items() if k in kept}
                for seed, row in sorted(by_seed.items())
            }
            for case, by_seed in cases.items()
        }
        for title, cases in found.items()
    }
    compared = {
        metric: {
            line.title: {
                case: value._asdict()
                for case, value in differences(recipe, found, line, metric)
            }
            for line in recipe.lines
        }
        for metric in recipe.metrics
    }
    published = {
        metric: {t: {c: list(x) for c, x in cases.items()} for t, cases in own.items()}
        for metric, own in recipe.published.items()
    }
    return {
        "recipe": recipe.name,
        "scale": scale,
        "lines": lines,
        "differences": compared,
        "published": published,
    }
