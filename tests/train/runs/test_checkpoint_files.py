"""A checkpoint's files: sealed when whole, read back, refused when damaged."""

import gc
import shutil
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax.train.runs import checkpoint, run
from ivon_jax.train.runs.checkpoint import SEAL, Checkpoints, Saved


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
