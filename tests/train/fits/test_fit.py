"""The command `fit`: the folder it writes, and what it refuses."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils
from tiny_fits import command, one_line, train, write_task

from ivon_jax import load_posterior
from ivon_jax.train import sources
from ivon_jax.train.fits.partial import PARTIAL, Partial
from ivon_jax.train.runs import fitted, status
from ivon_jax.train.runs.run import read_predictions


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A model, noisy data, and runs that held examples out, or none."""
    place = tmp_path_factory.mktemp("fits")
    config = write_task(place)
    for method in ("adam", "ivon-lora"):
        train(config, place / method, method)
    data = dataclasses.replace(config.data, validation_examples=None)
    train(config, place / "whole", "adam", data=data)
    return place


@pytest.fixture(scope="module")
def scaled(place) -> Path:
    out = place / "scaled"
    words = ("--method", "temperature", "--samples", 2)
    assert command("fit", place / "ivon-lora", *words, "--out", out) == 0
    return out


def test_a_fit_writes_a_run(place, scaled):
    names = {path.name for path in scaled.iterdir()}
    assert names == {"config.json", "status.json", "posterior.safetensors", "fit.json"}
    assert status.read(scaled) == (6, 6, "trained")
    record = json.loads((scaled / "fit.json").read_text())
    assert record["fit"] == "temperature"
    assert record["method"] == "temperature(ivon-lora)"
    assert record["options"] == {"samples": 2, "tau": 1.0, "prune": 0.0}
    assert record["seconds"] > 0 and record["held_out"] == "fitted on"
    (source,) = record["sources"]
    assert source["path"] == str(place / "ivon-lora" / "posterior.safetensors")
    config, wanted = (
        json.loads((folder / "config.json").read_text())
        for folder in (scaled, place / "ivon-lora")
    )
    for facts in (config, wanted):
        del facts["started"]
    assert config == wanted
    posterior, metadata = load_posterior(scaled / "posterior.safetensors")
    before, _ = load_posterior(place / "ivon-lora" / "posterior.safetensors")
    chex.assert_trees_all_equal(posterior, before)
    assert metadata == {"step": 6}


def test_a_fitted_run_is_evaluated_in_its_own_ways(scaled, tmp_path, capsys):
    out = shutil.copytree(scaled, tmp_path / "run")
    assert command("evaluate", out, "--test") == 0
    table = capsys.readouterr().out
    own = fitted.read(out).predictors
    assert [p.name for p in own] == ["mean-scaled", "2-scaled"]
    rows = json.loads((out / "evaluation-2-scaled-test.json").read_text())["rows"]
    assert [row["predict"] for row in rows] == ["mean", "temperature", "temperature"]
    assert all(row["method"] == "temperature(ivon-lora)" for row in rows)
    assert "temperature(ivon-lora)@mean" in table
    # As the same temperatures, fitted by an option of evaluate.
    assert rows[1]["temperature"] == own[0].temperature
    # Options ask for other ways.
    assert command("evaluate", out, "--test", "--samples", 3) == 0
    rows = json.loads((out / "evaluation-3-test.json").read_text())["rows"]
    assert [row["predict"] for row in rows] == ["mean", "samples"]
    assert status.read(out).state == "evaluated"


def test_what_was_fitted_on_is_not_scored(scaled, capsys):
    assert command("evaluate", scaled) == 2
    message = f"test: the held-out examples of {scaled} were fitted on; score others"
    assert message in one_line(capsys)


def test_it_is_the_temperature_of_evaluate(place, scaled, tmp_path):
    out = shutil.copytree(place / "ivon-lora", tmp_path / "run")
    assert command("evaluate", out, "--temperature", "--test", "--samples", 2) == 0
    path = out / "evaluation-2-scaled-test.json"
    rows = json.loads(path.read_text())["rows"]
    found = [row["temperature"] for row in rows if row["predict"] == "temperature"]
    assert found == [p.temperature for p in fitted.read(scaled).predictors]
    other = shutil.copytree(scaled, tmp_path / "scaled")
    assert command("evaluate", other, "--test") == 0
    for name in ("mean-scaled-test", "2-scaled-test"):
        np.testing.assert_array_equal(
            read_predictions(out, name)[0], read_predictions(other, name)[0]
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "nonsense"), "--method"),
        (("--method", "temperature", "--tau", 0), "tau: 0.0 is not"),
        (("--method", "temperature", "--samples", 0), "samples: 0 is not >= 1"),
        (("--method", "temperature", "--chunk-size", 0), "chunk_size: 0 is not >= 1"),
        (("--method", "temperature", "--model", "m"), "model: only with --adapter"),
        (("--method", "temperature", "--adapter", "a"), "takes one run, not 2"),
        ((), "--method"),
    ],
)
def test_bad_options(words, message, place, tmp_path, capsys):
    out = tmp_path / "out"
    assert command("fit", place / "adam", *words, "--out", out) == 2
    assert message in one_line(capsys)
    assert not out.exists()


