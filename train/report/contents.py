"""Contents of a page about runs, as JSON: texts of tables, numbers of figures."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ivon_jax.errors import one_line
from ivon_jax.train.predictors.base import Predictor, Row
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.report import tables
from ivon_jax.train.report.evaluated import Evaluated
from ivon_jax.train.report.intervals import normal, wilson, with_resamples
from ivon_jax.train.report.logs import blocks, read_log, values_of
from ivon_jax.train.report.notable import notable
from ivon_jax.train.report.points import KINDS, points
from ivon_jax.train.report.posteriors import Entries
from ivon_jax.train.report.reliable import LEVELS
from ivon_jax.train.report.resamples import resampled
from ivon_jax.train.report.summary import describe_status
from ivon_jax.train.report.sweep import Sweep
from ivon_jax.train.report.tables import COLUMNS, Columns
from ivon_jax.train.runs import identity

NONE, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
SEED = 0  # of the resamples, the same for all pages
METRICS: Columns = {
    **tables.METRICS,
    "rmse": ("RMSE", 1, 3),
    "density_nll": ("NLL of a Gaussian", 1, 3),
    "aurc": COLUMNS["aurc"],
    "coverage5": ("coverage at 5 % errors", 100, 1),
}
Values = dict[str, Any]


class Line(NamedTuple):
    """A row of results.

    Attributes:
        run: index of its run.
        label: its label.
        row: its values; ``errors`` and ``differences`` where it has predictions.
        main: whether it stands for the run.
    """

    run: int
    label: str
    row: Row
    main: bool


def contents(runs: Sequence[Evaluated], sweep: Sweep, *, test: bool) -> Values:
    """Collects the contents of a page.

    Args:
        runs: runs with the same kind of answer.
        sweep: the settings of the sliders.
        test: see `scored_split`.

    Returns:
        JSON values.

    Raises:
        ValueError: predictions of a run are missing or damaged.
    """
    names, answer = unique_names(runs), runs[0].answer
    kind, alike = KINDS[answer], same_examples(runs)
    lines = results(runs, names, sweep, alike=alike)
    tasks = dict.fromkeys(str(run.about["task"]) for run in runs)
    shown = (*kind.headline, kind.quality, *kind.against)
    return {
        "title": f"{', '.join(tasks)}: {', '.join(names)}",
        "task": ", ".join(tasks),
        "answer": answer,
        "columns": {k: _column(k) for k in dict.fromkeys(shown)},
        "quality": kind.quality,
        "against": kind.against,
        "levels": LEVELS if answer == "class" else (0,),
        "results": _results(lines),
        "differences": _differences(lines) if alike and len(lines) > 1 else None,
        "alike": alike,
        "votes": _votes(lines),
        "foreign": _foreign(runs, names),
        "curves": _curves(runs, answer),
        "runs": [
            _run(run, name, answer, sweep, lines, index, test=test)
            for index, (run, name) in enumerate(zip(runs, names, strict=True))
        ],
        "configuration": _configuration(runs, names),
    }


def unique_names(runs: Sequence[Evaluated]) -> list[str]:
    """Returns the runs' folders by their last parts, as many as tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def same_examples(runs: Sequence[Evaluated]) -> bool:
    """Returns whether all runs were evaluated on the same examples."""
    found = {str(run.about.get("eval_fingerprint")) for run in runs}
    return len(found) == 1


def results(
    runs: Sequence[Evaluated], names: Sequence[str], sweep: Sweep, *, alike: bool
) -> list[Line]:
    """Returns the rows of results, without those of the sweep only.

    The first one stands for the first run, and differences are to it.

    Args:
        runs: the runs.
        names: their names.
        sweep: the settings of the sliders.
        alike: whether all have the same examples, which are then resampled alike.
    """
    lines: list[Line] = []
    groups = [list(range(len(runs)))] if alike else [[i] for i in range(len(runs))]
    for group in groups:
        own = [(i, one) for i in group for one in _shown(runs[i], sweep)]
        scored = [(i, one) for i, one in own if runs[i].has(one)]
        rows = _scored([(runs[i], one) for i, one in scored])
        found = dict(zip(scored, rows, strict=True))
        for i, one in own:
            row = found.get((i, one), runs[i].rows[one])
            label = tables.label(row | {"run": names[i]})
            lines.append(Line(i, label, row, one == runs[i].main))
    return lines


