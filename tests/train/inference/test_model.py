"""Prediction in Python: runs, adapters, encoders, scikit-learn's manner."""

import dataclasses
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import tiny
import tiny_encoder
import tiny_fits
import tiny_runs
from tiny_inference import command, lines, predicted, texts, write_run

import ivon_jax
from ivon_jax.train import loop
from ivon_jax.train.config import DataConfig, TrainConfig, resolve
from ivon_jax.train.inference.model import Setting
from ivon_jax.train.inference.results import ClassResults, NumberResults
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.predictors.temperature import Scaled
from ivon_jax.train.problem import prepare


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home):
    return write_run(home)


@pytest.fixture(scope="module")
def model(run):
    return ivon_jax.load(run)


def test_arrays_are_what_the_command_writes(model, run, tmp_path):
    rows = texts(40)
    found = model.predict(rows, samples=3, tau=2.0, prune=0.1)
    options = ("--samples", 3, "--tau", 2, "--prune", 0.1, "--per-sample")
    wanted = predicted(run, tmp_path / "a", rows, *options)
    assert isinstance(found, ClassResults)
    ids = [{"id": i} for i in range(1, 41)]
    listed = [a | b for a, b in zip(ids, found.rows(per_sample=True), strict=True)]
    assert listed == wanted
    assert found.predictions.tolist() == [row["prediction"] for row in wanted]
    np.testing.assert_allclose(found.draws.mean(axis=0), found.probs, atol=1e-6)
    assert found.draws.shape == (3, 40, 2)


def test_texts_are_rows_of_the_only_field(model):
    rows = texts(5)
    found = model.predict([row["text"] for row in rows], samples=2)
    np.testing.assert_array_equal(found.probs, model.predict(rows, samples=2).probs)
    one = model.predict([rows[0]["text"]], samples=2)
    np.testing.assert_allclose(one.probs[0], found.probs[0], atol=1e-5)


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([], {}, "rows: there are none"),
        ([{"words": "red"}], {}, "row 1: no field 'text'"),
        (["red", {"text": None}], {}, "row 2: field 'text' must be text"),
        ([None], {}, "row 1: None is neither text nor a row"),
        ("red", {}, "rows: is a text; give a list of texts"),
        ({"text": "red"}, {}, "rows: is a single row; give a list of rows"),
        (pandas.DataFrame({"text": ["red"]}), {}, "rows: is a table; give its to_dict"),
        ([{"text": math.nan}], {}, "row 1: field 'text' must be text, not nan"),
        (["red"], {"samples": -1}, "samples: -1 is not >= 0"),
        (["red"], {"samples": 0, "tau": 2.0}, "tau: only with samples"),
        (["big " * 200], {}, "row 1: 1 of 1 prompts are longer than the limit"),
    ],
)
def test_illegal_rows(rows, settings, message, model):
    with pytest.raises(ValueError, match=f"^{message}"):
        model.predict(rows, **settings)


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match=r"not a run \(config.json is missing\)"):
        ivon_jax.load(tmp_path)


def test_a_relative_model_is_of_the_working_directory(
    model, run, tmp_path, monkeypatch
):
    moved = shutil.copytree(run, tmp_path / "moved")
    values = json.loads((moved / "config.json").read_text())
    path = values["config"]["model"]
    values["config"]["model"] = Path(path).name
    (moved / "config.json").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"not found in {re.escape(str(tmp_path))}, "):
        ivon_jax.load(moved)
    monkeypatch.chdir(Path(path).parent)
    found = ivon_jax.load(moved).predict(["red"], samples=2)
    wanted = model.predict(["red"], samples=2)
    np.testing.assert_array_equal(found.probs, wanted.probs)


def test_a_point_has_only_a_mean(home, tmp_path):
    name, data = tiny.write_task(tmp_path, layers=1)
    hyper = Hyper(steps=2, warmup=1, batch_size=8)
    config = TrainConfig(name, data=data, method="adam", hyper=hyper)
    out = tiny_runs.train(config, tmp_path / "adam")
    model = ivon_jax.load(out)
    assert (model.predict(["red"]).mutual_information == 0).all()
    for settings in ({"samples": 3}, {"tau": 2.0}):
        with pytest.raises(ValueError, match=r"^(samples|tau): .*adam has only a mean"):
            model.predict(["red"], **settings)


