"""Where outputs may go: decided before the work, whole or not at all."""

import os
import subprocess
from pathlib import Path

import pytest

from ivon_jax.files import new_folder
from ivon_jax.train.runs import run
from ivon_jax.train.runs.run import check_new, check_out, create


def mounted(folder: Path) -> Path:
    """Mounts an empty volume, or skips the test."""
    if os.geteuid() != 0:
        pytest.skip("mounting a volume needs root")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no volume can be mounted: {done.stderr.strip()}")
    return folder


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes a place for an output by its kind, and returns its path."""
    mounts = []

    def place(kind: str) -> Path:
        folder = tmp_path / "out"
        if kind == "absent":
            return folder
        if kind == "absent with its parents":
            return folder / "a" / "b"
        if kind in ("mounted", "mounted read-only"):
            mounts.append(mounted(folder))
            if kind == "mounted read-only":
                subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
                return folder / "run"
            return folder
        if kind == "a link to nothing":
            folder.symlink_to(tmp_path / "nowhere")
            return folder
        if kind == "a file":
            folder.write_text("mine")
            return folder
        folder.mkdir()
        if kind in ("in a read-only parent", "not writable"):
            closed = tmp_path if kind == "in a read-only parent" else folder
            closed.chmod(0o555)
            if os.access(closed, os.W_OK):
                pytest.skip("this user may write to every folder")
        if kind == "with lost+found":
            (folder / "lost+found").mkdir()
        if kind == "not empty":
            (folder / "notes.txt").write_text("mine")
        if kind == "working directory":
            monkeypatch.chdir(folder)
            return Path()
        if kind == "link":
            (tmp_path / "link").symlink_to(folder)
            return tmp_path / "link"
        return folder

    yield place
    tmp_path.chmod(0o755)
    monkeypatch.undo()  # of the working directory
    for folder in mounts:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


GOOD = (
    "absent",
    "absent with its parents",
    "empty",
    "link",
    "working directory",
    "mounted",
    "in a read-only parent",
    "with lost+found",
)
BAD = {
    "a file": "is a file",
    "a link to nothing": "is a dangling link",
    "not empty": "holds another run",
    "not writable": "cannot be written to",
    "mounted read-only": "cannot be written to",
}


def names(folder: Path) -> set[str]:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return found - {"lost+found"}


@pytest.mark.parametrize("kind", GOOD)
def test_an_export_goes_where_a_run_goes(kind, make):
    out = make(kind)
    check_new(out)
    with new_folder(out) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "sample-0").mkdir()
        (folder / "sample-0" / "weights").write_text("1")
    assert names(out) == {"config.json", "sample-0", "sample-0/weights"}
    assert (out / "sample-0" / "weights").read_text() == "1"


@pytest.mark.parametrize("kind", GOOD)
def test_a_run_is_made_in_every_such_place(kind, make):
    out = make(kind)
    check_out(out, resume=False)
    check_out(out, resume=True)
    create(out)
    assert out.is_dir()


@pytest.mark.parametrize("kind", BAD)
def test_a_place_is_refused_before_the_work(kind, make):
    out = make(kind)
    for resume in (False, True):
        with pytest.raises(ValueError, match=f"^{out}: .*{BAD[kind]}"):
            check_out(out, resume=resume)
    with pytest.raises(OSError, match=str(out)), new_folder(out):
        pytest.fail("the work was done")


@pytest.mark.parametrize("kind", GOOD)
def test_nothing_is_left_of_what_failed(kind, make, monkeypatch):
    out = make(kind)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target.name == "b":
            raise OSError("the volume is gone")
        return real(self, target)

    with pytest.raises(ZeroDivisionError), new_folder(out):
        1 / 0  # noqa: B018
    assert not out.exists() or not names(out)
    if out.exists():  # then it is filled by more than one rename
        monkeypatch.setattr(Path, "rename", rename)
        with pytest.raises(OSError, match="is gone"), new_folder(out) as folder:
            for name in "abc":
                (folder / name).touch()
        assert not names(out)


def test_what_another_program_made_meanwhile_stays(make):
    out = make("empty")
    with pytest.raises(OSError, match="another program"), new_folder(out) as folder:
        (folder / "config.json").write_text("ours")
        (out / "config.json").write_text("theirs")
    assert names(out) == {"config.json"}
    assert (out / "config.json").read_text() == "theirs"


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "file:///run"])
def test_urls_are_no_folders(url):
    with pytest.raises(ValueError, match="is a URL"):
        check_out(Path(url), resume=True)


def test_a_run_that_can_no_longer_be_written_is_refused_early(tmp_path, monkeypatch):
    (tmp_path / run.CONFIG).write_text("{}")
    check_out(tmp_path, resume=True)
    monkeypatch.setattr(run.os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="cannot be written to"):
        check_out(tmp_path, resume=True)
