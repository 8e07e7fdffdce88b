"""Evaluation against examples of another distribution."""

import json

import numpy as np
import pytest
import sklearn.metrics
import tiny
from tiny_inference import command, lines, texts, write_run

import ivon_jax


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home):
    return write_run(home)


def uncertainty(model, rows):
    """The three scores, in float64."""
    found = model.predict(rows, samples=3)
    return {
        "": found.entropy,
        "_confidence": 1 - found.confidence,
        "_mutual_information": found.mutual_information,
    }


def test_detection_is_that_of_scikit_learn(run, home, capsys):
    odd = tiny.write_rows(home / "odd.jsonl", [
        {"text": " ".join(reversed(row["text"].split())) + " old"}
        for row in texts(30, seed=21, longest=9)
    ])  # fmt: skip
    assert command("evaluate", run, "--samples", 3, "--ood-file", odd) == 0
    shown = capsys.readouterr().out
    assert "OOD AUROC %" in shown and "OOD accuracy" not in shown
    written = json.loads((run / "evaluation-3-ood-odd.json").read_text())
    row = written["rows"][-1]
    model = ivon_jax.load(run)
    own = uncertainty(model, lines(home / "data" / "eval.jsonl"))
    foreign = uncertainty(model, lines(odd))
    truth = np.repeat([0, 1], [40, 30])
    for by in own:
        both = np.round(np.concatenate([own[by], foreign[by]]), 6)
        auroc = sklearn.metrics.roc_auc_score(truth, both)
        aupr = sklearn.metrics.average_precision_score(truth, both)
        # Scores that are equal but for rounding may change places.
        np.testing.assert_allclose(row[f"ood_auroc{by}"], auroc, atol=2e-2)
        np.testing.assert_allclose(row[f"ood_aupr{by}"], aupr, atol=2e-2)
        assert 0 <= row[f"ood_fpr95{by}"] <= 1
    assert 0 <= row["coverage5"] <= 1 and row["augrc"] <= row["aurc"]


def test_labels_that_fit_are_scored(run, home, capsys):
    rows = tiny.rows(25, seed=22, longest=9)
    file = tiny.write_rows(home / "other.jsonl", rows)
    assert command("evaluate", run, "--samples", 3, "--ood-file", file) == 0
    assert "OOD accuracy %" in capsys.readouterr().out
    row = json.loads((run / "evaluation-3-ood-other.json").read_text())["rows"][-1]
    found = ivon_jax.load(run).predict(rows, samples=3)
    labels = np.array([tiny.LABELS.index(row["label"]) for row in rows])
    np.testing.assert_allclose(row["ood_accuracy"], (found.indices == labels).mean())
    wanted = sklearn.metrics.log_loss(labels, found.probs)
    np.testing.assert_allclose(row["ood_nll"], wanted, rtol=1e-4)


def test_another_task_is_asked_by_its_own_prompt(run, home, monkeypatch):
    """CoLA has the tiny task's label words, so its labels are scored too."""
    (home / "cola").mkdir()
    rows = [{"sentence": row["text"], "label": 1} for row in texts(60, seed=23)]
    tiny.write_rows(home / "cola" / "validation.jsonl", rows)
    monkeypatch.setenv("IVON_JAX_DATA", str(home))
    assert command("evaluate", run, "--samples", 3, "--ood-task", "cola") == 0
    written = json.loads((run / "evaluation-3-ood-cola.json").read_text())
    assert {"ood_accuracy", "ood_auroc"} < written["rows"][-1].keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ood-task", "gsm"), "unknown task 'gsm'; legal: "),
        (("--ood-task", "stsb"), "ood_task: stsb does not ask for a class"),
        (("--ood-task", "cola", "--ood-file", "x.csv"), "ood_task: not together with"),
        (("--ood-file", "no.jsonl"), "no.jsonl: no such file"),
        (("--ood-file", "empty.jsonl"), "empty.jsonl: no rows"),
        (("--ood-file", "bad.jsonl"), "bad.jsonl:2: no field 'text'; the fields are"),
    ],
)
def test_bad_input_is_one_line(options, message, run, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    (home / "empty.jsonl").write_text("")
    tiny.write_rows(home / "bad.jsonl", [{"text": "red"}, {"words": "red"}])
    before = sorted(run.iterdir())
    assert command("evaluate", run, "--samples", 3, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert sorted(run.iterdir()) == before
