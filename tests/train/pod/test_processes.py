"""One run by several real processes, which talk over the loopback interface."""

import contextlib
import dataclasses
import json
import shutil
import signal
import subprocess
from pathlib import Path

import chex
import children
import jax
import numpy as np
import process_child
import pytest
import tiny
from children import finish, free_address, taken, wait_for_steps
from safetensors.numpy import load_file

from ivon_jax.lora import LoraConfig
from ivon_jax.posterior import Posterior
from ivon_jax.train import cli, loop
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.pod.interrupts import Interrupted, Stop
from ivon_jax.train.pod.processes import ProcessConfig
from ivon_jax.train.pod.sharding import device_count
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import status
from ivon_jax.train.runs.run import BEST, METRICS, POSTERIOR
from ivon_jax.train.splits import settled

STEPS = 8


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=2)
    hyper = IvonLoraHyper(steps=STEPS, batch_size=8, learning_rate=0.01)
    return TrainConfig(model, data=data, lora=LoraConfig(rank=4), hyper=hyper)


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "run"
    config = resolve(dataclasses.replace(base, eval_steps=4), "custom", 64)
    loop.train(prepare(config), config, out)
    return out


def launch(
    base: TrainConfig,
    out: Path,
    count: int,
    devices: int,
    mesh: str,
    *more: object,
    only: int | None = None,
) -> list[subprocess.Popen]:
    """Starts the processes, or one of them, as the documentation's launcher does."""
    words = [
        *("--coordinator", free_address(), "--processes", count),
        *("--model", base.model, "--task", "custom", "--rank", 4),
        *("--train-file", base.data.train_file, "--eval-file", base.data.eval_file),
        *("--prompt", tiny.PROMPT, "--labels", *tiny.LABELS),
        *("--batch-size", 8, "--learning-rate", 0.01, "--checkpoint-steps", 3),
        *("--mesh", mesh, "--out", out, *more),
    ]
    return [
        children.start("train", *words, "--process", index, devices=devices)
        for index in (range(count) if only is None else [only])
    ]


def succeed(*args: object) -> None:
    crew = launch(*args)
    said = finish(*crew)
    assert [child.returncode for child in crew] == [0] * len(crew), said


def metric(out: Path, name: str) -> list[float]:
    lines = map(json.loads, (out / METRICS).read_text().splitlines())
    return [line[name] for line in lines if name in line]


def assert_same(out: Path, alone: Path, file: str = POSTERIOR) -> None:
    found, wanted = (Posterior.load(path / file) for path in (out, alone))
    for pair in (
        [metric(path, "loss") for path in (out, alone)],
        (found.mean, wanted.mean),
        (found.precision, wanted.precision),
    ):
        jax.tree.map(
            lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-7), *pair
        )


def test_two_processes_change_no_number(base, alone, tmp_path):
    out = tmp_path / "run"
    words = ["--steps", STEPS, "--eval-steps", 4, "--profile", "3:2"]
    succeed(base, out, 2, 2, "data=2,fsdp=2", *words)
    assert_same(out, alone)
    assert len(list((out / "profile").rglob("*.xplane.pb"))) == 1
    scores = [metric(path, "eval_nll") for path in (out, alone)]
    assert len(scores[0]) == 2
    np.testing.assert_allclose(*scores, rtol=1e-5)
    assert_same(out, alone, BEST)


def evaluating(run: Path, *samples: int) -> list[subprocess.Popen]:
    """Evaluates a run in two processes, each with its own number of samples."""
    words = ("evaluate", run, "--mesh", "fsdp=2,tensor=2", "--coordinator")
    words += (free_address(), "--processes", 2)
    return [
        children.start(*words, "--process", index, "--samples", count, devices=2)
        for index, count in enumerate(samples)
    ]


def test_two_processes_evaluate_as_one(alone, tmp_path):
    both = [tmp_path / "one", tmp_path / "two"]
    for out in both:
        shutil.copytree(alone, out)
    cli.evaluate(both[0], samples=2)
    said = finish(*(crew := evaluating(both[1], 2, 2)))
    assert [child.returncode for child in crew] == [0, 0], said
    assert "evaluate" in said[0] and "evaluate" not in said[1]
    names = [sorted(path.name for path in out.glob("*.safetensors")) for out in both]
    assert names[0] == names[1]
    for name in names[0]:
        one, two = (load_file(out / name) for out in both)
        chex.assert_trees_all_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_processes_do_not_evaluate_with_other_options(alone):
    said = finish(*(crew := evaluating(alone, 2, 3)))
    assert [child.returncode for child in crew] == [2, 2], said
    assert said[0].splitlines()[-1].startswith("ivon-jax: samples: is now 2, but")


