"""A queue of runs: gone on with after an interruption, read when it is finished."""

import dataclasses
import json
import signal

import pytest
import tiny
from tiny_runs import result, stop_after

from ivon_jax.lora import LoraConfig
from ivon_jax.train import loop, queue
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.evaluate import evaluate
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import prepare
from ivon_jax.train.queue import Job, run_all
from ivon_jax.train.report.tables import label
from ivon_jax.train.runs import status
from ivon_jax.train.sources import read_run

STEPS, STOP = 4, 2
PREDICTORS = {
    "adam": (Mean(),),
    "ivon-lora": (Mean(), Samples(1, tau=2.0), Samples(2)),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=1)
    return TrainConfig(
        model,
        data=data,
        lora=LoraConfig(rank=4, dropout=0.1),
        hyper=Hyper(steps=STEPS, warmup=1, batch_size=8),
    )


@pytest.fixture(scope="module")
def problem(base):
    return prepare(base)


def job(base, method, name=None, **changes) -> Job:
    hyper = Hyper(steps=STEPS, warmup=1, batch_size=8)
    config = dataclasses.replace(base, method=method, hyper=hyper, **changes)
    return Job(name or method, resolve(config, "custom", 64), scored(method))


def scored(method):
    return lambda posterior, own: PREDICTORS[method]


@pytest.fixture(scope="module")
def jobs(base) -> list[Job]:
    return [job(base, "adam"), job(base, "ivon-lora", "noisy")]


@pytest.fixture(scope="module")
def finished(jobs, problem, tmp_path_factory):
    """A queue that was never stopped, and its rows."""
    root = tmp_path_factory.mktemp("queue")
    return root, run_all(jobs, problem, root)


def stopped(jobs, problem, root, monkeypatch):
    """Stop the second job of a queue before its end."""
    real, calls = loop.train_step, []

    def step(*args, **kwargs):
        calls.append(None)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        run_all(jobs[:1], problem, root)
        patch.setattr(loop, "train_step", step)
        stop_after(patch, STOP)
        with pytest.raises(Interrupted, match=f"^noisy .* step {STOP} of {STEPS}$"):
            run_all(jobs, problem, root)
    assert len(calls) == STOP  # none of the first job's


@pytest.fixture
def no_work(monkeypatch):
    """Training a step or predicting anything is an error."""

    def never(*args, **kwargs):
        raise AssertionError("this was done before")

    monkeypatch.setattr(loop, "train_step", never)
    monkeypatch.setattr(queue, "evaluate", never)


def test_an_interrupted_queue_ends_as_one_left_alone(
    jobs, problem, finished, tmp_path, monkeypatch
):
    stopped(jobs, problem, tmp_path, monkeypatch)
    root, rows = finished
    assert run_all(jobs, problem, tmp_path) == rows
    for one in jobs:
        assert result(tmp_path / one.name) == result(root / one.name)
        for path in (root / one.name).glob("predictions-*"):
            assert (tmp_path / one.name / path.name).read_bytes() == path.read_bytes()


def test_a_finished_queue_is_only_read(jobs, problem, finished, no_work):
    root, rows = finished
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert run_all(jobs, problem, root) == rows
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_what_was_evaluated_on_the_way_is_not_the_result(
    jobs, problem, finished, tmp_path, monkeypatch
):
    stopped(jobs, problem, tmp_path, monkeypatch)
    _, wanted = finished
    early = evaluate(
        read_run(tmp_path / "noisy", "data=1"),
        PREDICTORS["ivon-lora"],
        tmp_path / "noisy",
    )
    assert [row["nll"] for row in early] != [row["nll"] for row in wanted["noisy"]]
    assert run_all(jobs, problem, tmp_path) == wanted


def test_a_signal_after_the_last_step_stops_the_queue(
    jobs, problem, finished, tmp_path, monkeypatch
):
    real, (_, rows) = loop._Training.write, finished

    def write(*args):
        signal.raise_signal(signal.SIGINT)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "write", write)
        with pytest.raises(Interrupted, match=f"^adam .* step {STEPS} of {STEPS}$"):
            run_all(jobs, problem, tmp_path)
    assert status.read(tmp_path / "adam") == (STEPS, STEPS, "trained")
    assert not (tmp_path / "noisy").exists()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", None)
        assert run_all(jobs[:1], problem, tmp_path) == {"adam": rows["adam"]}


@pytest.mark.parametrize(
    "predictors", [(Mean(), Samples(1, tau=3.0), Samples(2)), (Mean(), Samples(2))]
)
def test_a_finished_run_is_evaluated_anew_in_other_ways(
    predictors, jobs, problem, tmp_path, monkeypatch
):
    run_all(jobs[1:], problem, tmp_path)
    monkeypatch.setattr(loop, "train_step", None)
    other = jobs[1]._replace(predictors=lambda posterior, own: predictors)
    (rows,) = run_all([other], problem, tmp_path).values()
    assert [row["tau"] for row in rows] == [p.fields()["tau"] for p in predictors]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"rows": 1}', '{"rows": [{}]}'])
def test_a_damaged_result_is_made_again(text, jobs, problem, tmp_path, monkeypatch):
    rows = run_all(jobs[:1], problem, tmp_path)
    monkeypatch.setattr(loop, "train_step", None)
    path = tmp_path / "adam" / "evaluation-mean.json"
    path.write_text(text)
    assert run_all(jobs[:1], problem, tmp_path) == rows
    assert json.loads(path.read_text())["rows"] == rows["adam"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "^seed: is now 1, but .*noisy was started with 0$"),
        ({"lora": LoraConfig(rank=2)}, "^lora.rank: is now 2, but .*noisy was"),
    ],
)
def test_a_folder_of_other_settings_is_refused_before_any_training(
    changes, message, base, problem, finished, tmp_path, no_work
):
    root, _ = finished
    (tmp_path / "noisy").symlink_to(root / "noisy")
    others = [job(base, "adam", **changes), job(base, "ivon-lora", "noisy", **changes)]
    with pytest.raises(ValueError, match=message):
        run_all(others, problem, tmp_path)
    assert not (tmp_path / "adam").exists()


def test_a_folder_of_something_else_is_refused(jobs, problem, tmp_path, no_work):
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="noisy: holds another run"):
        run_all(jobs, problem, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["noisy"]


def test_rows_are_named_by_their_job(finished):
    _, rows = finished
    found = [label(row) for part in rows.values() for row in part]
    assert found[:2] == ["adam", "noisy@mean"]
    assert found[3] == "noisy, 2 samples, tau 1, prune 0"
    assert {row["method"] for row in rows["noisy"]} == {"ivon-lora"}
