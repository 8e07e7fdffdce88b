"""The files of a comparison: results, metrics, report and figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.files import write_bytes
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.report import figures, tables
from ivon_jax.train.report.intervals import with_intervals
from ivon_jax.train.report.logs import read_log
from ivon_jax.train.report.tables import Row
from ivon_jax.train.runs import run


class Scored(NamedTuple):
    """A row of results.

    Attributes:
        row: the row.
        log_probs: its predictions, averaged over draws.
        swept: whether it is a point of a sweep only.
    """

    row: Row
    log_probs: Float[np.ndarray, "n c"]
    swept: bool


def write_comparison(
    out: Path,
    about: Mapping[str, Any],
    trained: Sequence[str],
    scored: Sequence[Scored],
    labels: Int[np.ndarray, " n"],
) -> dict[str, Any]:
    """Writes ``results.json``, ``metrics.jsonl``, ``report.md`` and the figures.

    Args:
        out: folder of the comparison.
        about: what was compared, with the seed; the first values of the results.
        trained: names of the runs that were trained.
        scored: the rows; those of sweeps are written after the others.
        labels: the right classes.

    Returns:
        The contents of ``results.json``.
    """
    ordered = sorted(scored, key=lambda one: one.swept)
    predictions = np.stack([one.log_probs for one in ordered])
    rows = [one.row for one in ordered]
    rows = with_intervals(rows, predictions, labels, about["seed"])
    logs = {name: read_log(out / name) for name in trained}
    results = {
        **about,
        "rows": rows,
        "seconds": {name: lines[-1]["seconds"] for name, lines in logs.items()},
        "versions": run.versions(),
    }
    named = zip(map(tables.label, rows), ordered, strict=True)
    main = {name: one.log_probs for name, one in named if not one.swept}

    def write() -> None:
        run.write_json(out / "results.json", results)
        lines = [{"method": name, **line} for name in logs for line in logs[name]]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_bytes(out / run.METRICS, text.encode())
        figures.training_curves(out / "training.png", logs)
        figures.reliability(out / "reliability.png", main, labels)
        figures.trade_off(out / "trade_off.png", rows)
        write_bytes(out / "report.md", _report(results).encode())

    on_first_process(write)
    return results


def _report(results: dict[str, Any]) -> str:
    rows = results["rows"]
    names = ", ".join(dict.fromkeys(map(tables.name_of, rows)))
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in results["seconds"].items())
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    return f"""# {results["task"]}: {names}

{results["model"]}, {results["train_examples"]} training examples, {results["steps"]}
steps, seed {results["seed"]}; {results["eval_examples"]} evaluation examples.

{tables.table(rows, tables.COLUMNS)}

ECE, adaptive ECE and MCE are of the largest probability: ECE with 10 and 15 bins of
equal width, adaptive ECE with 10 of equal mass, MCE the largest gap of the 10 of equal
width. Brier is summed over classes. Cost: the median step in seconds; the peak memory
of a step on one device, as its compiler plans it; the posterior's file; seconds of a
fit after training; passes of an example at test time, of a linearised prediction a
forward one and a backward one for each class. Training took {seconds}.

Differences with 95 % intervals, of a paired bootstrap over the evaluation examples:

{tables.differences(rows)}

![Training loss](training.png)

![Reliability diagrams](reliability.png)

![Accuracy against calibration](trade_off.png)

{versions}
"""