@pytest.mark.slow
def test_a_sigterm_ends_an_evaluation(alone):
    crew = evaluating(alone, 300_000, 300_000)
    for line in crew[0].stderr:
        if line.startswith("evaluate"):  # the mean; the samples take minutes
            break
    crew[1].terminate()
    said = finish(*crew)
    assert crew[1].returncode == -signal.SIGTERM, said
    assert crew[0].returncode not in (0, None), said


@pytest.mark.parametrize(
    ("count", "mesh"),
    [
        (2, "fsdp=2,tensor=2"),
        pytest.param(4, "data=2,fsdp=2,tensor=2", marks=pytest.mark.slow),
    ],
)
def test_noise_and_tokens_are_the_same_and_shares_alone_are_read(count, mesh, tmp_path):
    address, devices = free_address(), device_count(mesh) // count
    crew = [
        children.start(
            *(address, count, index, mesh, tmp_path / "noise"),
            devices=devices,
            program=(process_child.__file__,),
        )
        for index in range(count)
    ]
    said = finish(*crew)
    assert [child.returncode for child in crew] == [0] * count, said
    many, all_texts = process_child.tokenise(7)
    wanted = process_child.draw("data=1") | many | process_child.tokenise(1)[0]
    seen = []
    for index in range(count):
        found = dict(np.load(tmp_path / f"noise-{index}.npz"))
        assert found.pop("share") == 1 / 2  # the axis fsdp lies across processes
        seen += (share := found.pop("seen").tolist())
        assert len(share) <= 2 * -(-7 // count)
        assert found.keys() == wanted.keys()
        for name, values in wanted.items():
            assert found[name].tobytes() == values.tobytes(), name
    assert sorted(seen) == sorted(all_texts)  # each by one process alone


@pytest.mark.slow
def test_four_processes_change_no_number(base, alone, tmp_path):
    out = tmp_path / "run"
    succeed(base, out, 4, 1, "data=2,tensor=2", "--steps", STEPS)
    assert_same(out, alone)


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_as_one(base, alone, tmp_path):
    out = tmp_path / "run"
    crew = launch(base, out, 2, 1, "fsdp=2", "--steps", 1_000_000)
    wait_for_steps(out, 3, *crew)
    crew[1].send_signal(signal.SIGTERM)
    said = finish(*crew)
    assert [child.returncode for child in crew] == [143, 143], said
    assert status.read(out) == (taken(out), 1_000_000, "interrupted")
    assert f"interrupted after step {taken(out)} of 1000000" in said[0]
    # As if it had been meant to end here: the rest of its steps is one.
    config = json.loads((out / "config.json").read_text())["config"]
    hyper = IvonLoraHyper(**config["hyper"])
    resumed = dataclasses.replace(base, hyper=hyper, checkpoint_steps=3)
    resumed = settled(resumed, prepare(resumed).task)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            loop.train(prepare(resumed), resumed, out, True)
        stop_after(patch, taken(out))
        with pytest.raises(Interrupted):
            loop.train(prepare(resumed), resumed, tmp_path / "one")
    assert_same(out, tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_others_and_a_restart_goes_on(
    victim, base, alone, tmp_path
):
    out = tmp_path / "run"
    crew = launch(base, out, 2, 1, "data=2", "--steps", 1_000_000)
    wait_for_steps(out, 4, *crew)
    crew[victim].kill()
    said = finish(*crew, timeout=180)
    other = 1 - victim
    assert crew[other].returncode not in (0, None)
    last = said[other].splitlines()[-1]
    assert last.startswith(f"ivon-jax: process {victim} died or cannot be reached")
    assert "stack trace" not in said[other]
    before = taken(out)
    crew = launch(base, out, 2, 1, "data=2", "--steps", 1_000_000, "--resume")
    wait_for_steps(out, before + 2, *crew)
    crew[0].send_signal(signal.SIGINT)
    said = finish(*crew)
    assert [child.returncode for child in crew] == [143, 143], said


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_nobody_meets_gives_up(index, base, tmp_path):
    words = ["--wait-seconds", 1, "--steps", 1]
    crew = launch(base, tmp_path / "run", 2, 1, "data=2", *words, only=index)
    (said,) = finish(*crew)
    assert crew[0].returncode not in (0, None)
    (line,) = said.splitlines()
    assert line.startswith("ivon-jax: coordinator: it did not answer, or not all")
    assert not (tmp_path / "run").exists()


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    class After(Stop):
        asked = 0

        def __call__(self):
            self.asked += 1
            return self.asked > steps

    patch.setattr(loop, "interruptible", lambda: contextlib.nullcontext(After()))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"processes": 2}, "processes: only with"),
        ({"coordinator": "auto", "process": 0}, "processes: only with"),
        ({"coordinator": "localhost:1"}, "coordinator: HOST:PORT needs"),
        (
            {"coordinator": "localhost:1", "processes": 2, "process": 2},
            r"process: 2 is not in \[0, 2\)",
        ),
    ],
)
def test_half_a_description_of_the_processes(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ProcessConfig(**fields)
