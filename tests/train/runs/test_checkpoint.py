"""A run that is stopped, killed or damaged ends as one that was left alone."""

import dataclasses
import json
import os
import random
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from tiny_runs import STEPS, result, stop_after, train, train_in_two

from ivon_jax.lora import LoraConfig
from ivon_jax.posterior import Posterior
from ivon_jax.train import loop
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.pod.interrupts import Interrupted, exit_code
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import identity, run, status
from ivon_jax.train.runs.checkpoint import SEAL, Checkpoints
from ivon_jax.train.runs.run import CHECKPOINTS, CONFIG, METRICS, POSTERIOR
from ivon_jax.train.sources import read_run

SHARED = {"steps": STEPS, "warmup": 1, "batch_size": 8, "learning_rate": 0.01}
HYPER = {"adam": AdamHyper(**SHARED), "ivon-lora": IvonLoraHyper(**SHARED)}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=2)
    return TrainConfig(
        model,
        data=data,
        lora=LoraConfig(rank=4, dropout=0.1),
        hyper=HYPER["ivon-lora"],
        checkpoint_steps=4,
        keep_checkpoints=3,
    )


MIXED = "data=2,fsdp=2,tensor=2"


@pytest.mark.parametrize(
    "by", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_the_status_follows_the_run(by, base, tmp_path, monkeypatch):
    seen, real = [], status.write
    monkeypatch.setattr(
        status, "write", lambda out, *now: (seen.append(now), real(out, *now))
    )
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 6, by=by)
        with pytest.raises(Interrupted) as stop:
            train(base, out)
    assert exit_code(stop.value) == 128 + by
    assert status.read(out) == (6, STEPS, "interrupted")
    train(base, out, resume=True)
    status.evaluated(out)
    assert [now[2] for now in seen if now[2] != "training"] == [
        "new",
        "interrupted",
        "trained",
        "evaluated",
    ]
    steps = [step for step, _, state in seen if state == "training"]
    assert steps == sorted(steps)
    assert {0, 6} < set(steps)
    assert json.loads((out / status.STATUS).read_text()) == {
        "step": STEPS,
        "of": STEPS,
        "state": "evaluated",
    }


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step":1,"of":2,"state":"done"}'])
def test_a_damaged_status_is_named(text, tmp_path):
    (tmp_path / status.STATUS).write_text(text)
    with pytest.raises(ValueError, match=f"^{tmp_path / status.STATUS}: "):
        status.read(tmp_path)


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory) -> Path:
    return train(base, tmp_path_factory.mktemp("alone") / "run")


