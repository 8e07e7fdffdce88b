"""Temperature scaling, against other ways to find the temperature."""

import json
import math
import shutil

import numpy as np
import pytest
import tiny
import tiny_encoder
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.evaluate import predictors_for
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.registry import predictor_of
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.predictors.temperature import Scaled, bound, fit_temperature, scaled
from ivon_jax.train.predictors.wanted import Wanted
from ivon_jax.train.runs.run import read_predictions
from ivon_jax.train.sources import read_run


def made_up(seed: int, count: int, classes: int, scale: float):
    """Log-probabilities, and labels drawn of them at another temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(count, classes))
    gumbel = rng.gumbel(size=logits.shape)
    labels = (logits / scale + gumbel).argmax(axis=1)
    return log_softmax(logits, axis=1).astype(np.float32), labels


def nll(beta: float, log_probs, labels) -> float:
    wide = log_softmax(beta * log_probs.astype(np.float64), axis=1)
    return -float(wide[np.arange(len(labels)), labels].mean())


@given(
    st.integers(0, 1000),
    st.integers(2, 200),
    st.integers(2, 6),
    st.sampled_from([0.3, 1.0, 4.0]),
)
def test_no_other_temperature_is_better(seed, count, classes, scale):
    log_probs, labels = made_up(seed, count, classes, scale)
    found = fit_temperature(log_probs, labels)
    best = minimize_scalar(
        lambda log_beta: nll(math.exp(log_beta), log_probs, labels),
        bounds=(-16, 16),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert nll(1 / found, log_probs, labels) <= best.fun + 1e-9
    grid = np.exp(np.linspace(-6, 6, 200))
    assert nll(1 / found, log_probs, labels) <= min(
        nll(beta, log_probs, labels) for beta in grid
    )


def test_it_is_that_of_scikit_learn():
    calibration = pytest.importorskip("sklearn.calibration")
    if not hasattr(calibration, "_TemperatureScaling"):
        pytest.skip("scikit-learn >= 1.8 has temperature scaling")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.frozen import FrozenEstimator

    class Known(ClassifierMixin, BaseEstimator):
        """Says of an example what it is told."""

        classes_ = np.arange(3)

        def fit(self, X, y):
            return self

        def decision_function(self, X):
            return X

        def __sklearn_is_fitted__(self):
            return True

        def predict(self, X):
            return X.argmax(axis=1)

    log_probs, labels = made_up(0, 300, 3, 2.0)
    peer = calibration.CalibratedClassifierCV(
        FrozenEstimator(Known()), method="temperature"
    ).fit(log_probs.astype(np.float64), labels)
    mine = Scaled(Mean(), fit_temperature(log_probs, labels))
    assert mine.temperature == pytest.approx(2, rel=0.3)
    np.testing.assert_allclose(
        np.exp(mine.finish(log_probs[None])[0]),
        peer.predict_proba(log_probs.astype(np.float64)),
        atol=1e-5,
    )


def test_it_scales_what_is_averaged_and_accuracy_stays():
    draws = np.stack([made_up(seed, 50, 4, 1.0)[0] for seed in range(3)])
    labels = made_up(0, 50, 4, 1.0)[1]
    predictor = scaled(Samples(3), draws, labels)
    (found,) = predictor.finish(draws)
    pooled = np.log(np.exp(draws.astype(np.float64)).mean(axis=0))
    wanted = log_softmax(pooled / predictor.temperature, axis=1)
    assert predictor == Scaled(Samples(3), fit_temperature(pooled, labels))
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.argmax(1), pooled.argmax(1))


@pytest.mark.parametrize(("right", "side"), [(True, -1), (False, 1)])
def test_what_no_temperature_is_best_for_ends_at_a_bound(right, side):
    log_probs, _ = made_up(0, 9, 3, 1.0)
    labels = log_probs.argmax(1) if right else log_probs.argmin(1)
    predictor = scaled(Mean(), log_probs[None], labels)
    assert bound(predictor.temperature) == side
    assert predictor.temperature == pytest.approx(math.exp(16 * side), rel=1e-6)
    (found,) = np.exp(predictor.finish(log_probs[None]))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    if right:  # one in 10 of the uniform: what is certain is not quite so
        assert predictor.uniform == 1 / 10
        np.testing.assert_allclose(np.sort(found, axis=1)[:, -1], 0.9 + 0.1 / 3, 1e-5)
        np.testing.assert_allclose(np.sort(found, axis=1)[:, 0], 0.1 / 3, 1e-5)
        np.testing.assert_array_equal(found.argmax(1), labels)
    else:
        assert predictor.uniform == 0
        np.testing.assert_allclose(found, 1 / 3, rtol=1e-4)


def test_impossible_classes_do_no_harm():
    log_probs = np.log(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]) + 1e-300)
    log_probs[np.array([0, 1]), np.array([1, 0])] = -np.inf
    temperature = fit_temperature(log_probs, np.array([0, 1, 1]))
    assert bound(temperature) == 0
    found = Scaled(Mean(), temperature).finish(log_probs[None])
    assert np.isfinite(found).all()


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_examples(count):
    with pytest.raises(ValueError, match=f"^temperature: {count} examples are too few"):
        fit_temperature(np.zeros((count, 2)), np.zeros(count, int))


# Runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that held examples out, whose labels are noisy."""
    place = tmp_path_factory.mktemp("tiny")
    model, data = tiny.write_task(place, layers=1)
    for name in ("train", "eval"):
        path = place / "data" / f"{name}.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for row in rows[::4]:
            row["label"] = tiny.LABELS[1 - tiny.LABELS.index(row["label"])]
        tiny.write_rows(path, rows)
    values = vars(data) | {"validation_examples": 24}
    config = TrainConfig(
        model,
        data=type(data)(**values),
        lora=LoraConfig(rank=2),
        hyper=IvonLoraHyper(steps=6, batch_size=8, learning_rate=0.3, gamma=20.0),
    )
    cli.train(config, place / "run")
    return place


