"""A search: which points it tries, that it goes on, and what it writes."""

import json
import sys
import threading

import pytest
import tiny
from tiny_runs import stop_after

from ivon_jax.train import cli, loop
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.tune import study
from ivon_jax.train.tune.space import Range, Values, grid_of, read_space
from ivon_jax.train.tune.study import STUDY, search

pytest.importorskip("optuna")
# A thread's warnings are those of all threads.
pytestmark = pytest.mark.filterwarnings("ignore")

RANGE = {"learning_rate": Range(1e-5, 1e-1, log=True), "rank": Range(1, 64, log=False)}
GRID = read_space(["rank=4,8", "learning_rate=1e-4,1e-3"], TrainConfig(method="adam"))


def tpe(out, run, trials=8, seed=0):
    return search(RANGE, run, out, "s", trials=trials, seed=seed)


def grid(out, run):
    return search(GRID, run, out, "g", points=grid_of(GRID), seed=0)


def square(point, watch):
    return (point["rank"] - 20) ** 2 + abs(point["learning_rate"] - 1e-3)


def never(point, watch):
    raise AssertionError("this was done before")


class Failing:
    """Fails at one call, as a process that is ended would."""

    def __init__(self, at: int) -> None:
        self.calls, self.at = [], at

    def __call__(self, point, watch):
        self.calls.append(point)
        if len(self.calls) == self.at:
            raise KeyboardInterrupt
        return square(point, watch)


def test_points_are_those_of_the_seed(tmp_path):
    runs = [tpe(tmp_path / name, square) for name in "ab"]
    assert runs[0] == runs[1]
    other = tpe(tmp_path / "c", square, seed=1)
    assert other[0].point != runs[0][0].point
    for trial in runs[0]:
        assert 1e-5 <= trial.point["learning_rate"] <= 1e-1
        assert type(trial.point["rank"]) is int
        assert trial.score == square(trial.point, None)


def test_more_trials_find_better_points(tmp_path):
    tried = tpe(tmp_path, square, trials=40)
    assert min(t.score for t in tried) < min(t.score for t in tried[:10])


def test_a_finished_search_tries_nothing(tmp_path):
    first = tpe(tmp_path, square)
    assert tpe(tmp_path, never) == first
    assert tpe(tmp_path, square, trials=9)[:8] == first


def test_an_interrupted_search_tries_the_point_again(tmp_path):
    failing = Failing(at=3)
    with pytest.raises(KeyboardInterrupt):
        tpe(tmp_path, failing)
    found = tpe(tmp_path, failing)
    assert failing.calls[2] == failing.calls[3]
    assert [t.state for t in found].count("complete") == 8
    assert [t.state for t in found].count("fail") == 1


def test_a_grid_is_tried_once(tmp_path):
    failing = Failing(at=2)
    with pytest.raises(KeyboardInterrupt):
        grid(tmp_path, failing)
    found = grid(tmp_path, failing)
    done = [tuple(t.point.values()) for t in found if t.state == "complete"]
    assert sorted(done) == [(r, x) for r in (4, 8) for x in (1e-4, 1e-3)]
    assert len(failing.calls) == 5
    grid(tmp_path, never)


def test_points_that_are_worse_on_the_way_are_given_up(tmp_path):
    calls = []

    def run(point, watch):
        calls.append(point)
        for step in (1, 2):
            watch(step, 9.0 if len(calls) == 7 else 1.0)
        return 1.0

    found = tpe(tmp_path, run)
    assert [t.state for t in found] == 6 * ["complete"] + ["pruned", "complete"]
    assert found[6].score == 9.0


def test_several_share_a_study(tmp_path):
    calls, both = [], threading.Barrier(2)

    def run(point, watch):
        if len(calls) < 2:
            calls.append(point)
            both.wait(60)  # each of them is at work
        return square(point, watch)

    workers = [threading.Thread(target=tpe, args=(tmp_path, run)) for _ in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = tpe(tmp_path, never)
    assert {t.state for t in found} == {"complete"}
    assert 8 <= len(found) <= 9
    assert len({tuple(t.point.values()) for t in found}) == len(found)


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "alive"])
def test_a_point_of_another_process_is_waited_for(tmp_path, monkeypatch, ended):
    """If it ended, the point is tried here; if not, it is left to it."""
    tried = []

    def run(point, watch):
        if not tried:  # the other process takes the second point meanwhile
            others.append(optuna.load_study(study_name="s", storage=storage))
            taken.append(others[0].ask().number)
        tried.append(point["x"])
        return 0.0

    def sleep(seconds):
        if ended and taken:
            others[0].tell(taken.pop(), state=optuna.trial.TrialState.FAIL)
            others[0].enqueue_trial({"x": 2})

    optuna, others, taken = study.optuna(), [], []
    storage = f"sqlite:///{tmp_path / STUDY}"
    monkeypatch.setattr(study.time, "sleep", sleep)
    found = study.search(
        {"x": Values((1, 2))},
        run,
        tmp_path,
        "s",
        points=[{"x": 1}, {"x": 2}],
        seed=0,
    )
    assert tried == ([1, 2] if ended else [1])
    assert [t.state for t in found].count("running") == (not ended)


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    """Options of every search here."""
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=1)
    words = ["--model", model, "--task", "custom", "--steps", "3", "--batch-size", "8"]
    words += ["--train-file", str(data.train_file), "--eval-file", str(data.eval_file)]
    words += ["--prompt", data.prompt, "--labels", *data.labels, "--samples", "2"]
    return [*words, "--validation-examples", "16"]