@pytest.mark.parametrize(
    ("mesh", "method"),
    [
        (MIXED, "ivon-lora"),
        pytest.param(MIXED, "adam", marks=pytest.mark.slow),
        # Every method on one device: methods/test_common.py.
        pytest.param("data=1", "adam", marks=pytest.mark.slow),
        pytest.param("data=1", "ivon-lora", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_is_bit_identical(method, mesh, base, tmp_path, monkeypatch):
    config = dataclasses.replace(base, method=method, hyper=HYPER[method], mesh=mesh)
    wanted = train(config, tmp_path / "alone")
    found = train_in_two(config, tmp_path / "two", monkeypatch)
    assert result(found) == result(wanted)


def test_a_run_goes_on_on_another_mesh(base, alone, tmp_path, monkeypatch):
    split = dataclasses.replace(base, mesh=MIXED)
    out = train_in_two(split, tmp_path / "run", monkeypatch, then=base)
    found, wanted = (Posterior.load(path / POSTERIOR) for path in (out, alone))
    for part in ("mean", "precision"):
        jax.tree.map(
            lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-4, atol=1e-6),
            getattr(found, part),
            getattr(wanted, part),
        )
    assert json.loads((out / CONFIG).read_text())["config"]["mesh"] == "data=1"


def test_micro_batches_may_change_where_nothing_is_drawn_for_them(
    base, tmp_path, monkeypatch
):
    config = dataclasses.replace(base, lora=LoraConfig(rank=4, dropout=0.0))
    then = dataclasses.replace(config, accumulate=4)
    alone = train(config, tmp_path / "alone")
    out = train_in_two(config, tmp_path / "two", monkeypatch, then=then)
    found, wanted = (Posterior.load(path / POSTERIOR) for path in (out, alone))
    for part in ("mean", "precision"):
        jax.tree.map(
            lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-4, atol=1e-6),
            getattr(found, part),
            getattr(wanted, part),
        )


@pytest.mark.parametrize(
    ("adapters", "network", "legal"),
    [
        (0.0, 0.0, True),
        (0.1, 0.1, False),
        (0.0, 0.1, False),  # an encoder's own
        (0.1, None, False),  # of version 0.1.0, which did not record it
        (0.0, None, True),
    ],
)
def test_micro_batches_have_dropout_masks_of_their_own(
    adapters, network, legal, base, tmp_path
):
    metadata = {} if network is None else {"dropout": network}
    lora = LoraConfig(rank=4, dropout=adapters)
    before, now = (
        identity.describe(dataclasses.replace(base, lora=lora, accumulate=n), metadata)
        for n in (1, 2)
    )
    if legal:
        identity.check_same(tmp_path, before, now)
        return
    message = f"^accumulate: is now 2, but {tmp_path} was started with 1$"
    with pytest.raises(ValueError, match=message):
        identity.check_same(tmp_path, before, now)


def test_a_run_records_its_dropout(base, alone):
    recorded = json.loads((alone / CONFIG).read_text())["dropout"]
    assert recorded == base.lora.dropout == 0.1


def test_resuming_what_is_finished_changes_nothing(base, alone, tmp_path):
    out = Path(shutil.copytree(alone, tmp_path / "copy"))
    status.evaluated(out)
    assert result(train(base, out, resume=True)) == result(alone)
    assert status.read(out) == (STEPS, STEPS, "evaluated")


def test_a_damaged_status_is_refused_before_the_evaluation(alone, tmp_path):
    out = Path(shutil.copytree(alone, tmp_path / "copy"))
    (out / status.STATUS).write_text("{")
    before = sorted(out.iterdir())
    with pytest.raises(ValueError, match=f"^{out / status.STATUS}: "):
        read_run(out, "data=1")
    assert sorted(out.iterdir()) == before


def test_a_run_of_an_older_version_has_no_status(base, alone, tmp_path):
    out = Path(shutil.copytree(alone, tmp_path / "copy"))
    (out / status.STATUS).unlink()
    status.evaluated(out)
    assert status.read(out) is None
    assert result(train(base, out, resume=True)) == result(alone)
    assert status.read(out) == (STEPS, STEPS, "trained")


def test_a_checkpoints_lines_are_on_the_disk_before_it(base, tmp_path, monkeypatch):
    out = tmp_path / "run"
    kept, found, real, save = [0], [], os.fsync, Checkpoints.save

    def fsync(fd):
        real(fd)
        path = out / METRICS
        if path.exists() and os.path.samestat(os.fstat(fd), path.stat()):
            kept.append(path.read_bytes().count(b"\n"))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(
        Checkpoints,
        "save",
        lambda self, saved: (found.append((saved.step, kept[-1])), save(self, saved)),
    )
    train(base, out)
    assert found == [(step, step) for step in (1, 4, 8, STEPS, STEPS)]


@pytest.mark.parametrize("end", [b"", b'{"step": 9, "lo', b"\0\0\0\n", None])
def test_lines_that_a_failed_host_lost_are_said(end, base, alone, tmp_path, capsys):
    out = Path(shutil.copytree(alone, tmp_path / "copy"))
    shutil.rmtree(out / CHECKPOINTS / str(STEPS))
    path, kept = out / METRICS, 6 if end is not None else 0
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:kept]) + (end or b""))
    if end is None:
        path.unlink()
    posterior, lines = result(train(base, out, resume=True))
    wanted, whole = result(alone)
    assert (posterior, lines) == (wanted, whole[:kept] + whole[8:])
    message = f"{path}: the lines of {8 - kept} of the first 8 steps are lost\n"
    assert message in capsys.readouterr().err


