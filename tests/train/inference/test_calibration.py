"""Calibration by the command line, and what predict makes of it."""

import json
import math
import shutil

import numpy as np
import pytest
import tiny
from tiny_inference import command, lines, predicted, texts, write_run

from ivon_jax.conformal import Conformal
from ivon_jax.ensemble import pool
from ivon_jax.selective import binomial_cdf
from ivon_jax.train.inference.calibration import Calibration, Targets, fit
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.predictors.temperature import Scaled, fit_temperature

SAMPLED = ("--samples", 3, "--tau", 0.1)
ALL = ("--conformal", 0.1, "--method", "aps", "--max-risk", 0.3, "--delta", 0.1)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home):
    return write_run(home)


@pytest.fixture(scope="module")
def dev(home):
    return tiny.write_rows(home / "dev.jsonl", noisy(200, seed=11))


def noisy(count, seed):
    """Labelled rows, some of them wrong, so that not all can be predicted."""
    rows, rng = tiny.rows(count, seed), np.random.default_rng(seed)
    wrong = rng.random(count) < 0.1
    return [
        row | {"label": "yes" if row["label"] == "no" else "no"} if flip else row
        for row, flip in zip(rows, wrong, strict=True)
    ]


@pytest.fixture
def calibrated(run, dev, tmp_path, capsys):
    own = tmp_path / "calibrated"
    shutil.copytree(run, own)
    assert command("calibrate", own, "--file", dev, *ALL, *SAMPLED) == 0
    out = capsys.readouterr().out
    assert "prediction sets miss at most 0.1 of the right classes: aps" in out
    assert "at most 0.3 of what is accepted is wrong" in out
    assert f"wrote {own / 'calibration.json'}" in out
    return own


def test_predict_applies_what_calibrate_found(calibrated, run, dev, tmp_path):
    found = Calibration.read(calibrated / "calibration.json")
    assert isinstance(found.predictor, Scaled) and found.examples == 200
    assert found.predictor.of == Samples(3, tau=0.1)
    rows = texts(60)
    plain = predicted(run, tmp_path / "plain", rows, *SAMPLED)
    now = predicted(calibrated, tmp_path / "now", rows)
    same = predicted(calibrated, tmp_path / "same", rows, *SAMPLED)
    assert now == same
    for before, row in zip(plain, now, strict=True):
        # p^(1/T), normalised
        powers = np.array(list(before["probabilities"].values()), np.float64)
        powers **= 1 / found.predictor.temperature
        probs = np.array(list(row["probabilities"].values()))
        np.testing.assert_allclose(probs, powers / powers.sum(), atol=1e-5)
        assert row["mutual_information"] == before["mutual_information"]
        assert row["accepted"] == (row["confidence"] > found.abstention.confidence)
        assert row["prediction"] in row["set"]
        assert set(row["set"]) <= set(tiny.LABELS)
    left = predicted(calibrated, tmp_path / "left", rows, *SAMPLED, "--uncalibrated")
    assert left == plain


def test_the_guarantees_hold_for_new_rows(calibrated, tmp_path):
    """Their own binomial bounds at 5 sigma; the model is right in nine of ten."""
    rows = noisy(400, seed=12)
    found = predicted(calibrated, tmp_path / "new", rows)
    pairs = list(zip(rows, found, strict=True))
    missed = np.mean([row["label"] not in out["set"] for row, out in pairs])
    assert missed < 0.1 + 5 * math.sqrt(0.09 * (1 / 400 + 1 / 160))
    wrong = [row["label"] != out["prediction"] for row, out in pairs if out["accepted"]]
    assert len(wrong) > 20
    assert np.mean(wrong) < 0.3 + 5 * math.sqrt(0.21 / len(wrong))


def test_temperature_alone_takes_all_examples(run, dev, tmp_path, capsys):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    assert command("calibrate", own, "--file", dev, "--samples", 0) == 0
    found = Calibration.read(own / "calibration.json")
    assert found.conformal is found.abstention is None
    assert found.predictor.of == Mean()
    assert f"temperature {found.predictor.temperature:.4g}" in capsys.readouterr().out
    (row,) = predicted(own, tmp_path / "one", texts(1))
    assert "set" not in row and "accepted" not in row