def rows_of(out, name: str) -> list[dict]:
    return json.loads((out / f"evaluation-{name}.json").read_text())["rows"]


def test_every_setting_has_its_temperature_fitted_on_what_was_held_out(
    folder, capsys, tmp_path
):
    out = shutil.copytree(folder / "run", tmp_path / "run")
    # The same predictions of the held-out examples, scored without a temperature.
    for samples, tau in ((2, 1.0), (2, 4.0)):
        cli.evaluate(out, samples=samples, tau=tau)
        cli.evaluate(out, samples=samples, tau=tau, temperature=True, test=True)
    evaluated = read_run(out, "data=1")
    assert evaluated.split == "validation"
    labels = evaluated.problem.splits["validation"].labels
    assert len(labels) == 24
    seen = set()
    for name, kind in (
        ("2", Samples(2)),
        ("2-tau4.0", Samples(2, 4.0)),
        ("mean", Mean()),
    ):
        file = "2" if name == "mean" else name
        rows = rows_of(out, f"{file}-scaled-test")
        assert [row["predict"] for row in rows] == ["mean", "samples"] + 2 * [
            "temperature"
        ]
        (row,) = (row for row in rows if predictor_of(row) == kind)
        (other,) = (
            row
            for row in rows
            if row["predict"] == "temperature" and predictor_of(row).of == kind
        )
        held_out = read_predictions(out, name)[0].astype(np.float64)
        pooled = np.log(np.exp(held_out).mean(axis=0))
        temperature = fit_temperature(pooled, labels)
        assert other["temperature"] == pytest.approx(temperature, rel=1e-5)
        assert other["accuracy"] == row["accuracy"]
        seen.add(other["temperature"])
        (scores,) = read_predictions(out, f"{kind.name}-scaled-test")[0]
        wanted = log_softmax(
            np.log(np.exp(read_predictions(out, f"{kind.name}-test")[0]).mean(axis=0))
            / temperature,
            axis=1,
        )
        np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-5)
    assert len(seen) == 3
    assert ", T " in capsys.readouterr().out


