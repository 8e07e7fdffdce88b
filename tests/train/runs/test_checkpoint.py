"""A run that is stopped, killed or damaged ends as one that was left alone."""

import contextlib
import dataclasses
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path

import children
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from children import finish, kill, taken, wait_for_steps
from tiny_runs import STEPS, result, stop_after, train, train_in_two

from ivon_jax.lora import LoraConfig
from ivon_jax.posterior import Posterior
from ivon_jax.train import loop
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.pod.interrupts import Interrupted, exit_code
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import checkpoint, run, status
from ivon_jax.train.runs.checkpoint import SEAL, Checkpoints, Saved
from ivon_jax.train.runs.run import CHECKPOINTS, CONFIG, POSTERIOR
from ivon_jax.train.sources import read_run

MIXED = "data=2,fsdp=2,tensor=2"
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


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
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
        ("data=1", "adam"),
        ("data=1", "ivon-lora"),
        (MIXED, "ivon-lora"),
        pytest.param(MIXED, "adam", marks=pytest.mark.slow),
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
        run.describe(dataclasses.replace(base, lora=lora, accumulate=n), metadata)
        for n in (1, 2)
    )
    if legal:
        run.check_same(tmp_path, before, now)
        return
    message = f"^accumulate: is now 2, but {tmp_path} was started with 1$"
    with pytest.raises(ValueError, match=message):
        run.check_same(tmp_path, before, now)


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


