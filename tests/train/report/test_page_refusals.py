"""Runs and files of which no page is made."""

import json
import os

import numpy as np
import pytest
from tiny_fits import command, one_line
from tiny_results import (
    numbers,
    plain_texts,
    write_examples,
    write_numbers,
    write_run,
)

from ivon_jax.train.report.contents import unique_names
from ivon_jax.train.report.evaluated import read


@pytest.fixture(scope="module")
def texts():
    return plain_texts(60)


@pytest.fixture
def data(tmp_path, texts):
    return write_examples(tmp_path / "data", texts)


# What is refused.


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("report.txt", "does not end in .html"),
        ("nowhere/report.html", "is no folder"),
        ("folder.html", "is a folder"),
    ],
)
def test_files_that_cannot_be_written(out, message, data, tmp_path, capsys):
    folder = write_run(tmp_path / "run", data)
    (tmp_path / "folder.html").mkdir()
    assert command("report", folder, "--out", tmp_path / out) == 2
    assert message in one_line(capsys)


def test_no_permission(data, tmp_path, capsys, monkeypatch):
    """For every user, root too."""
    folder = write_run(tmp_path / "run", data)
    out = tmp_path / "report.html"
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert command("report", folder, "--out", out) == 2
    assert f"{tmp_path} cannot be written to" in one_line(capsys)
    monkeypatch.setattr(os, "access", lambda path, mode: path != folder)
    assert command("report", folder, "--out", out) == 2
    assert "cannot be written to, for the sweep; --samples 0" in one_line(capsys)
    assert not out.exists()


def test_runs_that_cannot_be_reported(data, tmp_path, capsys):
    out = tmp_path / "report.html"
    new = write_run(tmp_path / "new", data, [])
    fresh = write_run(tmp_path / "fresh", data, [], state="training")
    (fresh / "posterior.safetensors").unlink()
    good = write_run(tmp_path / "good", data)
    cases = {
        (): "directories: ",
        (tmp_path,): "not a run (config.json is missing)",
        (new,): f"was not evaluated; first: ivon-jax evaluate {new}",
        (good, new): f"was not evaluated; first: ivon-jax evaluate {new}",
        (good, "--test"): f"first: ivon-jax evaluate {good} --test",
        (fresh,): "has no posterior yet (step 40 of 40)",
        (good, good): "directories: a run is named twice",
        (good, "--samples", -1): "samples: -1 is not >= 0",
        (good, "--taus", 0): "tau: 0.0 is not",
        (good, "--prunes", 1.5): "prune: 1.5 is not",
    }
    for words, message in cases.items():
        assert command("report", *words, "--out", out) == 2, words
        assert message in one_line(capsys), words
    assert not out.exists()


def test_an_evaluation_of_version_0_1_0_is_none(data, tmp_path, capsys):
    """It does not name the posterior that it is of."""
    folder = write_run(tmp_path / "run", data)
    for path in folder.glob("evaluation-*.json"):
        values = json.loads(path.read_text())
        del values["best"], values["test"], values["step"]
        path.write_text(json.dumps(values))
    assert command("report", folder, "--out", tmp_path / "report.html") == 2
    assert "was not evaluated; first: ivon-jax evaluate" in one_line(capsys)


def test_an_evaluation_of_another_step_is_none(data, tmp_path, capsys):
    folder = write_run(tmp_path / "run", data)
    path = folder / "evaluation-4.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 7}))
    assert command("report", folder, "--out", tmp_path / "a.html") == 2
    assert "was not evaluated" in one_line(capsys)


@pytest.mark.parametrize("name", ["evaluation-4.json", "predictions-4.safetensors"])
def test_damaged_files(name, data, tmp_path, capsys):
    folder = write_run(tmp_path / "run", data)
    (folder / name).write_text("{}")
    words = ("report", folder, "--samples", 0, "--out", tmp_path / "a.html")
    assert command(*words) == 2
    assert name in one_line(capsys)


def test_runs_of_other_answers_are_reported_apart(data, tmp_path, capsys):
    one = write_run(tmp_path / "one", data)
    other = write_numbers(tmp_path / "numbers", 30)
    labels = np.arange(30, dtype=np.float32) / 30
    two = write_run(
        tmp_path / "two", other, predictions=lambda x: numbers(labels, x.passes)
    )
    assert command("report", one, two, "--out", tmp_path / "a.html") == 2
    assert "two: answers with a number" in one_line(capsys)


def test_names_tell_runs_apart(data, tmp_path):
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run"]
    runs = [read(write_run(folder, data)) for folder in folders]
    assert unique_names(runs) == ["x/run", "y/run"]
    assert unique_names(runs[:1]) == ["run"]