def test_a_temperature_at_its_bound_is_noted(run, home, tmp_path, capsys):
    own = tmp_path / "run"
    shutil.copytree(run, own)
    rows = texts(8)
    for row, found in zip(rows, predicted(own, tmp_path / "out", rows), strict=True):
        row["label"] = found["prediction"]
    file = tiny.write_rows(home / "right.jsonl", rows)
    capsys.readouterr()
    assert command("calibrate", own, "--file", file) == 0
    said = capsys.readouterr().err
    assert "predictions of the 8 held-out examples are all correct" in said
    assert "T is the bound 1.13e-07, mixed with 1/9" in said


def draws(n, samples=3, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(samples, n, classes)) + 2 * rng.normal(size=(n, classes))
    shifted = logits - np.logaddexp.reduce(logits, axis=2, keepdims=True)
    labels = (shifted.mean(axis=0) + rng.gumbel(size=(n, classes))).argmax(axis=1)
    return shifted.astype(np.float32), labels


def test_parts_that_fit_and_parts_that_guarantee_are_disjoint():
    log_probs, labels = draws(300)
    noise = np.random.default_rng(1).random(300)
    wanted = Targets(True, "raps", 0.2, 0.3, 0.1)
    found = fit(wanted, Samples(3), log_probs, labels, noise, {})
    first = np.random.default_rng(0).permutation(300)[:60]
    rest = np.setdiff1d(np.arange(300), first)
    temperature = fit_temperature(pool(log_probs[:, first]), labels[first])
    assert found.predictor == Scaled(Samples(3), temperature)
    probs = np.exp(pool(found.predictor.finish(log_probs[:, rest])))
    rule = Conformal.fit("raps", 0.2, probs, labels[rest], noise[rest])
    assert found.conformal == rule
    accepted = probs.max(axis=1) > found.abstention.confidence
    errors = (probs.argmax(axis=1) != labels[rest])[accepted].sum()
    np.testing.assert_allclose(found.abstention.accepted, accepted.mean())
    assert binomial_cdf(int(errors), int(accepted.sum()), 0.3) <= 0.1


def test_a_file_is_read_as_it_was_written(tmp_path):
    log_probs, labels = draws(100)
    wanted = Targets(True, "lac", 0.2, 0.4, 0.1)
    found = fit(wanted, Samples(3), log_probs, labels, np.zeros(100), {"task": "x"})
    found.write(tmp_path / "calibration.json")
    assert Calibration.read(tmp_path / "calibration.json") == found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--samples", 2), "samples: {file} is for 3, not 2; calibrate again, or add"),
        (("--samples", 0), "samples: {file} is for 3, not 0; calibrate again"),
        (("--tau", 1), "tau: {file} is for 0.1, not 1.0; calibrate again"),
        (("--prune", 0.5), "prune: {file} is for 0.0, not 0.5; calibrate again"),
    ],
)
def test_other_settings_are_refused(
    options, message, calibrated, dev, tmp_path, capsys
):
    out = tmp_path / "out.jsonl"
    words = ("predict", calibrated, "--file", dev, "--out", out, *options)
    assert command(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message.format(file=calibrated / "calibration.json") in line
    assert command(*words, "--uncalibrated") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"of": {"posterior": "0"}}, "is for posterior 0, not "),
        ({"of": {"task": "sst2"}}, "is for task sst2, not custom; calibrate again"),
        ({"of": {"labels": ["a", "b"]}}, "is for labels ['a', 'b'], not ['no', 'yes']"),
        ({"of": {"prompt": "{x}"}}, "is for prompt {x}, not Text: {text} Answer:"),
        ({"predictor": {"predict": "x"}}, "not a calibration: KeyError: 'x'"),
        ({"conformal": {"alpha": 2}}, "not a calibration: "),
        ("[]", "not a calibration: "),
        ("", "not a calibration: "),
    ],
)
def test_other_calibrations_are_refused(
    change, message, calibrated, dev, tmp_path, capsys
):
    path = calibrated / "calibration.json"
    if isinstance(change, str):
        path.write_text(change)
    else:
        values = json.loads(path.read_text())
        for name, part in change.items():
            values[name] |= part
        path.write_text(json.dumps(values))
    out = tmp_path / "out.jsonl"
    assert command("predict", calibrated, "--file", dev, "--out", out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: " in line and message in line
    assert not out.exists()


def test_another_posterior_is_refused(calibrated, home, dev, tmp_path, capsys):
    other = calibrated / "posterior.safetensors"
    from ivon_jax import load_posterior

    posterior, metadata = load_posterior(other)
    posterior.temper(2.0).save(other, **metadata)
    out = tmp_path / "out.jsonl"
    assert command("predict", calibrated, "--file", dev, "--out", out) == 2
    assert "calibration.json: is for posterior " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("count", "options", "message"),
    [
        (0, (), "dev.jsonl: no rows for task 'custom'"),
        (1, (), "temperature: 1 examples are too few to fit it"),
        (
            20,
            ("--conformal", 0.05),
            "conformal: 0.05 needs 19 examples or more, not",
        ),
        (20, ("--conformal", 0.0), "conformal: 0.0 is not in (0, 1)"),
        (60, ("--max-risk", 0.05), "0.05 needs 59 examples or more, not 48 of 60; one"),
        (
            *(58, ("--max-risk", 0.05, "--no-temperature")),
            "max_risk: 0.05 at delta 0.05 needs 59 examples or more, not 58",
        ),
        (9, ("--max-risk", 0.5, "--delta", 1.0), "delta: 1.0 is not in (0, 1)"),
        (9, ("--no-temperature",), "temperature: there is nothing else to calibrate"),
        (100, ("--max-risk", 0.05), "max_risk: at no threshold is an error of at most"),
    ],
)
def test_too_little_is_one_line(count, options, message, run, tmp_path, capsys):
    rows = noisy(count, 1)
    if count == 100:  # labels by chance
        rows = [row | {"label": int(i % 2)} for i, row in enumerate(rows)]
    dev = tiny.write_rows(tmp_path / "dev.jsonl", rows)
    words = ("--samples", 0, *options)
    assert command("calibrate", run, "--file", dev, *words) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x[:9] == "ivon-jax:"]
    assert len(errors) == 1 and message in errors[0]
    assert not (run / "calibration.json").exists()


