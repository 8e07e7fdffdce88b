"""The files of a comparison: results, metrics, report and figures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.files import write_bytes
from ivon_jax.train.pod.processes import on_first_process
from ivon_jax.train.predictors.base import Row
from ivon_jax.train.report import figures, tables, votes
from ivon_jax.train.report.intervals import with_intervals, with_vote_intervals
from ivon_jax.train.report.logs import read_log
from ivon_jax.train.runs import run

_TITLES = {
    "reliability": "Reliability diagrams",
    "trade_off": "Accuracy against calibration",
    "accuracy_by_outputs": "Accuracy by number of outputs",
    "models_by_outputs": "Accuracy by models and outputs of each",
    "vote_reliability": "Votes as confidence",
}
_CLASSES = """ECE, adaptive ECE and MCE are of the largest probability: ECE with 10 and
15 bins of equal width, adaptive ECE with 10 of equal mass, MCE the largest gap of the
10 of equal width. Brier is summed over classes."""
_TEXT = """NLL is in nats a token: of each token given the text before it, and of whole
completions, both averaged over samples. Greedy: accuracy of the most likely tokens; one
output: of a single sampled one; vote: of the answer that most outputs give; any right:
share of questions that an output answers rightly; cut: share of outputs that were ended
by their length. ECE (15 bins), Brier, AUROC and AURC of votes take the share of the
vote as confidence. The entropy of answers, in nats, is that within models, on average,
plus that between them."""


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
    labels: Int[np.ndarray, " n"] | None,
) -> dict[str, Any]:
    """Writes ``results.json``, ``metrics.jsonl``, ``report.md`` and the figures.

    Args:
        out: folder of the comparison.
        about: what was compared, with the seed; the first values of the results.
        trained: names of the runs that were trained.
        scored: the rows; those of sweeps are written after the others.
        labels: the right classes; None for text.

    Returns:
        The contents of ``results.json``.
    """
    ordered = sorted(scored, key=lambda one: one.swept)
    rows = [one.row for one in ordered]
    if labels is None:
        rows = with_vote_intervals(rows, about["seed"])
    else:
        predictions = np.stack([one.log_probs for one in ordered])
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
        drawn = {"training": "Training loss"}
        if labels is None:
            paths = votes.draw(out, rows)
            drawn |= {path.stem: _TITLES[path.stem] for path in paths}
        else:
            figures.reliability(out / "reliability.png", main, labels)
            figures.trade_off(out / "trade_off.png", rows)
            drawn |= {name: _TITLES[name] for name in ("reliability", "trade_off")}
        text = _report(results, _CLASSES if labels is not None else _TEXT, drawn)
        write_bytes(out / "report.md", text.encode())

    on_first_process(write)
    return results


def _report(results: dict[str, Any], columns: str, drawn: Mapping[str, str]) -> str:
    """Writes the report.

    Args:
        results: the contents of ``results.json``.
        columns: what the columns of this kind of task are.
        drawn: the figures with their titles.
    """
    rows = results["rows"]
    names = ", ".join(dict.fromkeys(map(tables.name_of, rows)))
    seconds = ", ".join(f"{k} {v:.0f} s" for k, v in results["seconds"].items())
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    differences = ""
    if all("differences" in row for row in rows):
        differences = f"""
Differences with 95 % intervals, of a paired bootstrap over the evaluation examples:

{tables.differences(rows)}
"""
    images = "\n\n".join(f"![{title}]({name}.png)" for name, title in drawn.items())
    return f"""# {results["task"]}: {names}

{results["model"]}, {results["train_examples"]} training examples, {results["steps"]}
steps, seed {results["seed"]}; {results["eval_examples"]} evaluation examples.

{tables.table(rows, tables.COLUMNS)}

{columns} Cost: the median step in seconds; the peak memory of a step on one device, as
its compiler plans it; the posterior's file; seconds of a fit after training; passes of
an example at test time, of a linearised prediction a forward one and a backward one for
each class. Training took {seconds}.
{differences}
{images}

{versions}
"""