def test_an_adapter_predicts_as_the_run_that_it_is_of(
    home, run, model, tmp_path, capsys
):
    adapter = tmp_path / "adapter"
    assert command("export", run, "--out", adapter) == 0
    rows = texts(9)
    file = tiny.write_rows(tmp_path / "in.jsonl", rows)
    task = ("--task", "custom", "--prompt", tiny.PROMPT, "--labels", *tiny.LABELS)
    of = ("--adapter", adapter, "--model", home / "model", *task)
    out = tmp_path / "out.jsonl"
    assert command("predict", *of, "--file", file, "--out", out) == 0
    wanted = model.predict(rows, samples=0)
    found = lines(out)
    np.testing.assert_allclose(
        [row["confidence"] for row in found], wanted.confidence, atol=1e-5
    )
    dev = tiny.write_rows(tmp_path / "dev.jsonl", tiny.rows(40, 3))
    assert command("calibrate", *of, "--file", dev, "--conformal", 0.2) == 0
    data = DataConfig(task="custom", prompt=tiny.PROMPT, labels=tiny.LABELS)
    loaded = ivon_jax.load(adapter, model=str(home / "model"), data=data)
    assert loaded.predict(rows).sets.shape == (9, 2)
    other = dataclasses.replace(data, prompt="{text} Answer:")
    with pytest.raises(ValueError, match="calibration.json: is for prompt Text: "):
        ivon_jax.load(adapter, model=str(home / "model"), data=other).predict(rows)
    with pytest.raises(ValueError, match="^model: .* is an adapter, whose base"):
        ivon_jax.load(adapter)
    capsys.readouterr()
    for words, message in (
        (of[2:], "directory: name a run, or an adapter with --adapter"),
        ((run, *of), "directory: name a run, or an adapter with --adapter"),
        ((*of[:2], *task), "model: needed with --adapter"),
        ((*of, "--best"), "best: only with a run"),
    ):
        assert command("predict", *words, "--file", file) == 2
        assert message in capsys.readouterr().err


def test_fitted_runs_predict_as_they_are_for(tmp_path, capsys):
    config = tiny_fits.write_task(tmp_path)
    runs = [
        tiny_fits.train(config, tmp_path / name, "ivon-lora", seed=seed)
        for seed, name in enumerate(("a", "b"))
    ]
    rows = texts(5)
    for method, chosen in (
        ("temperature", (runs[0], "--samples", 2)),
        ("ensemble", tuple(runs)),
        ("tau", (runs[0], "--samples", 2, "--taus", 4, "--prunes", 0.1)),
    ):
        out = ("--out", tmp_path / method)
        assert command("fit", *chosen, "--method", method, *out) == 0
    scaled = ivon_jax.load(tmp_path / "temperature")
    predictor = scaled.pipeline(Setting()).predictor
    assert isinstance(predictor, Scaled) and predictor.of == Samples(2)
    found, plain = scaled.predict(rows), ivon_jax.load(runs[0]).predict(rows, samples=2)
    np.testing.assert_allclose(found.draws, plain.draws, atol=1e-6)
    np.testing.assert_array_equal(found.mutual_information, plain.mutual_information)
    asked = scaled.predict(rows, samples=2)
    np.testing.assert_array_equal(asked.probs, found.probs)
    with pytest.raises(ValueError, match="has temperatures for .*2, not for 3"):
        scaled.predict(rows, samples=3)
    aside = scaled.predict(rows, samples=2, uncalibrated=True)
    np.testing.assert_allclose(aside.probs, plain.probs, atol=1e-6)
    powers = plain.probs ** (1 / predictor.temperature)
    wanted = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.probs, wanted, atol=1e-5)
    members = [ivon_jax.load(run).predict(rows, samples=0).probs for run in runs]
    ensemble = ivon_jax.load(tmp_path / "ensemble").predict(rows)
    np.testing.assert_allclose(ensemble.probs, np.mean(members, axis=0), atol=1e-5)
    tempered = ivon_jax.load(tmp_path / "tau")
    for setting, chosen in (
        (Setting(samples=3), Samples(3, 4.0, 0.1)),
        (Setting(tau=2.0), Samples(2, 2.0, 0.1)),
        (Setting(samples=3, prune=0.0), Samples(3, 4.0)),
        (Setting(samples=0), Mean(0.1)),
    ):
        assert tempered.pipeline(setting).predictor == chosen
    dev = tiny.write_rows(tmp_path / "dev.jsonl", tiny.rows(30, 3))
    words = ("calibrate", tmp_path / "temperature", "--file", dev)
    assert command(*words) == 2
    assert "temperature has one already" in capsys.readouterr().err
    assert command(*words, "--no-temperature", "--conformal", 0.2) == 0
    again = ivon_jax.load(tmp_path / "temperature").predict(rows)
    np.testing.assert_array_equal(again.probs, found.probs)
    assert again.sets.any(axis=1).all()


