"""A trace of some steps, and the speed that a step's line shows."""

import dataclasses
import gzip
import json
import re

import jax
import pytest
import tiny
from tiny_runs import STEPS, result, train

from ivon_jax.lora import LoraConfig
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.options import steps_of
from ivon_jax.train.plan.chips import CHIPS
from ivon_jax.train.plan.plan import flops
from ivon_jax.train.problem import prepare
from ivon_jax.train.speed import Speed, chip_of


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    model, data = tiny.write_task(tmp_path_factory.mktemp("task"), layers=1)
    hyper = Hyper(steps=STEPS, warmup=1, batch_size=8)
    return TrainConfig(model, data=data, lora=LoraConfig(rank=2), hyper=hyper)


def test_a_trace_has_its_steps(config, tmp_path, capsys):
    alone = train(config, tmp_path / "alone")
    assert re.search(r"12/12 .* examples/s  \d+ tokens/s", capsys.readouterr().err)
    out = train(dataclasses.replace(config, profile="3:2"), tmp_path / "run")
    assert result(out) == result(alone)
    (path,) = (out / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = [event for event in events if event.get("name") == "train"]
    assert sorted(int(event["args"]["step_num"]) for event in steps) == [3, 4]
    (path,) = (out / "profile").rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    names = {
        event.name
        for plane in data.planes
        for line in plane.lines
        for event in line.events
    }
    assert "train" in names


@pytest.mark.parametrize("text", ["3", "3:", ":3", "0:1", "3:0", "12:2", "-1:2", "a:b"])
def test_steps_outside_the_run_are_refused_before_loading(text, config):
    with pytest.raises(ValueError, match=f"^profile: {text} is not"):
        resolve(dataclasses.replace(config, profile=text), "custom", 64)


def test_the_last_step_can_be_traced():
    assert list(steps_of("12:1", 12)) == [12]
    assert list(steps_of(None, 12)) == []


@pytest.mark.parametrize(
    ("kind", "chip"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),  # of a lower peak
        ("TPU v4", None),
        ("cpu", None),
    ],
)
def test_chips_by_the_names_of_jax(kind, chip):
    assert chip_of(kind) == (CHIPS[chip] if chip else None)


def test_the_share_of_a_chips_peak(config, monkeypatch):
    problem = prepare(config)
    config = resolve(config, "custom", 64)
    assert Speed.of(problem, config).share is None  # of a CPU

    class Chip:
        device_kind = "TPU v5 lite"

    monkeypatch.setattr(jax, "devices", lambda: [Chip()])
    speed = Speed.of(problem, config)
    lengths = problem.splits["train"].lengths
    assert speed.tokens == pytest.approx(8 * lengths.mean())
    work = flops(config, problem.model_config, round(lengths.mean()), 2)
    # Ten steps in two seconds.
    share = 100 * 5 * work / 197e12
    assert speed.text(10, 2.0).endswith(f"tokens/s  MFU {share:.1f} %")