def test_resuming_nothing_starts(base, alone, tmp_path):
    out = tmp_path / "new"
    out.mkdir()
    # What a kill leaves while the first file is written.
    (out / ".0123456789abcdef.tmp").write_text("{")
    assert result(train(base, out, resume=True)) == result(alone)
    assert not list(out.glob(".*"))


def test_the_newest_checkpoints_are_kept(alone):
    kept = sorted(int(path.name) for path in (alone / CHECKPOINTS).iterdir())
    assert kept == [4, 8, 12]


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_checkpoint_is_passed_over(seed, base, alone, tmp_path, capsys):
    out = Path(shutil.copytree(alone, tmp_path / "copy"))
    rng = random.Random(seed)
    newest = out / CHECKPOINTS / "12"
    victim = rng.choice([p for p in sorted(newest.rglob("*")) if p.is_file()])
    data = bytearray(victim.read_bytes())
    if seed % 3 == 0:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        victim.write_bytes(data)
    elif seed % 3 == 1:
        victim.write_bytes(data[: len(data) // 2])
    else:
        victim.unlink()
    shutil.rmtree(out / CHECKPOINTS / "4")
    assert result(train(base, out, resume=True)) == result(alone)
    (message,) = (
        line for line in capsys.readouterr().err.splitlines() if str(newest) in line
    )
    assert message.startswith(f"checkpoint {newest} ")
    assert message.endswith(": removed")


def test_without_a_good_checkpoint_it_starts_again(base, alone, tmp_path, capsys):
    out = Path(shutil.copytree(alone, tmp_path / "copy"))
    for seal in (out / CHECKPOINTS).rglob(SEAL):
        seal.unlink()
    assert result(train(base, out, resume=True)) == result(alone)
    assert capsys.readouterr().err.count("was not completed: removed") == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed: is now 1, but .* was started with 0"),
        ({"method": "adam", "hyper": HYPER["adam"]}, "method: is now adam"),
        ({"lora": LoraConfig(rank=2, dropout=0.1)}, "lora.rank: is now 2"),
        ({"accumulate": 2}, "accumulate: is now 2, but .* was started with 1"),
    ],
)
def test_another_run_is_refused(changes, message, base, alone, tmp_path):
    out = Path(shutil.copytree(alone, tmp_path / "copy"))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(ValueError, match=f"^{message}"):
        train(dataclasses.replace(base, **changes), out, resume=True)
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"seed": 1}, "seed"), ({"lora": LoraConfig(rank=2)}, "lora.rank")],
)
def test_checkpoints_of_another_run_are_refused(changes, name, base, alone, tmp_path):
    config = resolve(dataclasses.replace(base, **changes), "custom", 64)
    problem = prepare(config)
    run.start(tmp_path / "run", config, problem.run_metadata, resume=False)
    foreign = shutil.copytree(alone / CHECKPOINTS, tmp_path / "run" / CHECKPOINTS)
    with pytest.raises(ValueError, match=f"^{name}: is now .*, but {foreign} was"):
        loop.train(problem, config, tmp_path / "run", resume=True)


def test_other_data_are_refused(base, alone, tmp_path):
    out = Path(shutil.copytree(alone, tmp_path / "copy"))
    other = tiny.write_rows(tmp_path / "other.jsonl", tiny.rows(64, seed=9))
    shutil.copy(other, tmp_path / "train.jsonl")
    data = dataclasses.replace(base.data, train_file=tmp_path / "train.jsonl")
    config = json.loads((out / CONFIG).read_text())
    config["config"]["data"]["train_file"] = str(tmp_path / "train.jsonl")
    (out / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="^train_fingerprint: is now"):
        train(dataclasses.replace(base, data=data), out, resume=True)


@pytest.mark.parametrize(
    "name", ["checkpoint_steps", "checkpoint_minutes", "keep_checkpoints"]
)
def test_counts_out_of_range(name):
    with pytest.raises(ValueError, match=f"^{name}: 0 is not a number > 0"):
        TrainConfig(**{name: 0})
