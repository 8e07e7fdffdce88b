"""Trackers: what they keep of a run, of a resumed one, and what they may not do."""

import dataclasses
import json
import math
import resource
import struct
import sys

import pytest
import tiny
from tiny_runs import STEPS, result, train, train_in_two

from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.runs.run import METRICS
from ivon_jax.train.runs.tracking import Jsonl, tracking
from ivon_jax.train.trackers import base, registry

CONFIG = {"model": "tiny", "hyper.steps": 4, "lora.targets": ["a"], "data.task": None}
# Other people's packages warn.
pytestmark = pytest.mark.filterwarnings("ignore")


def log(name, out, first, last):
    """Logs steps as a run does that resumes before the first of them."""
    out.mkdir(exist_ok=True)
    lines = (json.dumps({"step": step}) for step in range(1, first))
    (out / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with tracking([name], out, CONFIG, first - 1) as trackers:
        for step in range(first, last + 1):
            values = {"loss": 1 / step, "eval_nll": math.nan if step == 2 else 2.0}
            for tracker in trackers:
                tracker.log(step, values)


def tensorboard(out):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return {
        tag: {
            event.step: float(make_ndarray(event.tensor_proto))
            for event in events.Tensors(tag)
        }
        for tag in ("loss", "eval_nll")
    }


def records(path):
    """The payloads of a file in the format of LevelDB's logs, after 7 bytes."""
    data, place, payload = path.read_bytes(), 7, b""
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        payload += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield payload
            payload = b""


def wandb(out):
    from wandb.proto.wandb_internal_pb2 import Record

    found = {"loss": {}, "eval_nll": {}}
    ids = set()
    for path in sorted((out / "wandb").glob("offline-run-*/run-*.wandb")):
        ids.add(path.stem.removeprefix("run-"))
        for payload in records(path):
            record = Record()
            record.ParseFromString(payload)
            items = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            for name in found.keys() & items.keys():
                found[name][items["step"]] = float(items[name])
    assert ids == {json.loads((out / base.IDENTITIES).read_text())["wandb"]}
    return found


def mlflow(out):
    import mlflow

    (run,) = (client := mlflow.MlflowClient()).search_runs(
        [client.get_experiment_by_name("ivon-jax").experiment_id]
    )
    assert run.info.status == "FINISHED"
    assert run.data.params["hyper.steps"] == "4"
    return {
        name: {
            m.step: m.value for m in client.get_metric_history(run.info.run_id, name)
        }
        for name in ("loss", "eval_nll")
    }


def trackio(out):
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs("ivon-jax")
    found = {"loss": {}, "eval_nll": {}}
    for line in SQLiteStorage.get_logs("ivon-jax", run):
        for name in found.keys() & line.keys():
            found[name][line["step"]] = float(line[name])
    return found


@pytest.fixture
def offline(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where MLflow makes a folder
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


@pytest.mark.parametrize("read", [tensorboard, wandb, mlflow, trackio])
def test_a_resumed_run_is_one_run(read, tmp_path, offline):
    name = read.__name__
    pytest.importorskip(registry.TRACKERS[name].package)
    out = tmp_path / "run"
    log(name, out, 1, 3)
    log(name, out, 3, 4)  # step 3 is taken again
    found = read(out)
    assert found["loss"] == pytest.approx({step: 1 / step for step in (1, 2, 3, 4)})
    assert {k: v for k, v in found["eval_nll"].items() if k != 2} == {
        1: 2.0,
        3: 2.0,
        4: 2.0,
    }
    assert [json.loads(x)["step"] for x in (out / "metrics.jsonl").open()] == [
        1,
        2,
        3,
        4,
    ]


class Failing:
    """A tracker that fails at a step, and at its end."""

    package = "json"

    def __init__(self, out):
        self.seen = []

    def start(self, config, step):
        self.first = step

    def log(self, step, values):
        self.seen.append(step)
        if step == self.first + 2:
            raise ConnectionError("the server\nhas gone")

    def finish(self):
        raise ConnectionError("still gone")


class Refused(Failing):
    def start(self, config, step):
        raise RuntimeError("no key:\nlog in first")


@pytest.fixture
def config(tmp_path):
    model, data = tiny.write_task(tmp_path, layers=1)
    hyper = Hyper(steps=STEPS, warmup=1, batch_size=8)
    return TrainConfig(model, data=data, lora=LoraConfig(rank=2), hyper=hyper)


def test_training_goes_on_without_a_tracker(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry.TRACKERS, "failing", Failing)
    alone = train(config, tmp_path / "alone")
    capsys.readouterr()
    tracked = dataclasses.replace(config, trackers=("failing",))
    out = train_in_two(tracked, tmp_path / "run", monkeypatch, then=config)
    said = [line for line in capsys.readouterr().err.splitlines() if "failing" in line]
    assert said == [
        "failing has failed at step 2 and gets no more numbers; training continues:"
        " the server has gone"
    ]
    assert result(out) == result(alone)


def test_a_tracker_that_does_not_start_is_an_error(config, tmp_path, monkeypatch):
    monkeypatch.setitem(registry.TRACKERS, "refused", Refused)
    message = "^trackers: refused does not start: no key: log in first$"
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(config, trackers=("refused",)), tmp_path / "run")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["wandb"], "trackers: wandb is not installed; pip install ivon-jax[wandb]"),
        (["comet"], "trackers: 'comet' is not one of tensorboard, wandb, "),
        (2 * ["mlflow"], "trackers: mlflow is named twice"),
    ],
)
def test_what_is_refused_at_the_start(words, message, tmp_path, monkeypatch, capsys):
    real = base.importlib.util.find_spec

    def absent(name, *package):
        return None if name == "wandb" else real(name, *package)

    monkeypatch.setattr(base.importlib.util, "find_spec", absent)
    out = tmp_path / "run"
    line = ["ivon-jax", "train", "--out", str(out), "--trackers", *words]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_line_of_metrics_is_whole_or_an_error(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tracker = Jsonl(tmp_path)
    tracker.start({}, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{METRICS}: cannot be written"):
            tracker.log(1, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        tracker.finish()