def test_the_only_checkpoint_stays_until_the_next_is_sealed(tmp_path, monkeypatch):
    state = {"x": jnp.arange(3.0)}

    def killed(folder: Path) -> None:
        assert folder.name == "2"
        assert folder.is_dir()  # written, and not yet known to be whole
        raise OSError("killed")

    with Checkpoints(tmp_path, None, 10, keep=1) as checkpoints:
        checkpoints.save(Saved(1, state, {}))
    monkeypatch.setattr(checkpoint, "_seal", killed)
    with (
        pytest.raises(OSError, match="killed"),
        Checkpoints(tmp_path, None, 10, keep=1) as checkpoints,
    ):
        checkpoints.save(Saved(2, state, {}))
    monkeypatch.undo()
    with Checkpoints(tmp_path, None, 10, keep=1) as checkpoints:
        found = checkpoints.restore(state, lambda notes: None)
        assert found is not None
        assert found.step == 1
        checkpoints.save(Saved(2, state, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


@pytest.mark.parametrize("seed", range(6))
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
    message = capsys.readouterr().err.splitlines()[1]
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


STATE = {"x": jnp.arange(3.0), "y": (jnp.ones((4, 5), jnp.bfloat16), jnp.int32(7))}


def save(folder: Path, *steps: int) -> None:
    with Checkpoints(folder, None, 10, keep=5) as checkpoints:
        for step in steps:
            checkpoints.save(Saved(step, STATE, {"step": step}))


def test_saving_leaves_no_thread_behind(tmp_path):
    save(tmp_path / "first", 1)  # what Orbax keeps for all of a process
    before = threading.active_count()
    save(tmp_path / "second", *range(1, 6))
    assert threading.active_count() <= before


def restored(folder: Path) -> Saved | None:
    with Checkpoints(folder, None, 10, keep=5) as checkpoints:
        return checkpoints.restore(STATE, lambda notes: None)


@pytest.mark.parametrize(
    "name",
    [
        *("[x]", "a[b", "a]b", "x*", "x?", "a\\b", "a b", "é", "a#b", "a%20b", "{a,b}"),
        *("~x", "$HOME", "a|b", "a:b", "'q\"", "..x", ".hidden", "7", "a\nb", "<x>"),
        *("gs:", "file:", "\udcff", "x.orbax-checkpoint-tmp", "commit_success.txt"),
    ],
)
def test_a_path_is_refused_or_its_checkpoints_restore(name, tmp_path):
    folder = tmp_path / name / "checkpoints"
    try:
        save(folder, 1)
    except ValueError as error:
        assert "no checkpoints can be kept in a path with" in str(error)
        assert not folder.exists()
        assert any(mark in name for mark in ("[", "*", "?", "\\", ":", "\udcff"))
    else:
        found = restored(folder)
        assert found is not None
        assert (found.step, found.metadata) == (1, {"step": 1})
        jax.tree.map(np.testing.assert_array_equal, found.state, STATE)


def test_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(Path("run/checkpoints"), 1, 2)
    found = restored(Path("run/checkpoints"))
    assert found is not None
    assert found.step == 2


def test_the_working_directorys_name_counts_too(tmp_path, monkeypatch):
    (tmp_path / "[x]").mkdir()
    monkeypatch.chdir(tmp_path / "[x]")
    with pytest.raises(ValueError, match=r"path with \["):
        run.check_out(Path("run"), resume=False)


def lose(folder: Path) -> None:
    """What Orbax leaves where it does not find the files that it is to merge."""
    (folder / "state" / "manifest.ocdbt").unlink()
    shutil.rmtree(folder / "state" / "d")


def other_arrays(folder: Path) -> None:
    shutil.rmtree(folder / "state")
    with Checkpoints(folder.parent / "other", None, 10, keep=1) as checkpoints:
        checkpoints.save(Saved(1, STATE | {"x": jnp.arange(4.0)}, {}))
    shutil.copytree(folder.parent / "other" / "1" / "state", folder / "state")
    shutil.rmtree(folder.parent / "other")


@pytest.fixture
def collected():
    """Collects what a test leaves behind while that test's filters hold."""
    yield
    gc.collect()


# Orbax leaves coroutines behind that nobody awaits.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("read_bytes", [1, 30, 2**30])
@pytest.mark.parametrize("damage", [lose, other_arrays])
def test_what_does_not_restore_is_not_sealed(damage, read_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "READ_BYTES", read_bytes)
    save(tmp_path, 1)
    real = checkpoint._verify

    def verify(folder: Path, shapes) -> None:
        monkeypatch.setattr(checkpoint, "_verify", real)
        damage(folder)
        real(folder, shapes)

    monkeypatch.setattr(checkpoint, "_verify", verify)
    with pytest.raises(OSError, match="cannot be written .*last good one is kept"):
        save(tmp_path, 2)
    assert not (tmp_path / "2" / SEAL).exists()
    found = restored(tmp_path)
    assert found is not None
    assert found.step == 1


def no_arrays(folder: Path) -> None:
    shutil.rmtree(folder / "state")


# Orbax leaves coroutines behind that nobody awaits.
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("damage", [lose, other_arrays, no_arrays])
def test_sealed_but_unreadable_is_one_line(damage, tmp_path):
    """As another version of Orbax, or of this library, may have left it."""
    save(tmp_path, 1, 2)
    damage(tmp_path / "2")
    checkpoint._seal(tmp_path / "2")
    with pytest.raises(OSError, match="2: the checkpoint cannot be read") as error:
        restored(tmp_path)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "2")
    found = restored(tmp_path)
    assert found is not None
    assert found.step == 1


# Real processes.

LONG = 60


def process(
    base: TrainConfig, out: Path, *, steps: int = LONG, limit: str = ""
) -> subprocess.Popen:
    options = {
        "model": base.model,
        "task": "custom",
        "train-file": base.data.train_file,
        "eval-file": base.data.eval_file,
        "prompt": tiny.PROMPT,
        "rank": 4,
        "steps": steps,
        "batch-size": 8,
        "checkpoint-steps": 3,
        "out": out,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    words += ["--labels", *tiny.LABELS, "--resume"]
    return children.start("train", *words, limit=limit)


def test_sigterm_saves_and_exits_143(base, tmp_path):
    out = tmp_path / "run"
    child = process(base, out)
    wait_for_steps(out, 2, child)
    child.send_signal(signal.SIGTERM)
    (stderr,) = finish(child)
    assert child.returncode == 143, stderr
    done = taken(out)
    assert 2 <= done < LONG
    assert f"interrupted after step {done} of {LONG}; the same command" in stderr
    assert (out / CHECKPOINTS / str(done) / SEAL).exists()
    assert status.read(out) == (done, LONG, "interrupted")


@pytest.mark.parametrize("gone", ["stdout", "stderr", "both"])
def test_readers_may_go_away(gone, base, tmp_path):
    out = tmp_path / "run"
    child = process(base, out, steps=30)
    if gone != "stderr":
        child.stdout.close()
    if gone != "stdout":
        child.stderr.close()
    assert child.wait(timeout=240) == 0
    for stream in (child.stdout, child.stderr):
        stream.close()
    assert taken(out) == 30
    assert Posterior.load(out / POSTERIOR).precision
    assert status.read(out) == (30, 30, "trained")


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(base, tmp_path):
    out = tmp_path / "run"
    child = process(base, out)
    wait_for_steps(out, 4, child)
    child.send_signal(signal.SIGTERM)
    finish(child)
    good = max(int(path.name) for path in (out / CHECKPOINTS).iterdir())
    # No file may grow beyond 4 KiB: to the writer that is a disk without room.
    child = process(base, out, limit="ulimit -f 4")
    (stderr,) = finish(child)
    assert child.returncode == 2
    last = stderr.splitlines()[-1]
    assert last.startswith(f"ivon-jax: {out / CHECKPOINTS}: the checkpoint cannot be")
    assert (out / CHECKPOINTS / str(good) / SEAL).exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def sealed(out: Path) -> list[int]:
    return sorted(
        int(seal.parent.name) for seal in (out / CHECKPOINTS).glob(f"*/{SEAL}")
    )


@pytest.mark.slow
def test_a_disk_that_is_full_in_truth(base, small_disk):
    out, filler = small_disk / "run", small_disk / "filler"
    child = process(base, out, steps=100_000)
    wait_for_steps(out, 8, child)
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(2**16))
    (stderr,) = finish(child)
    assert child.returncode == 2
    last = stderr.splitlines()[-1]
    assert last.startswith(f"ivon-jax: {out}")
    assert "cannot be written" in last
    good = sealed(out)
    assert good
    filler.unlink()
    before = taken(out)
    child = process(base, out, steps=100_000)
    wait_for_steps(out, before + 1, child)
    child.send_signal(signal.SIGTERM)
    (stderr,) = finish(child)
    assert child.returncode == 143, stderr
    assert taken(out) > before


def chaos(base: TrainConfig, folder: Path, kills: int, seed: int) -> None:
    """Kills a run again and again, and compares what it ends with."""
    rng = random.Random(seed)
    steps = 40 * kills  # more than it can take between kills
    wanted, out = folder / "alone", folder / "killed"
    finish(process(base, wanted, steps=steps))
    for _ in range(kills):
        child = process(base, out, steps=steps)
        if rng.random() < 0.8:
            # Beyond what it had: the steps since the checkpoint are taken again.
            wait_for_steps(out, taken(out) + 1, child)
            time.sleep(rng.random() * 0.1)
        else:
            time.sleep(rng.random() * 3)
        assert child.poll() is None, child.communicate()[1]
        kill(child)
    assert 0 < taken(out) < steps
    child = process(base, out, steps=steps)
    (stderr,) = finish(child)
    assert child.returncode == 0, stderr
    assert taken(out) == steps
    assert result(out) == result(wanted)


def test_killed_runs_end_with_the_same_bytes(base, tmp_path):
    chaos(base, tmp_path, kills=2, seed=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 600 s are too few on a busy machine
def test_killed_25_times(base, tmp_path):
    chaos(base, tmp_path, kills=25, seed=1)
