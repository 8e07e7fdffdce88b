"""A step's numbers are fetched while later ones run, which nothing written shows."""

import dataclasses
import json
import signal

import pytest
import tiny
import tiny_runs
from tiny_runs import STEPS, result, scripted, train

from ivon_jax.lora import LoraConfig
from ivon_jax.train import loop
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.runs import recorder
from ivon_jax.train.runs.run import CHECKPOINTS, METRICS, POSTERIOR

# The least, beyond a checkpoint's, and a run's; the usual one is that of other tests.
LAGS = (1, pytest.param(5, marks=pytest.mark.slow), 100)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=1)
    return TrainConfig(
        model,
        data=dataclasses.replace(data, validation_examples=16),
        lora=LoraConfig(rank=2),
        hyper=IvonLoraHyper(steps=STEPS, warmup=1, batch_size=8, learning_rate=0.01),
        checkpoint_steps=4,
    )


def lines(out) -> list[dict]:
    return [json.loads(line) for line in (out / METRICS).read_text().splitlines()]


def step_numbers(out) -> list[int]:
    return [line["step"] for line in lines(out)]


def test_numbers_are_passed_on_in_order_and_late():
    seen = []
    fetching = recorder.Recorder(
        recorder.Counts(10, skipped=1),
        lambda counts, values: seen.append((counts, values)),
    )
    for i in range(6):
        fetching.push(tiny_runs.numbers(loss=i, finite=float(i not in (1, 2))))
        # The newest are left alone, for they may still be computed.
        assert len(seen) == max(i + 1 - recorder.LAG, 0)
    assert fetching.drain(lambda: {"eval_nll": 0.5}) == {"loss": 5.0, "eval_nll": 0.5}
    assert fetching.drain() == {}
    assert [values.pop("loss") for _, values in seen] == list(range(6))
    assert [values for _, values in seen] == 5 * [{}] + [{"eval_nll": 0.5}]
    found = [(c.step, c.skipped, c.skipped_in_row) for c, _ in seen]
    assert found == [
        (11, 1, 0),
        (12, 2, 1),
        (13, 3, 2),
        *((i, 3, 0) for i in (14, 15, 16)),
    ]
    assert fetching.counts == seen[-1][0]


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    return train(base, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize("lag", LAGS)
def test_a_lag_changes_nothing_written(lag, base, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "LAG", lag)
    out = train(base, tmp_path / "run")
    assert result(out) == result(alone)
    assert step_numbers(out) == list(range(1, STEPS + 1))


@pytest.mark.parametrize("lag", LAGS)
def test_scores_stand_on_the_lines_of_their_steps(lag, base, tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "LAG", lag)
    out = train(dataclasses.replace(base, eval_steps=5), tmp_path / "run")
    assert step_numbers(out) == list(range(1, STEPS + 1))
    assert [x["step"] for x in lines(out) if "eval_nll" in x] == [5, 10, 12]


@pytest.mark.parametrize(
    ("step", "lag"),
    [*(pytest.param(n, 5, marks=pytest.mark.slow) for n in (1, 6)), (4, 1), (6, 100)],
)
def test_an_interrupted_run_has_a_line_for_every_step(
    step, lag, base, alone, tmp_path, monkeypatch
):
    monkeypatch.setattr(recorder, "LAG", lag)
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        tiny_runs.stop_after(patch, step)
        with pytest.raises(Interrupted, match=f"after step {step} of {STEPS}"):
            train(base, out)
    assert step_numbers(out) == list(range(1, step + 1))
    assert (out / CHECKPOINTS / str(step)).is_dir()
    assert result(train(base, out, resume=True)) == result(alone)


@pytest.mark.parametrize(("first", "lag"), [(1, 1), (3, 5), (3, 100)])
def test_bad_steps_end_the_run_at_the_same_step(
    first, lag, base, tmp_path, monkeypatch, capsys
):
    """The first good steps, then bad ones only: at once, and in two goes."""
    monkeypatch.setattr(recorder, "LAG", lag)
    last = first - 1 + loop.MAX_BAD_STEPS
    bad = scripted(lambda step: step < first)
    message = f"^loss: not finite in {loop.MAX_BAD_STEPS} steps up to step {last};"
    config = dataclasses.replace(
        base, hyper=dataclasses.replace(base.hyper, steps=50), checkpoint_steps=None
    )
    for stop in (None, first + 4):
        out = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "train_step", bad)
            if stop is not None:
                with patch.context() as inner, pytest.raises(Interrupted):
                    tiny_runs.stop_after(inner, stop)
                    train(config, out)
                assert f"skipped {stop - first + 1} steps" in capsys.readouterr().err
                assert step_numbers(out) == list(range(1, stop + 1))
            with pytest.raises(ValueError, match=message):
                train(config, out, resume=True)
        # `metrics.jsonl` ends with the step that ended the run, however far it was.
        assert step_numbers(out) == list(range(1, last + 1))
        assert [x["loss"] for x in lines(out)] == [1.0] * (first - 1) + [None] * 10
        assert stop is not None or not (out / POSTERIOR).exists()


def test_skipped_steps_are_counted_over_an_interrupt(
    base, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(loop, "train_step", scripted(lambda step: step % 3 == 0))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        tiny_runs.stop_after(patch, 7, by=signal.SIGINT)
        train(base, tmp_path / "run")
    assert "skipped 5 steps" in capsys.readouterr().err
    train(base, tmp_path / "run", resume=True)
    assert "skipped 8 steps" in capsys.readouterr().err


def test_a_step_is_started_before_the_last_ones_are_looked_at(
    base, tmp_path, monkeypatch
):
    real, written = loop.train_step, []

    def counting(*args, **kwargs):
        written.append(len(lines(tmp_path / "run")))
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", counting)
    monkeypatch.setattr(loop.Checkpoints, "due", lambda self, step: False)
    train(base, tmp_path / "run")
    assert written == [max(step - recorder.LAG, 0) for step in range(STEPS)]
