"""Comparisons on text: likelihoods of tokens, and votes where there are answers."""

import json
import shutil

import numpy as np
import pytest
import tiny_answers
from matplotlib.image import imread
from tiny_answers import command

from ivon_jax.testing.tiny import write_rows
from ivon_jax.train.report import tables

STEPS = ["--adam.steps", "2", "--ivon-lora.steps", "2", "--ivon-lora.ess", "100"]
BATCH = ["--adam.batch-size", "4", "--ivon-lora.batch-size", "4"]
VOTES = ["--samples", "2", "--sweep-samples", "2", "--outputs", "2"]
VOTES += ["--max-tokens", "4", "--prunes", "0.5"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    yield from tiny_answers.home_of(tmp_path_factory.mktemp("home"))


def words(home, out, *more):
    return ["compare", *tiny_answers.options(home), *STEPS, *BATCH, *more, "--out", out]


@pytest.fixture(scope="module")
def compared(home):
    out = home / "compared"
    assert command(*words(home, out, *VOTES)) == 0
    return out


def results(out):
    def illegal(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads((out / "results.json").read_text(), parse_constant=illegal)


def test_every_row_has_likelihoods_and_votes(compared):
    found = results(compared)
    rows = found["rows"]
    assert [tables.label(row) for row in rows] == [
        "adam",
        "ivon-lora@mean",
        "ivon-lora, 2 samples, tau 1, prune 0",
        "ivon-lora, 2 samples, tau 1, prune 0.5",
    ]
    assert found["eval_examples"] == tiny_answers.QUESTIONS
    for row in rows:
        # All are compared at the same number of outputs.
        assert row["outputs"] == 4
        assert row["curve"]["outputs"] == [1, 2, 4]
        assert row["nll"] > 0 and 0 <= row["vote_accuracy"] <= row["pass_accuracy"]
        low, high = row["differences"]["vote_accuracy"]
        assert low <= row["vote_accuracy"] - rows[0]["vote_accuracy"] <= high
    assert rows[0]["differences"]["vote_accuracy"] == [0.0, 0.0]
    share = rows[0]["vote_accuracy"]
    error = np.sqrt(share * (1 - share) / tiny_answers.QUESTIONS)
    assert rows[0]["errors"]["vote_accuracy"] == pytest.approx(error, abs=0.02)


def test_the_report_has_all_rows_and_figures(compared):
    report = (compared / "report.md").read_text()
    for row in results(compared)["rows"]:
        assert f"| {tables.label(row)} " in report
    for title in ("NLL of sequences", "vote %", "ECE of votes %", "between models"):
        assert title in report
    assert "[minus adam" not in report and "| minus adam " in report
    figures = ("training", "accuracy_by_outputs", "models_by_outputs")
    for name in (*figures, "vote_reliability"):
        assert f"({name}.png)" in report
        assert imread(compared / f"{name}.png")[..., :3].std() > 0.01
    assert not (compared / "reliability.png").exists()


def test_more_outputs_are_added_to_a_finished_comparison(
    home, compared, tmp_path, monkeypatch
):
    out = shutil.copytree(compared, tmp_path / "out")
    monkeypatch.setattr("ivon_jax.train.loop.train_step", None)  # nothing is trained
    assert command(*words(home, out, *VOTES, "--outputs", "3", "--resume")) == 0
    before = results(compared)["rows"]
    for row, old in zip(results(out)["rows"], before, strict=True):
        assert row["outputs"] == 6 and row["nll"] == old["nll"]


def test_seeds_are_averaged(compared, tmp_path, capsys):
    other = shutil.copytree(compared, tmp_path / "other")
    path = other / "results.json"
    path.write_text(json.dumps(results(compared) | {"seed": 1}))
    capsys.readouterr()
    assert command("table", compared, other) == 0
    table = capsys.readouterr().out
    share = 100 * results(compared)["rows"][0]["vote_accuracy"]
    assert "vote %" in table and f"{share:.1f} ± 0.0" in table


def test_text_without_answers_has_likelihoods_only(home, tmp_path, capsys):
    rows = [{"prompt": f"{i}=", "completion": "abc"} for i in range(8)]
    write_rows(tmp_path / "rows.jsonl", rows)
    task = ["--task", "text", "--model", home / "model", "--rank", "2"]
    task += ["--train-file", tmp_path / "rows.jsonl"]
    sized = ["compare", *task, *STEPS, *BATCH, "--samples", "2"]
    held = ["--validation-examples", "4"]
    out = tmp_path / "out"
    assert command(*sized, *held, "--out", out) == 0
    assert not any("curve" in row for row in results(out)["rows"])
    report = (out / "report.md").read_text()
    assert "perplexity" in report and "(training.png)" in report
    assert "Differences" not in report
    # What cannot be compared is refused before anything is written.
    bad = tmp_path / "bad"
    for more, message in (
        ([], "eval_file: needed, or --validation-examples, to score"),
        ([*held, "--outputs", "4"], "outputs: only with a task of answers in texts"),
        ([*held, "--fit", "tfb:adam"], "tfb: only for classes"),
        ([*held, "--fit", "temperature:*"], "temperature: only for classes"),
    ):
        capsys.readouterr()
        assert command(*sized, *more, "--out", bad) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert message in error
        assert not bad.exists()
