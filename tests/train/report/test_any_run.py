"""Real runs of every kind make a page, with the sliders that apply to them."""

import dataclasses
import json
import re

import pytest
import tiny_encoder
from tiny_fits import command, train, write_task

from ivon_jax.lora import LoraConfig
from ivon_jax.testing.tiny import write_rows, write_text_model
from ivon_jax.train import cli
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.methods.registry import METHODS

pytestmark = pytest.mark.slow
SETTINGS = ("--samples", 2, "--taus", 2, "--prunes", 0.5)
ROWS = [
    {"prompt": f"{a}+{b}=", "completion": f"{a + b}"} for a in range(6) for b in (1, 9)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs that held examples out, by method."""
    place = tmp_path_factory.mktemp("runs")
    config = write_task(place)
    train(config, place / "adam", "adam")
    train(config, place / "ivon-lora", "ivon-lora")
    for method in ("ensemble", "adam-average"):
        hyper = METHODS[method].hyper_type(steps=6, batch_size=8)
        changed = dataclasses.replace(config, method=method, hyper=hyper)
        cli.train(changed, place / method)
    return place


def page(folder, *words):
    """The data of a run's page."""
    assert command("evaluate", folder, *words) == 0
    out = folder.parent / f"{folder.name}.html"
    assert command("report", folder, *SETTINGS, *words, "--out", out) == 0
    found = re.search(r'id="data">(.*?)</script>', out.read_text(), re.DOTALL)
    values = json.loads(found[1])
    (run,) = values["runs"]
    assert "tables" in run["examples"], run["examples"]
    return values, {(point["tau"], point["prune"]) for point in run["points"]}


EVERY = {(tau, prune) for tau in (1, 2, None) for prune in (0, 0.5)}


def test_linearised_fits_are_tempered_as_they_predict(place):
    out = place / "laplace-kfac"
    words = ("--method", "laplace-kfac", "--logit-samples", 100)
    assert command("fit", place / "adam", *words, "--out", out) == 0
    values, settings = page(out, "--test")
    assert settings == EVERY
    assert "linearised" in values["runs"][0]["facts"][1][1]
    assert (out / "fit.json").exists()
    assert dict(values["runs"][0]["facts"])["made by"].startswith("laplace-kfac of ")


def test_a_temperature_has_a_point_only(place):
    out = place / "temperature"
    words = ("--method", "temperature", "--out", out)
    assert command("fit", place / "adam", *words) == 0
    values, settings = page(out, "--test")
    assert len(settings) == 1
    assert values["curves"] == []


@pytest.mark.parametrize("method", ["ensemble", "adam-average"])
def test_members_and_points_have_nothing_to_temper(method, place):
    values, settings = page(place / method)
    assert len(settings) == 1
    assert [c["title"] for c in values["curves"]] == ["Training loss"]


def test_a_gaussian_has_every_setting(place):
    values, settings = page(place / "ivon-lora")
    assert settings == EVERY
    assert values["answer"] == "class"


def test_an_encoder_that_answers_with_a_number(tmp_path):
    model, data = tiny_encoder.write_task(tmp_path, "stsb")
    config = TrainConfig(model, data=data, lora=LoraConfig(rank=2))
    values, settings = page(train(config, tmp_path / "run", "ivon-lora"))
    assert settings == EVERY
    assert values["answer"] == "number"
    assert "RMSE" in values["results"]["head"]


def test_text(tmp_path):
    model = write_text_model(tmp_path / "model", layers=1)
    file = write_rows(tmp_path / "rows.jsonl", ROWS)
    data = DataConfig("text", train_file=file, eval_file=file)
    lora = LoraConfig(rank=2, targets=("all-linear",))
    config = TrainConfig(str(model), data=data, lora=lora)
    values, settings = page(train(config, tmp_path / "run", "ivon-lora"))
    assert settings == EVERY
    row = dict(
        zip(values["results"]["head"], values["results"]["rows"][0], strict=True)
    )
    assert "interval" in row["tokens right %"]


def test_two_kinds_of_runs_side_by_side(place):
    for name in ("adam", "ivon-lora"):
        assert command("evaluate", place / name) == 0
    out = place / "both.html"
    folders = (place / "ivon-lora", place / "adam")
    assert command("report", *folders, *SETTINGS, "--out", out) == 0
    found = re.search(r'id="data">(.*?)</script>', out.read_text(), re.DOTALL)
    values = json.loads(found[1])
    assert values["alike"]
    assert [row[0] for row in values["differences"]["rows"]][-1] == "adam"
    differ = dict(
        zip(
            [row[0] for row in values["configuration"]["rows"]],
            values["configuration"]["differ"],
            strict=True,
        )
    )
    assert differ["method"] and not differ["model_fingerprint"]