def test_what_has_no_source(place, tmp_path, capsys):
    words = ("--method", "temperature", "--out", tmp_path / "out")
    for paths, message in (
        ((), "takes one run, not 0"),
        ((tmp_path,), "not a run"),
        ((place / "adam", place / "adam"), "takes one run, not 2"),
    ):
        assert command("fit", *paths, *words) == 2
        assert message in one_line(capsys)
    words = ("--method", "temperature", "--out", place / "adam")
    assert command("fit", place / "adam", *words) == 2
    assert "holds another run" in one_line(capsys)


def test_a_run_that_held_nothing_out(place, tmp_path, capsys):
    words = ("--method", "temperature", "--out", tmp_path / "out")
    assert command("fit", place / "whole", *words) == 2
    assert "held out no training examples to fit on" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_too_few_examples(place, tmp_path, capsys):
    config = write_task(tmp_path, held_out=1)
    train(config, tmp_path / "run", "adam")
    words = ("--method", "temperature", "--out", tmp_path / "out")
    assert command("fit", tmp_path / "run", *words) == 2
    assert "temperature: 1 examples are too few to fit it" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_fit_leaves_nothing(place, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "draws", interrupted)
    words = ("--method", "temperature", "--out", tmp_path / "out")
    assert command("fit", place / "adam", *words) == 130
    assert not list(tmp_path.iterdir())


def test_data_that_have_changed(place, tmp_path, capsys):
    path = place / "data" / "train.jsonl"
    text = path.read_text()
    try:
        path.write_text(text.replace("big", "old"))
        words = ("--method", "temperature", "--out", tmp_path / "out")
        assert command("fit", place / "adam", *words) == 2
    finally:
        path.write_text(text)
    assert "eval_fingerprint is now" in one_line(capsys)


def test_a_damaged_record(scaled, tmp_path, capsys):
    for number, text in enumerate(("{", "[]", "{}", '{"versions": 1}')):
        out = shutil.copytree(scaled, tmp_path / str(number))
        (out / "fit.json").write_text(text)
        assert command("evaluate", out, "--test") == 2
        assert "fit.json: not the record of a fit" in one_line(capsys)


# What an unfinished fit keeps.


def test_an_unfinished_fit_is_resumed(tmp_path):
    state = {"a": np.arange(3.0, dtype=np.float32), "b": (np.int32(1) + np.zeros(2),)}
    like = jax.tree.map(np.zeros_like, state)
    first = Partial(tmp_path / "new", {"fit": "x"})
    assert first.load(like) is None
    first.save(2, state)
    first.save(3, state)
    assert [path.name for path in (tmp_path / "new").iterdir()] == [PARTIAL]
    step, found = Partial(tmp_path / "new", {"fit": "x"}, resume=True).load(like)
    assert step == 3
    np.testing.assert_array_equal(found["a"], state["a"])
    np.testing.assert_array_equal(found["b"][0], state["b"][0])
    with pytest.raises(ValueError, match="of a fit with other options"):
        Partial(tmp_path / "new", {"fit": "y"}, resume=True).load(like)
    with pytest.raises(ValueError, match="of a fit with other options"):
        Partial(tmp_path / "new", {"fit": "x"}, resume=True).load({"a": like["a"]})
    assert Partial(tmp_path / "new", {"fit": "x"}).load(like) is None
    first.remove()
    assert not list((tmp_path / "new").iterdir())


def test_a_registered_fit_is_on_the_command_line():
    """In a process of its own: the parser of this one has read the names already."""
    code = """
import dataclasses, sys
from ivon_jax.train.fits.base import Fit
from ivon_jax.train.fits.registry import FITS

@dataclasses.dataclass(frozen=True)
class Own(Fit):
    size: float = 0.5
    name = "own"

FITS["own"] = Own
from ivon_jax.train.cli import main
main()
"""
    line = [sys.executable, "-c", code, "fit", "x", "--method", "own", "--help"]
    out = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert out.returncode == 0, out.stderr
    assert re.search(r"--size FLOAT.*default: 0.5", out.stdout)
    assert re.search(r"--method \{.*own\}", out.stdout, re.DOTALL)


def test_no_process_waits_where_only_its_clock_says_to_save(tmp_path, monkeypatch):
    def broadcast(*_):
        raise AssertionError("the others may be at another batch")

    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, written in ((1, []), (0, [PARTIAL])):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        Partial(tmp_path, {}).save(1, {"a": np.zeros(2, np.float32)})
        assert [path.name for path in tmp_path.iterdir()] == written
