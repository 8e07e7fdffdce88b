"""Real processes that are stopped, killed, or run out of disk."""

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import children
import pytest
import tiny
from children import finish, kill, taken, wait_for_steps
from tiny_runs import result

from ivon_jax.posterior import Posterior
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.runs import status
from ivon_jax.train.runs.checkpoint import SEAL
from ivon_jax.train.runs.run import CHECKPOINTS, POSTERIOR


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=2)
    return TrainConfig(model, data=data)


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


@pytest.fixture(scope="module")
def unread(base, tmp_path_factory) -> Path:
    """A run that nobody listened to, as long as the one that is killed."""
    out = tmp_path_factory.mktemp("unread") / "run"
    return write_to_nobody("both", base, out, steps=80)


def write_to_nobody(gone: str, base: TrainConfig, out: Path, steps: int) -> Path:
    """Train while the readers of stdout, stderr or both are gone."""
    child = process(base, out, steps=steps)
    if gone != "stderr":
        child.stdout.close()
    if gone != "stdout":
        child.stderr.close()
    assert child.wait(timeout=240) == 0
    for stream in (child.stdout, child.stderr):
        stream.close()
    assert taken(out) == steps
    assert Posterior.load(out / POSTERIOR).precision
    assert status.read(out) == (steps, steps, "trained")
    return out


def test_readers_may_go_away(unread):
    assert unread.exists()


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["stdout", "stderr"])
def test_one_reader_may_go_away(gone, base, tmp_path):
    write_to_nobody(gone, base, tmp_path / "run", steps=30)


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


def chaos(base: TrainConfig, wanted: Path, out: Path, kills: int, seed: int) -> None:
    """Kills a run again and again, and compares it with one that was not."""
    rng = random.Random(seed)
    steps = taken(wanted)  # more than it can take between kills
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


def test_a_killed_run_ends_with_the_same_bytes(base, unread, tmp_path):
    chaos(base, unread, tmp_path / "killed", kills=1, seed=4)  # after a step


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 600 s are too few on a busy machine
def test_killed_25_times(base, tmp_path):
    wanted = tmp_path / "alone"
    finish(process(base, wanted, steps=40 * 25))
    chaos(base, wanted, tmp_path / "killed", kills=25, seed=1)