def _shown(run: Evaluated, sweep: Sweep) -> list[Predictor]:
    swept = set(sweep.settings(run)) - {run.main, Mean()}
    others = [one for one in run.rows if one not in swept and one != run.main]
    return [run.main, *others]


def _scored(scored: Sequence[tuple[Evaluated, Predictor]]) -> list[Row]:
    """Adds to rows of the same examples what resamples tell."""
    if not scored:
        return []
    read = [run.predictions(one) for run, one in scored]
    answer, labels = scored[0][0].answer, read[0][1]
    values, found = resampled(answer, [part for part, _ in read], labels, SEED)
    rows = [run.rows[one] | own for (run, one), own in zip(scored, values, strict=True)]
    return with_resamples([row | {"examples": len(labels)} for row in rows], found)


def _column(name: str) -> Values:
    title, scale, digits = METRICS[name]
    return {"title": title, "scale": scale, "digits": digits}


def cell(name: str, row: Row) -> Values | str:
    """Formats a metric with its 95 % interval, as far as there are any.

    Args:
        name: the metric.
        row: a row of results. Accuracy has Wilson's interval, others the normal one
            with the bootstrap's standard error.
    """
    if name not in row:
        return NONE
    _, scale, digits = METRICS[name]
    value: Values = {"value": f"{scale * row[name]:.{digits}f}"}
    if math.isfinite(row.get("errors", {}).get(name, math.nan)):
        low, high = normal(name, row[name], row["errors"][name])[1:]
        if name == "accuracy":
            count = row["examples"]
            low, high = wilson(round(row[name] * count), count)
        value["interval"] = f"{scale * low:.{digits}f} to {scale * high:.{digits}f}"
    return value


def _results(lines: Sequence[Line]) -> Values:
    names = [n for n in METRICS if any(n in line.row for line in lines)]
    return {
        "caption": "Results, with 95 % intervals over the evaluation examples",
        "head": ["", *(METRICS[name][0] for name in names)],
        "rows": [[x.label, *(cell(name, x.row) for name in names)] for x in lines],
        "runs": [line.run for line in lines],
    }


def _differences(lines: Sequence[Line]) -> Values | None:
    """Formats differences to the first row; marks intervals that exclude zero."""
    first, *others = lines
    others = [line for line in others if "differences" in line.row]
    if not others or "differences" not in first.row:
        return None
    found = first.row["differences"]
    names = [n for n in METRICS if n in found and math.isfinite(found[n][0])]

    def difference(name: str, row: Row) -> Values:
        _, scale, digits = METRICS[name]
        low, high = row["differences"][name]
        value, *ends = (
            f"{scale * x:+.{digits}f}".replace("-", MINUS)
            for x in (row[name] - first.row[name], low, high)
        )
        return {
            "value": value,
            "interval": " to ".join(ends),
            "mark": low > 0 or high < 0,
        }

    return {
        "caption": f"Differences to {first.label}, with paired 95 % intervals",
        "head": ["", *(METRICS[name][0] for name in names)],
        "rows": [[x.label, *(difference(n, x.row) for n in names)] for x in others],
        "runs": [line.run for line in others],
    }


def _votes(lines: Sequence[Line]) -> list[Values]:
    """Returns the accuracy of votes by the number of outputs, in percent."""
    return [
        {
            "run": line.run,
            "label": line.label,
            "main": line.main,
            "points": [[n, 100 * vote, 100 * error] for n, vote, error in curve],
        }
        for line in lines
        if (curve := _vote_curve(line.row))
    ]


def _vote_curve(row: Row) -> list[tuple[int, float, float]]:
    """Returns numbers of outputs with the vote's accuracy and its standard error."""
    if "curve" not in row:
        return []
    columns = (row["curve"][name] for name in ("outputs", "vote", "vote_error"))
    return list(zip(*columns, strict=True))