def command(name, *words):
    """Runs a command; returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", name, *map(str, words)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


def test_a_search_goes_on_and_is_only_read(line, tmp_path, monkeypatch, capsys):
    words = [*line, "--method", "adam", "--sampler", "grid", "--out", tmp_path]
    words += ["--search", "learning_rate=0.001,0.01"]
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert command("tune", *words) == 143
    assert command("tune", *words) == 0
    printed = capsys.readouterr().out
    rows = {}
    for rate in ("0.001", "0.01"):
        name = f"adam-learning_rate-{rate}"
        found = json.loads((tmp_path / name / "evaluation-mean.json").read_text())
        rows[name] = found["rows"][0]["nll"]
    best = min(rows, key=rows.get)
    table = [line.split("|")[1].strip() for line in printed.splitlines() if "|" in line]
    assert table[2:] == sorted(rows, key=rows.get)
    config = tmp_path / "best-adam.json"
    rate = json.loads(config.read_text())["hyper"]["learning_rate"]
    assert best == f"adam-learning_rate-{rate}"
    assert (tmp_path / "tune-adam.png").stat().st_size > 1000
    states = [
        t["state"] for t in json.loads((tmp_path / "trials-adam.json").read_text())
    ]
    assert sorted(states) == ["complete", "complete", "fail"]
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", None)
        assert command("tune", *words) == 0
    assert capsys.readouterr().out == printed
    assert command("train", "--config", config, "--out", tmp_path / "best") == 0
    again = (tmp_path / "best" / "posterior.safetensors").read_bytes()
    assert again == (tmp_path / best / "posterior.safetensors").read_bytes()


def test_another_search_says_what_it_replaces(line, tmp_path, capsys):
    words = [*line, "--method", "adam", "--sampler", "grid", "--out", tmp_path]
    said = f"replaces the files of another search of adam in {tmp_path}"
    for values, other in (("0.01", False), ("0.01", False), ("0.02", True)):
        assert command("tune", *words, "--search", f"learning_rate={values}") == 0
        assert (said in capsys.readouterr().err) == other
        (trial,) = json.loads((tmp_path / "trials-adam.json").read_text())
        assert trial["point"] == {"learning_rate": float(values)}


def test_the_score_is_of_the_average_over_samples(line, tmp_path, capsys):
    words = [*line, "--method", "ivon-lora", "--trials", 2, "--out", tmp_path]
    words += ["--search", "gamma=1..100:log", "rank=2,4", "--objective", "accuracy"]
    assert command("tune", *words, "--eval-steps", 2) == 0
    for trial in json.loads((tmp_path / "trials-ivon-lora.json").read_text()):
        point = "-".join(f"{k}-{v}" for k, v in trial["point"].items())
        file = tmp_path / f"ivon-lora-{point}" / "evaluation-2.json"
        row = json.loads(file.read_text())["rows"][-1]
        assert (row["predict"], row["samples"]) == ("samples", 2)
        assert trial["score"] == 1 - row["accuracy"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--search", "gamma=1"], "search: 'gamma' is none of"),
        (["--search", "rank=0,1"], "rank: 0 is not >= 1"),
        (["--search", "rank=1", "--trials", "0"], "trials: 0 is not"),
        (["--search", "rank=1", "--samples", "0"], "samples: 0 is not"),
        (["--search", "rank=1,2", "--sampler", "grid", "--trials", "3"], "trials: a g"),
        (
            ["--search", "rank=1", "--validation-examples=None"],
            "validation_examples: n",
        ),
        (["--search", "rank=1", "--train-examples", "9999"], "cannot take 9999"),
        (["--search", "rank=1", "--model", "./none"], "./none"),
    ],
)
def test_what_is_refused(words, message, line, tmp_path, capsys):
    out = tmp_path / "new"
    assert command("tune", *line, "--method", "adam", "--out", out, *words) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert message in found
    assert not out.exists()


def test_a_folder_of_something_else_is_refused(line, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    words = [*line, "--method", "adam", "--search", "rank=1", "--out", tmp_path]
    assert command("tune", *words) == 2
    assert "holds another run" in capsys.readouterr().err
    assert not (tmp_path / STUDY).exists()


def test_without_optuna(line, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = [*line, "--method", "adam", "--search", "rank=1", "--out", tmp_path]
    assert command("tune", *words) == 2
    assert "pip install ivon-jax[tune]" in capsys.readouterr().err