def test_the_lowest_certain_risk_is_named_and_can_be_had():
    found, labels = draws(200)

    def fitted(risk):
        targets = Targets(temperature=False, max_risk=risk)
        return fit(targets, Mean(), found[:1], labels, np.zeros(200), {})

    with pytest.raises(ValueError, match="the lowest that is certain is") as error:
        fitted(0.05)
    lowest = float(str(error.value).rpartition(" ")[2])
    assert 0.05 < lowest < 1
    assert fitted(lowest).abstention.errors <= lowest
    with pytest.raises(ValueError, match=f"the lowest that is certain is {lowest}$"):
        fitted(lowest - 0.001)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "red"}, "dev.jsonl:1: no field 'label'; the fields are 'text'"),
        ({"text": "red", "label": "positive"}, "dev.jsonl:1: label 'positive' is not"),
        ({"label": "no"}, "dev.jsonl:1: no field 'text'"),
    ],
)
def test_rows_of_another_task_are_refused(row, message, run, tmp_path, capsys):
    dev = tiny.write_rows(tmp_path / "dev.jsonl", [row])
    assert command("calibrate", run, "--file", dev) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert lines(dev) == [row]


def test_training_examples_are_refused(run, home, capsys):
    file = home / "data" / "train.jsonl"
    assert command("calibrate", run, "--file", file, "--samples", 0) == 2
    assert f"file: {run} was trained on these examples" in capsys.readouterr().err


def test_training_examples_among_others_are_noted(run, home, tmp_path, capsys):
    own = shutil.copytree(run, tmp_path / "run")
    train = [tuple(row.values()) for row in lines(home / "data" / "train.jsonl")]
    rows = tiny.rows(30, 5, longest=40)
    new = [row for row in rows if tuple(row.values()) not in train]
    for seen in (0, 7):
        mixed = [dict(zip(("text", "label"), row, strict=True)) for row in train[:seen]]
        file = tiny.write_rows(tmp_path / f"{seen}.jsonl", mixed + new)
        assert command("calibrate", own, "--file", file, "--samples", 0) == 0
        note = f"file: {seen} of {len(mixed + new)} rows are training examples"
        assert (note in capsys.readouterr().err) == bool(seen)
