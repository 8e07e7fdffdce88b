"""Scoring a run on held-out examples as it goes, and keeping the best of it."""

import dataclasses
import itertools
import json
import signal
import sys

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from tiny_runs import STEPS, result, train_in_two
from tiny_runs import train as train_run

from ivon_jax.kinds import load_posterior
from ivon_jax.lora import LoraConfig
from ivon_jax.models.peft_io import RUN
from ivon_jax.posterior import Posterior
from ivon_jax.train import cli, loop
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import status
from ivon_jax.train.runs.run import BEST, CHECKPOINTS, METRICS, POSTERIOR
from ivon_jax.train.splits import find_examples, find_task

# By step; not a number is never best, and of equals it is the newer one.
SCRIPT = {3: 0.7, 6: 0.2, 9: float("nan"), 12: 0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=1)
    return TrainConfig(
        model,
        data=dataclasses.replace(data, validation_examples=16),
        lora=LoraConfig(rank=4),
        hyper=IvonLoraHyper(steps=STEPS, warmup=1, batch_size=8, learning_rate=0.01),
        eval_steps=3,
        keep_checkpoints=1,
    )


@pytest.fixture
def scripted(monkeypatch) -> list:
    """Scores by the script, and the adapters that they were asked for."""
    seen = []
    scores = iter(SCRIPT.values())

    def validate(problem, encoded, posterior, streams):
        seen.append(jax.tree.map(np.asarray, posterior.mean))
        return {"eval_nll": next(scores)}

    monkeypatch.setattr(loop, "validate", validate)
    return seen


def test_the_best_state_is_kept(base, scripted, tmp_path):
    out = train_run(base, tmp_path / "run")
    best = Posterior.load(out / BEST)
    jax.tree.map(np.testing.assert_array_equal, best.mean, scripted[1])
    assert best.precision
    kept = sorted(int(path.name) for path in (out / CHECKPOINTS).iterdir())
    assert kept == [6, 12]
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    found = {x["step"]: x["eval_nll"] for x in lines if "eval_nll" in x}
    assert found == {3: 0.7, 6: 0.2, 9: None, 12: 0.5}


def test_exports_tell_the_steps_that_were_reached(
    base, scripted, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, loop, "train_step", 8)
        with pytest.raises(Interrupted):
            train_run(base, out)
    lines = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    scored = [line for line in lines if "eval_nll" in line]
    lowest = min(scored, key=lambda line: line["eval_nll"])
    steps = {(): lines[-1]["step"], ("--best",): lowest["step"]}
    assert list(steps.values()) == [8, 6]
    for how, step in steps.items():
        place = tmp_path / f"step-{step}"
        assert command("export", out, *how, "--out", place) == 0
        settings = json.loads((place / RUN).read_text())
        assert settings["config"]["hyper"]["steps"] == STEPS
        ess = settings["config"]["hyper"]["ess"]
        assert ess == pytest.approx(settings["config"]["hyper"]["gamma"] * 64**0.5)
        assert load_posterior(place / POSTERIOR)[1] == {"step": step, "ess": ess}
        assert (settings["step"], settings["ess"]) == (step, ess)
        posterior = Posterior.load(place / POSTERIOR)
        assert posterior.prior_precision.keys() == posterior.precision.keys() != set()


def size(problem, encoded, posterior, streams):
    """Adapters grow, so the first ones scored are the best."""
    squares = (float(np.square(leaf).sum()) for leaf in jax.tree.leaves(posterior.mean))
    return {"eval_nll": sum(squares)}


@pytest.mark.parametrize("step", [2, 8])
def test_a_resumed_run_knows_the_best(step, base, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "validate", size)
    wanted = train_run(base, tmp_path / "alone")
    found = train_in_two(base, tmp_path / "two", monkeypatch, step=step)
    assert result(found) == result(wanted)
    assert (found / BEST).read_bytes() == (wanted / BEST).read_bytes()
    kept = sorted(int(path.name) for path in (found / CHECKPOINTS).iterdir())
    assert kept == [3, 12]


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    return train_run(base, tmp_path_factory.mktemp("scored") / "run")


def interrupt(patch, owner, name: str, call: int = 1, times: int = 1) -> None:
    """Send SIGINT, once or twice, in one of the calls of a function."""
    real, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*args, **kwargs):
        if next(calls) == call:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    patch.setattr(owner, name, interrupted)


