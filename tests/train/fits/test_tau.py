"""The choice of tau and prune on held-out examples."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_fits import command, one_line, train, write_task

from ivon_jax.train.fits.base import Work
from ivon_jax.train.fits.partial import Partial
from ivon_jax.train.fits.tau import Tau
from ivon_jax.train.objectives.head import HeadNumber
from ivon_jax.train.predictors.linearised import Linearised
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.runs import fitted
from ivon_jax.train.sources import Source, read_run


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tau")
    config = write_task(place)
    for method in ("adam", "ivon-lora"):
        train(config, place / method, method)
    return place


GRID = ("--taus", 0.1, 1, 10, "--prunes", 0, 0.1, "--samples", 3)


def test_it_chooses_what_evaluate_finds_best(place, tmp_path, capsys):
    source = shutil.copytree(place / "ivon-lora", tmp_path / "run")
    out = tmp_path / "out"
    assert command("fit", source, "--method", "tau", *GRID, "--out", out) == 0
    record = fitted.read(out)
    curve = record.numbers["curve"]
    pairs = [(tau, prune) for prune in (0, 0.1) for tau in (0.1, 1, 10)]
    assert [(point["tau"], point["prune"]) for point in curve] == pairs
    found = {}
    for tau, prune in pairs:
        words = ("--samples", 3, "--tau", tau, "--prune", prune)
        assert command("evaluate", source, *words) == 0
        name = Samples(3, float(tau), float(prune)).name
        path = source / f"evaluation-{name}.json"
        found[tau, prune] = json.loads(path.read_text())["rows"][-1]
    for point in curve:
        row = found[point["tau"], point["prune"]]
        for name in ("nll", "ece", "accuracy"):
            assert point[name] == pytest.approx(row[name], rel=1e-5)
    best = min(found, key=lambda pair: found[pair]["nll"])
    assert record.predictors == [Samples(3, *map(float, best))]
    assert (record.numbers["tau"], record.numbers["prune"]) == best
    assert len({point["nll"] for point in curve}) == 6
    capsys.readouterr()
    assert command("evaluate", out, "--test") == 0
    assert f"tau {best[0]:g}, prune {best[1]:g}" in capsys.readouterr().out


class Told(Source):
    """A source that predicts nothing: its scores are told."""

    def predict(self, split, pairs, chunk_size=1):
        assert split == "validation"
        return {pair: np.zeros((1, 24, 2), np.float32) for pair in pairs}


@pytest.mark.parametrize(
    ("by", "metrics", "chosen"),
    [
        ("nll", {(0.5, 0): 0.2, (4, 0.5): 0.1}, (4, 0.5)),
        ("ece", {(0.5, 0): 0.2, (4, 0.5): 0.1}, (4, 0.5)),
        ("accuracy", {(0.5, 0): 0.2, (4, 0.5): 0.1}, (0.5, 0)),
        # Equal ones: tau nearest to 1, then the smaller prune.
        ("nll", {(0.2, 0): 0.1, (4, 0): 0.1}, (4, 0)),
        ("accuracy", {(0.2, 0.5): 0.1, (4, 0): 0.1, (2, 0.5): 0.1}, (2, 0.5)),
        ("ece", {(2, 0.5): 0.1, (2, 0.0): 0.1, (0.5, 0.9): 0.1}, (2, 0.0)),
    ],
)
def test_the_rule(by, metrics, chosen, place, tmp_path, monkeypatch):
    from ivon_jax.train.fits import tau

    taus, prunes = ({pair[i] for pair in metrics} for i in (0, 1))
    worst = 9.0 if by != "accuracy" else -9.0

    def score(problem, method, pair, predictions, encoded):
        value = metrics.get((pair.tau, pair.prune), worst)
        return {"tau": pair.tau, "prune": pair.prune} | dict.fromkeys(
            tau.METRICS, value
        )

    monkeypatch.setattr(tau, "score", score)
    source = read_run(place / "ivon-lora", "data=1", ["validation"])
    how = Tau(tuple(map(float, taus)), tuple(map(float, prunes)), by, samples=1)
    work = Work(1, Partial(tmp_path, {}))
    (predictor,) = how.fit([Told(**vars(source))], work).predictors
    assert (predictor.tau, predictor.prune) == chosen


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        ("adam", (), "taus: adam has no posterior to temper"),
        ("ivon-lora", ("--taus", "0"), "taus: 0.0 is not a number > 0"),
        ("ivon-lora", ("--prunes", "1"), "prunes: 1.0 is not in [0, 1)"),
        ("ivon-lora", ("--samples", "0"), "samples: 0 is not >= 1"),
        ("ivon-lora", ("--taus",), "taus"),
    ],
)
def test_what_cannot_be_chosen(method, words, message, place, tmp_path, capsys):
    words = ("--method", "tau", *words, "--out", tmp_path / "out")
    assert command("fit", place / method, *words) == 2
    assert message in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_a_set_of_members_has_no_tau(place, tmp_path, capsys):
    sources = [place / method for method in ("adam", "ivon-lora")]
    out = tmp_path / "both"
    assert command("fit", *sources, "--method", "ensemble", "--out", out) == 0
    words = ("--method", "tau", "--samples", 2, "--out", tmp_path / "out")
    assert command("fit", out, *words) == 2
    assert "particles have no variance" in one_line(capsys)


def test_numbers_have_no_tau(place):
    source = read_run(place / "ivon-lora", "data=1", ["validation"])
    problem = dataclasses.replace(source.problem, objective=HeadNumber(128))
    source = dataclasses.replace(source, problem=problem)
    with pytest.raises(ValueError, match="tau: only for classes, .* a number"):
        Tau().check(source)


def test_a_laplace_fit_stays_linearised(place, tmp_path):
    """Its samples of adapters are other predictions, which underfit."""
    laplace, out = tmp_path / "laplace", tmp_path / "out"
    words = ("--method", "laplace-kfac", "--prior-precision", 1)
    assert command("fit", place / "adam", *words, "--out", laplace) == 0
    words = ("--method", "tau", "--taus", 0.1, 1, 10)
    assert command("fit", laplace, *words, "--out", out) == 0
    record = fitted.read(out)
    (chosen,) = record.predictors
    held_out = read_run(laplace, "data=1", ["validation"])
    one_by_one = [Linearised(tau=tau) for tau in (0.1, 1.0, 10.0)]
    found = held_out.predict("validation", one_by_one)
    labels = held_out.problem.splits["validation"].labels
    nlls = [-x[0, np.arange(len(labels)), labels].mean() for x in found.values()]
    curve = [point["nll"] for point in record.numbers["curve"]]
    assert curve == pytest.approx(nlls, rel=1e-4)
    assert chosen == one_by_one[int(np.argmin(nlls))]
    assert len(set(curve)) == 3