def test_the_python_of_the_docs_runs(model, monkeypatch):
    pytest.importorskip("mapie.classification")
    page = Path(__file__).parents[3] / "docs" / "predict.md"
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    monkeypatch.setattr(ivon_jax, "load", lambda folder: model, raising=False)
    rows = tiny.rows(40, seed=6)
    names = {
        "dev_texts": np.array([row["text"] for row in rows]),
        "dev_labels": np.array([row["label"] for row in rows]),
        "new_texts": np.array(["red", "one"]),
    }
    exec(code, names)
    assert names["included"].shape == (2, 2, 1)
    assert names["found"].draws.shape == (10, 2, 2)


@pytest.mark.parametrize("task", [pytest.param("mrpc", marks=pytest.mark.slow), "stsb"])
def test_encoders(task, tmp_path):
    name, data = tiny_encoder.write_task(tmp_path, task)
    hyper = Hyper(steps=3, warmup=1, batch_size=8)
    config = TrainConfig(name, data=data, hyper=hyper)
    config = resolve(config, "glue", 48)
    loop.train(prepare(config), config, tmp_path / "run", False)
    rows = lines(tmp_path / task / "validation.jsonl")
    asked = [{key: row[key] for key in ("sentence1", "sentence2")} for row in rows]
    model = ivon_jax.load(tmp_path / "run")
    found = model.predict(asked, samples=3)
    file = predicted(tmp_path / "run", tmp_path / "a", asked, "--samples", 3)
    assert [row | {"id": i} for i, row in enumerate(found.rows(), 1)] == file
    if task == "mrpc":
        assert isinstance(found, ClassResults) and found.probs.shape == (9, 2)
        assert set(found.predictions) <= {"no", "yes"}
    else:
        assert isinstance(found, NumberResults)
        np.testing.assert_allclose(found.predictions, found.draws.mean(axis=0))
        np.testing.assert_allclose(found.standard_deviation, found.draws.std(axis=0))
        assert (found.standard_deviation > 0).all()
        dev = tmp_path / task / "validation.jsonl"
        assert command("calibrate", tmp_path / "run", "--file", dev) == 2
    with pytest.raises(ValueError, match="needs rows with the fields sentence1, sent"):
        model.predict(["red"])


def test_scikit_learn_and_mapie_take_the_classifier(model):
    from sklearn.calibration import CalibrationDisplay
    from sklearn.metrics import get_scorer

    mapie = pytest.importorskip("mapie.classification")
    rows = tiny.rows(80, seed=5)
    asked, labels = np.array([r["text"] for r in rows]), [r["label"] for r in rows]
    classifier = model.classifier(samples=2)
    assert classifier.classes_.tolist() == list(tiny.LABELS)
    probs = classifier.predict_proba(asked)
    np.testing.assert_array_equal(probs, model.predict(list(asked), samples=2).probs)
    accuracy = np.mean(classifier.predict(asked) == np.array(labels))
    assert get_scorer("accuracy")(classifier, asked, labels) == accuracy
    indices = np.array([tiny.LABELS.index(label) for label in labels])
    CalibrationDisplay.from_predictions(indices, probs[:, 1])
    theirs = mapie.SplitConformalClassifier(classifier, confidence_level=0.8)
    theirs.conformalize(asked[:60], np.array(labels[:60]))
    _, sets = theirs.predict_set(asked[60:])
    scores = np.sort(1 - probs[np.arange(60), indices[:60]])
    wanted = 1 - probs[60:] <= scores[int(np.ceil(61 * 0.8)) - 1] + 1e-8
    np.testing.assert_array_equal(sets[:, :, 0], wanted)