@pytest.mark.parametrize(
    ("owner", "name", "call", "done"),
    [
        (loop.run, "start", 1, 0),
        pytest.param(loop._Training, "first_state", 1, 0, marks=pytest.mark.slow),
        (loop, "train_step", 1, 1),
        (loop, "validate", 2, 6),
        pytest.param(
            loop.Checkpoints, "restore_best", 1, STEPS, marks=pytest.mark.slow
        ),
        (Posterior, "save", 1, STEPS),
    ],
)
def test_an_interrupt_at_any_time_leaves_a_posterior(
    owner, name, call, done, base, run, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, call)
        with pytest.raises(Interrupted, match=f"after step {done} of {STEPS}"):
            train_run(base, out)
    state = "trained" if done == STEPS else "interrupted"
    assert status.read(out) == (done, STEPS, state)
    assert Posterior.load(out / POSTERIOR).precision
    if done == 0:
        assert result(train_run(base, out, resume=True)) == result(run)
    elif done == STEPS:
        assert result(out) == result(run)


@pytest.mark.parametrize(("name", "call"), [("train_step", 5), ("validate", 2)])
def test_a_second_interrupt_stops_at_once_and_loses_no_checkpoint(
    name, call, base, run, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        interrupt(patch, loop, name, call, times=2)
        with pytest.raises(KeyboardInterrupt) as stop:
            train_run(base, out)
    assert stop.type is KeyboardInterrupt
    assert signal.getsignal(signal.SIGINT) is handler
    assert not (out / POSTERIOR).exists()
    assert result(train_run(base, out, resume=True)) == result(run)


def test_scores_are_those_of_the_mean(base, run):
    problem = prepare(base)
    held, streams = problem.splits["validation"], Streams.from_seed(0)
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    scores = [line["eval_nll"] for line in lines if "eval_nll" in line]
    assert len(scores) == 4
    for file, wanted in ((POSTERIOR, scores[-1]), (BEST, min(scores))):
        posterior = Posterior.load(run / file)
        log_probs = predict(problem, held, posterior, Mean(), streams)[0]
        right = log_probs[np.arange(16), held.labels]
        assert -right.mean() == pytest.approx(wanted, rel=1e-5)


def command(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code
    return 0


def test_the_best_is_judged_by_other_examples(base, run, capsys):
    assert command("evaluate", run, "--best", "--test", "--samples", 2) == 0
    found = json.loads((run / "evaluation-2-best-test.json").read_text())
    assert found["eval_examples"] == 40
    problem = prepare(base, ("test",))
    test, posterior = problem.splits["test"], Posterior.load(run / BEST)
    log_probs = predict(problem, test, posterior, Mean(), Streams.from_seed(0))[0]
    right = log_probs.argmax(-1) == test.labels
    assert found["rows"][0]["accuracy"] == pytest.approx(right.mean())
    written = load_file(run / "predictions-mean-best-test.safetensors")
    np.testing.assert_allclose(written["log_probs"][0], log_probs, rtol=1e-5)


def test_a_score_on_what_selected_the_best_is_noted(run, capsys):
    for words, noted in (
        ((), False),
        (("--best", "--test"), False),
        (("--best",), True),
    ):
        assert command("evaluate", run, "--samples", 2, *words) == 0
        said = capsys.readouterr().err
        assert ("selected on the examples that are scored" in said) == noted


def test_an_evaluation_leaves_the_others_alone(run):
    kept = {}
    for options in ((), ("--best",), ("--test",), ("--tau", 2)):
        assert command("evaluate", run, "--samples", 3, *options) == 0
        found = [*run.glob("evaluation-3*"), *run.glob("predictions-3*")]
        now = {path: path.read_bytes() for path in found}
        assert len(now) == len(kept) + 2
        assert kept.items() <= now.items()
        kept = now


def test_the_test_examples_are_the_tasks_own(base):
    task = find_task(base.data)
    held = find_examples(task, base.data, 0, ("train", "validation"))
    data = dataclasses.replace(base.data, validation_examples=None)
    whole = find_examples(task, data, 0, ("train", "test"))
    assert find_examples(task, base.data, 0, ("train", "test")) == {
        "train": held["train"],
        "test": whole["test"],
    }
    assert sorted(held["train"] + held["validation"]) == sorted(whole["train"])


def test_a_run_without_scores_has_no_best(base, tmp_path, capsys):
    config = dataclasses.replace(base, eval_steps=None)
    hyper = dataclasses.replace(base.hyper, steps=1, warmup=0)
    out = train_run(dataclasses.replace(config, hyper=hyper), tmp_path / "run")
    assert not (out / BEST).exists()
    for words in (("evaluate", out), ("export", out, "--out", tmp_path / "peft")):
        assert command(*words, "--best") == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith(f"ivon-jax: best: {out} has no {BEST}")
