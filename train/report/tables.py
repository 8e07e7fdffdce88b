"""Tables of results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.predictors.base import Row
from ivon_jax.train.predictors.registry import predictor_of

Columns = Mapping[str, tuple[str, float, int]]

# Field of a row: title, factor, digits. A table has those that its rows have.
METRICS: Columns = {
    "accuracy": ("accuracy %", 100, 1),
    "matthews": ("Matthews %", 100, 1),
    "f1": ("F1 %", 100, 1),
    "ece": ("ECE (10) %", 100, 1),
    "ece15": ("ECE (15) %", 100, 1),
    "token_accuracy": ("tokens right %", 100, 1),
    "sequence_accuracy": ("all right %", 100, 1),
    "nll": ("NLL", 1, 3),
    "sequence_nll": ("NLL of sequences", 1, 3),
    "perplexity": ("perplexity", 1, 3),
    "brier": ("Brier", 1, 3),
    "outputs": ("outputs", 1, 0),
    "greedy_accuracy": ("greedy %", 100, 1),
    "sample_accuracy": ("one output %", 100, 1),
    "vote_accuracy": ("vote %", 100, 1),
    "pass_accuracy": ("any right %", 100, 1),
    "cut": ("cut %", 100, 1),
    "pearson": ("Pearson %", 100, 1),
    "spearman": ("Spearman %", 100, 1),
    "mse": ("MSE", 1, 3),
    "ood_auroc": ("OOD AUROC %", 100, 1),
    "ood_aupr": ("OOD AUPR %", 100, 1),
    "ood_fpr95": ("OOD FPR95 %", 100, 1),
    "ood_accuracy": ("OOD accuracy %", 100, 1),
    "ood_ece": ("OOD ECE (10) %", 100, 1),
    "ood_nll": ("OOD NLL", 1, 3),
}
# The columns of reports; the terminal's tables have the metrics above only.
COLUMNS: Columns = {
    **METRICS,
    "adaptive_ece": ("adaptive ECE %", 100, 1),
    "mce": ("MCE %", 100, 1),
    "aurc": ("AURC", 1, 3),
    "parsed": ("with answer %", 100, 1),
    "vote_ece": ("ECE of votes %", 100, 1),
    "vote_brier": ("Brier of votes", 1, 3),
    "vote_auroc": ("AUROC of votes", 1, 3),
    "vote_aurc": ("AURC of votes", 1, 3),
    "entropy": ("entropy", 1, 3),
    "entropy_within": ("within models", 1, 3),
    "entropy_between": ("between models", 1, 3),
    "step_seconds": ("s/step", 1, 3),
    "peak_bytes": ("peak MB", 1e-6, 0),
    "posterior_bytes": ("posterior MB", 1e-6, 2),
    "fit_seconds": ("fit s", 1, 1),
    "passes": ("passes", 1, 0),
}
# Fields that must agree between the comparisons in one table.
ALIKE = ("task", "model", "train_examples", "eval_examples", "steps")


def name_of(row: Row) -> str:
    """Returns the name of a row's run, or of its method."""
    return str(row.get("run", row["method"]))


def label(row: Row) -> str:
    """Returns the name of a row: the run or method, and the predictor."""
    suffix = predictor_of(row).suffix
    if not has_spread(row):  # the mean is all there is
        suffix = suffix.removeprefix("@mean")
    return name_of(row) + suffix


def has_spread(row: Row) -> bool:
    """Returns whether a row's posterior is more than a point."""
    method = METHODS.get(row["method"])
    # Rows of version 0.1.0 do not tell.
    return bool(row.get("spread", method is not None and method.spread))


def table(rows: Sequence[Row], columns: Columns = METRICS) -> str:
    """Formats rows as a Markdown table, with fractions as percentages.

    Args:
        rows: rows of results.
        columns: the columns; those that not all rows have are left out.
    """
    columns = common_columns(columns, rows)
    cells = [["", *(title for title, *_ in columns.values())]]
    for row in rows:
        values = [
            f"{scale * row[name]:.{digits}f}"
            for name, (_, scale, digits) in columns.items()
        ]
        cells.append([label(row), *values])
    return markdown(cells)


def differences(rows: Sequence[Row]) -> str:
    """Formats differences to the first row, with their intervals, as a table.

    Args:
        rows: rows of `with_intervals`.
    """
    first, *others = rows
    columns = {name: COLUMNS[name] for name in first["differences"]}
    cells = [[f"minus {label(first)}", *(title for title, *_ in columns.values())]]
    for row in others:
        line = [label(row)]
        for name, (_, scale, digits) in columns.items():
            value, low, high = (
                f"{scale * x:+.{digits}f}"
                for x in (row[name] - first[name], *row["differences"][name])
            )
            line.append(f"{value} [{low}, {high}]")
        cells.append(line)
    return markdown(cells)


def common_columns(columns: Columns, rows: Sequence[Row]) -> Columns:
    """Returns the columns that all rows have."""
    return {k: v for k, v in columns.items() if all(k in row for row in rows)}


def read_comparisons(directories: Sequence[Path]) -> list[list[Row]]:
    """Reads the rows of comparisons that differ by seed.

    Args:
        directories: folders written by "ivon-jax compare".

    Returns:
        The rows of each.

    Raises:
        ValueError: there is no folder, or one holds no comparison, differs from the
            first in more than the seed, or repeats a seed.
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
        ValueError: the runs have different rows.
    """
    return measured_table(over_seeds(runs))


def over_seeds(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """Collects the numbers of every run, row by row.

    Args:
        runs: the rows of each run, in the same order.

    Returns:
        For each row its name as ``row``, and the numbers of the columns that it has in
        all runs, each as a list.

    Raises:
        ValueError: the runs have different rows.
    """
    kinds = [[_kind(row) for row in rows] for rows in runs]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError("runs: their methods or predictors differ")
    return [
        {"row": _common_label(same)}
        | {name: [row[name] for row in same] for name in common_columns(COLUMNS, same)}
        for same in zip(*runs, strict=True)
    ]


def measured_table(rows: Sequence[Row], columns: Columns = COLUMNS) -> str:
    """Formats rows of `over_seeds`, as mean and, of several seeds, standard error.

    Args:
        rows: the rows.
        columns: the columns; those that not all rows have are left out.
    """
    columns = common_columns(columns, rows)
    cells = [["", *(title for title, *_ in columns.values())]]
    for row in rows:
        line = [row["row"]]
        for name, (_, scale, digits) in columns.items():
            values = scale * np.array(row[name], np.float64)
            cell = f"{values.mean():.{digits}f}"
            if len(values) > 1:
                cell += f" ± {standard_error(values):.{digits}f}"
            line.append(cell)
        cells.append(line)
    return markdown(cells)


def _kind(row: Row) -> tuple[Any, ...]:
    """Returns what rows of several seeds share; values found by a fit may differ."""
    if row.get("fit_seconds"):
        return name_of(row), row["predict"], row.get("of")
    return (label(row),)


def _common_label(rows: Sequence[Row]) -> str:
    """Returns the parts of a label that all rows have, as without a fitted T."""
    parts = zip(*(label(row).split(", ") for row in rows), strict=False)
    return ", ".join(first for first, *others in parts if set(others) <= {first})


def standard_error(values: Float[np.ndarray, " n"]) -> float:
    """Returns the standard error of the mean; 0 of one value."""
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
