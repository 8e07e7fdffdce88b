"""Writes the tables and claims of docs/results.md and README from results/*.json."""

import json
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from benchmarks import races
from benchmarks.claims import CLAIMS, Evidence
from ivon_jax.files import write_bytes
from ivon_jax.train.report.tables import COLUMNS, METRICS, markdown, measured_table
from ivon_jax.train.reproduce.collate import Difference
from ivon_jax.train.reproduce.recipe import AVERAGE

ROOT = Path(__file__).parent.parent
PAGES = ("docs/results.md", "docs/scaling.md", "README.md")
# Rows of a sweep over temperatures and pruning, except what a fit chose of one.
_SWEPT = re.compile(r"(?!tau\().*, tau (?!1, prune 0$)")
# What is written between these lines of a page.
_BLOCK = re.compile(r"(<!-- results: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
# Share of the reference's mean up to which two costs are called equal.
EQUAL = 0.05


def main(check: bool = False) -> None:
    """Writes the pages.

    Args:
        check: fail if a page is not current, and write nothing.
    """
    for name in PAGES:
        path = ROOT / name
        text = path.read_text()
        new = rendered(text, read(ROOT / "results"))
        if check and new != text:
            raise SystemExit(f"{name} is not current: make results")
        if new != text:
            write_bytes(path, new.encode())
            print(f"wrote {name}")


def read(folder: Path) -> dict[str, Any]:
    """Reads the files of results, by their names, and those of races by their tasks."""
    found = {x.stem: json.loads(x.read_text()) for x in sorted(folder.glob("*.json"))}
    raced = [json.loads(x.read_text()) for x in sorted(folder.glob("races/*.json"))]
    return found | ({"races": {x["task"]: x for x in raced}} if raced else {})


def rendered(text: str, results: Mapping[str, Any]) -> str:
    """Returns a page with its blocks written anew.

    A block has the rows of a file of results, ``-all`` with those of sweeps, or a few
    of them, ``-short``; that of races has their table, or a sentence. One of a file
    that is not there yet stays as it is.

    Args:
        text: the page.
        results: see `read`.
    """

    def block(found: re.Match[str]) -> str:
        file, _, short = found[2].partition("-")
        if file == "claims":
            new = claims(results)
        elif file not in results:
            return found[0]
        elif file == "races":
            write = races.sentence if short else races.table
            new = write(results[file])
        elif short == "short":
            new = _short(results[file])
        else:
            rows = results[file]["rows"]
            if short != "all":
                rows = [x for x in rows if not _SWEPT.match(x["row"])]
            table = measured_table(rows)
            new = f"{_about(results[file])}\n\n{table}"
        return f"{found[1]}\n{new}\n\n{found[3]}"

    return _BLOCK.sub(block, text)


def _about(found: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    note = f"; {found['note']}" if found["note"] else ""
    several = len(found["seeds"]) > 1
    seeds = "means and standard errors of seeds " if several else "seed "
    seeds += ", ".join(map(str, found["seeds"]))
    return (
        f"{found['task']}, {found['model']}, {found['train_examples']} training and"
        f" {found['eval_examples']} evaluation examples, {found['steps']} steps;"
        f" {seeds} ({versions}{note})."
    )


# The README's rows, of those that a file has.
SHORT = {
    "adam": "Adam",
    "adam, rate *": "Adam, a quarter of the rate",
    "ivon-lora@mean": "IVON-LoRA, posterior mean",
    "ivon-lora, * samples, tau 1, prune 0": "IVON-LoRA, average over 10 samples",
}


def _short(found: Mapping[str, Any]) -> str:
    rows = {title: _row(name, found) for name, title in SHORT.items()}
    named = [row | {"row": title} for title, row in rows.items() if row]
    columns = {name: METRICS[name] for name in ("accuracy", "ece", "nll")}
    return measured_table(named, columns)


def claims(results: Mapping[str, Any]) -> str:
    """Returns the claims with their verdicts, then every difference behind them."""
    columns = list(
        dict.fromkeys(x for c in CLAIMS for e in c.evidence for x in e.signs)
    )
    verdicts = [("", "claim", "here", "")]
    shown = [("", "difference", "on", *(COLUMNS[name][0] for name in columns))]
    for claim in CLAIMS:
        known = [x for x in claim.evidence if _known(x, results)]
        here = f"**{verdict(known, results)}**"
        verdicts.append((claim.letter, claim.text, here, claim.why))
        for one in known:
            cells = _cells(one, results)
            own = (cells.get(name, "") for name in columns)
            shown.append((claim.letter, *_names(one, results), *own))
    return f"{markdown(verdicts)}\n\n{markdown(shown)}"


def _row(pattern: str, found: Mapping[str, Any]) -> Any:
    """Returns the row of a name; None if there is none."""
    return next((x for x in found["rows"] if fnmatchcase(x["row"], pattern)), None)


def _known(evidence: Evidence, results: Mapping[str, Any]) -> bool:
    found = results.get(evidence.file, {"rows": []})
    if "recipe" in found:
        own = found["differences"].values()
        return any(lines.get(evidence.row) for lines in own)
    return None not in (_row(evidence.row, found), _row(evidence.reference, found))


def differences(
    evidence: Evidence, results: Mapping[str, Any]
) -> dict[str, Difference]:
    """Returns the paired differences over seeds, by column, in its unit.

    Those of a recipe are on average over its cases.
    """
    found = results[evidence.file]
    if "recipe" in found:
        of = {name: found["differences"][name] for name in evidence.signs}
        cases = {name: lines[evidence.row] for name, lines in of.items()}
        return {
            name: Difference(**(own.get(AVERAGE) or next(iter(own.values()))))
            for name, own in cases.items()
        }
    own, other = _row(evidence.row, found), _row(evidence.reference, found)
    names = [name for name in evidence.signs if name in own and name in other]
    pairs = {name: zip(own[name], other[name], strict=True) for name in names}
    return {
        name: Difference.of([COLUMNS[name][1] * (a - b) for a, b in values])
        for name, values in pairs.items()
    }


def verdict(evidence: list[Evidence], results: Mapping[str, Any]) -> str:
    """Says whether a claim holds.

    It holds if every interval is on the expected side of 0; in part if one is, and none
    on the other. An expected sign of 0 asks for an interval within `EQUAL`.
    """
    sides = [
        _side(value, one.signs[name], _mean(one, name, results))
        for one in evidence
        for name, value in differences(one, results).items()
    ]
    if sides and all(side == 1 for side in sides):
        return "holds"
    if 1 in sides and -1 not in sides:
        return "holds in part"
    return "not shown here"


def _mean(evidence: Evidence, name: str, results: Mapping[str, Any]) -> float:
    """Returns the mean of the reference's numbers, in the column's unit."""
    if "recipe" in results[evidence.file]:
        return 0.0
    row = _row(evidence.reference, results[evidence.file])
    return float(np.mean(row[name])) * COLUMNS[name][1]


def _side(value: Difference, sign: int, mean: float) -> int:
    """Returns 1 where an interval is as expected, -1 on the other side, else 0."""
    if value.low is None or value.high is None:
        return 0
    if sign == 0:
        return int(max(-value.low, value.high) <= EQUAL * mean)
    return ((value.low > 0) - (value.high < 0)) * sign


def _cells(evidence: Evidence, results: Mapping[str, Any]) -> dict[str, str]:
    """Writes differences: bold if as expected, with a cross if on the other side."""
    texts = {}
    for name, value in differences(evidence, results).items():
        side = _side(value, evidence.signs[name], _mean(evidence, name, results))
        mark = {1: "**{}**", 0: "{}", -1: "{} ✗"}[side]
        texts[name] = mark.format(value.text(COLUMNS[name][2]))
    return texts


def _names(evidence: Evidence, results: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the names of what is compared, and on what."""
    found = results[evidence.file]
    if "recipe" in found:
        return evidence.row, evidence.file
    rows = (_row(x, found)["row"] for x in (evidence.row, evidence.reference))
    examples, steps = found["train_examples"], found["steps"]
    seeds = len(found["seeds"])
    about = f"{found['task']}, {examples} examples, {steps} steps, {seeds} seeds"
    return " minus ".join(rows), f"{evidence.file}: {about}"


if __name__ == "__main__":
    tyro.cli(main)