def _foreign(runs: Sequence[Evaluated], names: Sequence[str]) -> Values | None:
    rows = [
        (index, f"{tables.label(row | {'run': names[index]})}, {name}", row)
        for index, run in enumerate(runs)
        for name, found in run.foreign.items()
        for row in found
    ]
    if not rows:
        return None
    columns = [n for n in METRICS if n.startswith("ood_")]
    columns = [n for n in columns if any(n in row for _, _, row in rows)]
    return {
        "caption": "Detection of foreign examples by the entropy",
        "head": ["", *(METRICS[name][0] for name in columns)],
        "rows": [[label, *(cell(n, row) for n in columns)] for _, label, row in rows],
        "runs": [index for index, _, _ in rows],
    }


def _curves(runs: Sequence[Evaluated], answer: str) -> list[Values]:
    """Returns the training loss, and the scores during training."""
    logs = [read_log(run.folder) for run in runs]
    quality = {"number": "mse"}.get(answer, KINDS[answer].quality)
    wanted: dict[str, tuple[str, float]] = {
        "loss": ("Training loss", 1),
        "eval_nll": ("NLL in training", 1),
    }
    title, scale, _ = METRICS[quality]
    wanted[f"eval_{quality}"] = (f"{title} in training", scale)
    found = []
    for name, (title, scale) in wanted.items():
        series = [
            {"run": index, "blocks": [list(block) for block in blocks(values)]}
            for index, log in enumerate(logs)
            if (values := values_of(log, name))
        ]
        if series:
            found.append({"title": title, "scale": scale, "series": series})
    return found


def _run(
    run: Evaluated,
    name: str,
    answer: str,
    sweep: Sweep,
    lines: Sequence[Line],
    index: int,
    *,
    test: bool,
) -> Values:
    main = next(line.row for line in lines if line.run == index and line.main)
    settings = [one for one in sweep.settings(run) if run.has(one)] or [run.main]
    try:
        examples: Values = {"tables": notable(run, test=test)}
    except (ValueError, OSError) as error:
        examples = {"missing": one_line(error)}
    return {
        "name": name,
        "facts": list(_facts(run)),
        "headline": [
            {"title": METRICS[n][0], "cell": cell(n, main)}
            for n in KINDS[answer].headline
        ],
        "points": points(run, answer, settings, SEED),
        "examples": examples,
    }


def _facts(run: Evaluated) -> Iterator[tuple[str, str]]:
    entries = Entries.of(run.posterior)
    yield "method", run.method
    yield "predicts", run.main.suffix.strip("@, ") or "by the mean"
    yield "model", str(run.about["model"])
    yield "examples", f"{run.about['eval_examples']} scored"
    varying = len(entries.deviation)
    about = f"{varying:,} of {entries.size:,} parameters vary" if varying else "a point"
    yield "posterior", f"{run.posterior.kind}; {about}"
    yield "status", describe_status(run.status)
    if run.made:
        sources = ", ".join(source["path"] for source in run.made.sources)
        yield "made by", f"{run.made.fit} of {sources}"


def _configuration(runs: Sequence[Evaluated], names: Sequence[str]) -> Values:
    """Lists the settings and versions of each run; marks those that differ."""
    described = [_described(run) for run in runs]
    rows, differ = [], []
    for name in dict.fromkeys(key for one in described for key in one):
        values = [one.get(name, NONE) for one in described]
        if set(values) == {NONE}:  # set by none
            continue
        rows.append([name, *values])
        differ.append(len(set(values)) > 1)
    return {
        "caption": "Settings and versions",
        "head": ["", *names],
        "rows": rows,
        "differ": differ,
    }


def _described(run: Evaluated) -> dict[str, str]:
    flat = identity.describe(run.config, dict(run.recorded))
    versions: Mapping[str, Any] = flat.pop("versions", None) or {}
    named = flat | {f"version of {name}": value for name, value in versions.items()}
    evaluated: Mapping[str, Any] = run.about.get("versions") or {}
    named |= {f"{k}, at evaluation": v for k, v in evaluated.items() if k == "ivon-jax"}
    return {name: _text(value) for name, value in named.items()}


def _text(value: Any) -> str:
    if value is None:
        return NONE
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or NONE
    return np.format_float_positional(value, trim="-") if _small(value) else str(value)


def _small(value: Any) -> bool:
    return isinstance(value, float) and 1e-6 < abs(value) < 1e6
