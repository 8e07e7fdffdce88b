"""Run folders that an older commit wrote are read, continued and exported alike."""

import json
import shlex
import shutil
import sys
import tarfile

import jax
import numpy as np
import pytest
from reference import FIXTURES
from safetensors.numpy import load_file

import ivon_jax
from ivon_jax.train import cli

FOLDERS = ("adam", "ivon-lora", "packed", "varied", "encoder")
# A new computation of the same, elsewhere or by other programs.
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}


def command(words):
    """Run a command in this process; bad input raises SystemExit."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", *shlex.split(words)])
        # optax's Adam raises a Python float to an integer array.
        with jax.numpy_dtype_promotion("standard"):
            cli.main()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All that was written, not to be changed."""
    home = tmp_path_factory.mktemp("written")
    with tarfile.open(FIXTURES / "runs.tar.xz") as archive:
        archive.extractall(home, filter="data")
    return home


@pytest.fixture
def home(written, tmp_path, monkeypatch):
    """A copy, and the working directory: paths in it are relative."""
    home = shutil.copytree(written, tmp_path / "home")
    monkeypatch.chdir(home)
    return home


def made(home):
    return json.loads((home / "made.json").read_text())


def commands(home, name, verb):
    """The commands that made or read a folder."""
    found = [x for x in made(home)["commands"][name] if x.startswith(f"{verb} ")]
    assert found
    # Removed since: no batch has padding to save.
    return [x.replace(" --pack 2", "") for x in found]


def posteriors(out):
    """The last posterior, and the best if the run kept one."""
    found = [out / f"{name}.safetensors" for name in ("posterior", "best")]
    return [path for path in found if path.exists()]


def metrics(out):
    """Lines but for the clock's part."""
    lines = (out / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        del row["seconds"]
    return rows


def assert_close(got, expected):
    """Compare trees of JSON; what is new in a dictionary does not count."""
    if isinstance(expected, dict):
        assert got.keys() >= expected.keys()
        for name, value in expected.items():
            assert_close(got[name], value)
    elif isinstance(expected, list):
        assert len(got) == len(expected)
        for mine, value in zip(got, expected, strict=True):
            assert_close(mine, value)
    elif isinstance(expected, float):
        np.testing.assert_allclose(got, expected, **ROUNDING)
    else:
        assert got == expected


def assert_tensors(got, expected, *, exact):
    """Compare files of tensors: names, types, and values."""
    mine, theirs = load_file(got), load_file(expected)
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert mine[name].dtype == tensor.dtype
        if exact:
            np.testing.assert_array_equal(mine[name], tensor, name)
        else:
            np.testing.assert_allclose(mine[name], tensor, **ROUNDING, err_msg=name)


@pytest.mark.parametrize("name", FOLDERS)
def test_posteriors_load(name, home):
    for path in posteriors(home / name):
        tensors = load_file(path)
        posterior = ivon_jax.Posterior.load(path)
        names = {x.partition(":")[2] for x in tensors if x.startswith("precision:")}
        assert posterior.precision.keys() == names
        assert bool(names) == (name != "adam")
        for leaf in names:
            expected = tensors[f"precision:{leaf}"]
            np.testing.assert_array_equal(posterior.precision[leaf], expected)
            node = posterior.mean
            for key in leaf.split("/"):
                node = node[key]
            np.testing.assert_array_equal(node, tensors[f"mean:{leaf}"])


@pytest.mark.parametrize("name", FOLDERS)
def test_evaluations_give_the_recorded_rows(name, home, written, capsys):
    out = home / name
    recorded = sorted(out.glob("evaluation-*"))
    predictions = sorted(out.glob("predictions-*"))
    assert recorded
    assert predictions
    for path in (*recorded, *predictions):
        path.unlink()
    for words in commands(home, name, "evaluate"):
        command(words)
    for path in recorded:
        expected = json.loads((written / name / path.name).read_text())
        got = json.loads(path.read_text())
        assert_close(got["rows"], expected["rows"])
        assert got["eval_fingerprint"] == expected["eval_fingerprint"]
    for path in predictions:
        assert_tensors(path, written / name / path.name, exact=False)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        pytest.param("adam", "interrupted", marks=pytest.mark.slow),
        ("ivon-lora", "interrupted"),
        ("adam", "killed"),
        pytest.param("ivon-lora", "killed", marks=pytest.mark.slow),
        ("encoder", "killed"),
        ("packed", "killed"),
    ],
)
def test_resumed_runs_go_on(name, left, home, written):
    """They do so with other masks of dropout, which were laid out in another way.

    Steps before stay, and those after begin at the same state, on the same batches:
    their losses are near.
    """
    out = home / (name if left == "killed" else f"{name}-interrupted")
    if left == "killed":
        # After the first of its checkpoints, and some steps more.
        last = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name))
        shutil.rmtree(last)
        (out / "posterior.safetensors").unlink()
    done = max(int(path.name) for path in (out / "checkpoints").iterdir())
    (words,) = commands(home, out.name, "train")
    command(f"{words} --resume")

    expected = written / name
    found, wanted = metrics(out), metrics(expected)
    assert found[:done] == wanted[:done]
    losses, old = ([row["loss"] for row in rows] for rows in (found, wanted))
    assert len(losses) > done
    # The packed run's adapters are so large that masks matter, and its rate is so large
    # that two runs soon have nothing in common.
    near, bound = (done + 1, 0.3) if name == "packed" else (len(old), 0.25)
    assert losses[:near] == pytest.approx(old[:near], rel=bound)
    for path in posteriors(expected):
        mine, theirs = load_file(out / path.name), load_file(path)
        shapes = ({k: (v.shape, v.dtype) for k, v in x.items()} for x in (mine, theirs))
        assert next(shapes) == next(shapes)


@pytest.mark.parametrize("name", FOLDERS)
def test_finished_runs_stay_as_they_are(name, home, written):
    (words,) = commands(home, name, "train")
    command(f"{words} --resume")
    for path in posteriors(written / name):
        assert_tensors(home / name / path.name, path, exact=True)
    assert metrics(home / name) == metrics(written / name)


@pytest.mark.parametrize("name", FOLDERS)
def test_other_settings_are_refused(name, home, capsys):
    (words,) = commands(home, name, "train")
    with pytest.raises(SystemExit):
        command(f"{words} --resume --learning-rate 0.02")
    assert "learning_rate: is now 0.02, but" in capsys.readouterr().err


@pytest.mark.parametrize("name", FOLDERS)
def test_exports_are_those_of_then(name, home, written):
    out = home / f"{name}-exported"
    shutil.rmtree(out)
    (words,) = commands(home, name, "export")
    command(words)
    for path in (written / out.name).rglob("*"):
        new = out / path.relative_to(written / out.name)
        if path.suffix == ".safetensors":
            # Samples are drawn anew, the mean and the posterior are copied.
            exact = "sample" not in new.parent.name
            assert_tensors(new, path, exact=exact)
        elif path.name == "adapter_config.json":
            assert json.loads(new.read_text()) == json.loads(path.read_text())
        else:
            assert new.exists()


def test_a_comparison_is_read(home, capsys):
    (words,) = commands(home, "compared", "table")
    command(words)
    rows = json.loads((home / "compared" / "results.json").read_text())["rows"]
    printed = capsys.readouterr().out
    for row in rows:
        assert f"{row['nll']:.3f}" in printed