def test_what_is_reported_is_not_fitted_on(folder, tmp_path):
    """Other labels of the reported examples, the same temperatures."""
    out = shutil.copytree(folder / "run", tmp_path / "run")
    evaluated = read_run(out, "data=1", ["validation", "test"], test=True)
    wanted = predictors_for(evaluated, Wanted(2, temperature=True))
    test = evaluated.problem.splits["test"]
    test.labels[:] = 1 - test.labels
    assert predictors_for(evaluated, Wanted(2, temperature=True)) == wanted


def test_separable_examples_are_said_to_be(folder, tmp_path, capsys):
    out = shutil.copytree(folder / "run", tmp_path / "run")
    evaluated = read_run(out, "data=1", ["validation", "test"], test=True)
    held_out = evaluated.problem.splits["validation"]
    (mean, *_) = predictors_for(evaluated, Wanted(2))
    cli.evaluate(out, samples=2)
    held_out.labels[:] = read_predictions(out, "mean")[0][0].argmax(1)
    capsys.readouterr()
    found = predictors_for(evaluated, Wanted(2, temperature=True))
    said = capsys.readouterr().err
    line = (
        "temperature of mean: predictions of the 24 held-out examples are all correct"
    )
    assert line in said and "mixed with 1/25 of the uniform distribution" in said
    (fitted,) = (p for p in found if isinstance(p, Scaled) and p.of == mean)
    assert fitted.uniform == 1 / 25


def test_what_was_held_out_must_still_be_the_same(folder, tmp_path):
    out = shutil.copytree(folder / "run", tmp_path / "run")
    path = folder / "data" / "train.jsonl"
    text = path.read_text()
    try:
        path.write_text(text.replace("big", "old"))
        with pytest.raises(ValueError, match="train_fingerprint is now"):
            cli.evaluate(out, temperature=True, test=True)
        path.unlink()
        cli.evaluate(out, samples=2, test=True)  # needs no held-out example
        message = "^validation_examples: were held out of the training data: .*no such"
        for words in ({}, {"temperature": True, "test": True}):
            with pytest.raises(ValueError, match=message):
                cli.evaluate(out, samples=2, **words)
    finally:
        path.write_text(text)


def test_a_run_that_held_nothing_out_needs_no_training_file(tmp_path, capsys):
    model, data = tiny.write_task(tmp_path, layers=1)
    hyper = IvonLoraHyper(steps=1, batch_size=8)
    config = TrainConfig(model, data=data, lora=LoraConfig(rank=2), hyper=hyper)
    cli.train(config, tmp_path / "run")
    data.train_file.unlink()
    cli.evaluate(tmp_path / "run", samples=2)
    assert "ivon-lora, 2 samples" in capsys.readouterr().out
    message = "^validation_examples: .* held out no training examples to fit on"
    with pytest.raises(ValueError, match=message):
        cli.evaluate(tmp_path / "run", temperature=True, test=True)


def test_held_out_examples_are_not_reported_too(folder):
    with pytest.raises(ValueError, match=r"^temperature: .* needs --test$"):
        cli.evaluate(folder / "run", temperature=True)


def test_an_adapter_has_no_held_out_examples(tmp_path):
    with pytest.raises(ValueError, match=r"^adapter: .* no --best or --temperature"):
        cli.evaluate(
            adapter=tmp_path, model="model", out=tmp_path / "out", temperature=True
        )


def test_numbers_have_no_temperature(tmp_path):
    model, data = tiny_encoder.write_task(tmp_path, "stsb")
    config = TrainConfig(
        model,
        data=type(data)(**vars(data) | {"validation_examples": 9}),
        lora=LoraConfig(rank=2),
        hyper=IvonLoraHyper(steps=1, batch_size=4, warmup=0),
    )
    cli.train(config, tmp_path / "run")
    with pytest.raises(ValueError, match="^temperature: only for classes"):
        cli.evaluate(tmp_path / "run", samples=2, temperature=True, test=True)
    assert not list((tmp_path / "run").glob("evaluation*"))
