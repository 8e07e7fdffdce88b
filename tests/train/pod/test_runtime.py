"""Flags and failures of JAX: a run is the same run, or one line says why not."""

import json
import sys
from types import SimpleNamespace

import children
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ivon_jax.models import cache
from ivon_jax.train import cli, loop, predict
from ivon_jax.train.config import CompareConfig
from ivon_jax.train.pod import runtime
from ivon_jax.train.runs import run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    tiny.write_model(folder / "model", layers=1)
    tiny.write_data(folder / "data", train=16, evaluation=12)
    return folder


def options(place, *more):
    task = ("--task", "custom", "--prompt", tiny.PROMPT, "--labels", *tiny.LABELS)
    data = place / "data"
    files = ("--train-file", data / "train.jsonl", "--eval-file", data / "eval.jsonl")
    return ["--model", place / "model", *task, *files, "--rank", "2", *more]


SHORT = ("--steps", "4", "--batch-size", "4")


@pytest.fixture
def command(monkeypatch, capsys):
    def execute(*args):
        monkeypatch.setattr(sys, "argv", ["ivon-jax", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        _, err = capsys.readouterr()
        return stop.value.code, err.splitlines()[-1]

    return execute


FLAGS = {
    "JAX_ENABLE_X64": "1",
    "JAX_DEFAULT_PRNG_IMPL": "rbg",
    "JAX_THREEFRY_PARTITIONABLE": "0",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEBUG_NANS": "1",
    "JAX_TRANSFER_GUARD": "disallow",
}


@pytest.mark.parametrize(
    "method", ["ivon-lora", pytest.param("adam", marks=pytest.mark.slow)]
)
def test_a_run_is_the_same_whatever_the_flags(method, place, tmp_path, monkeypatch):
    """Every byte of the posterior, and every score."""
    # The tests' own make rounding depend on how a program is cut into kernels.
    monkeypatch.setenv("XLA_FLAGS", "")
    words = ("train", *options(place, *SHORT, "--method", method))
    more = ("--eval-steps", 2, "--out")
    plain = children.start(*words, *more, tmp_path / "plain")
    for name, value in FLAGS.items():
        monkeypatch.setenv(name, value)
    flagged = children.start(*words, *more, tmp_path / "flagged")
    errors = children.finish(plain, flagged)
    assert (plain.returncode, flagged.returncode) == (0, 0), errors
    wanted, found = (tmp_path / name for name in ("plain", "flagged"))
    for name in (run.POSTERIOR, run.BEST):
        assert (found / name).read_bytes() == (wanted / name).read_bytes()
    lines = [metrics(folder) for folder in (wanted, found)]
    assert len(lines[0]) == 4
    assert lines[0] == lines[1]


def metrics(folder):
    lines = (folder / run.METRICS).read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.mark.parametrize(
    ("flag", "context"),
    [("JAX_DISABLE_JIT", jax.disable_jit), ("JAX_DEBUG_INFS", jax.debug_infs)],
)
def test_a_flag_that_changes_a_run_is_refused(flag, context, command, place, tmp_path):
    with context(True):
        code, line = command("train", *options(place, "--out", tmp_path / "out"))
    assert code == 2
    assert line.startswith(f"ivon-jax: {flag}: is set, ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "platform",
    ["cuda", *(pytest.param(x, marks=pytest.mark.slow) for x in ("tpu", "nosuch"))],
)
def test_a_platform_that_is_not_there_is_one_line(platform, place, monkeypatch):
    if platform in ("cuda", "tpu") and jax.default_backend() != "cpu":
        pytest.skip(f"this machine may have {platform}")
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    child = children.start("train", *options(place), "--out", place / "none")
    (error,) = children.finish(child)
    assert child.returncode == 2
    start = f"ivon-jax: JAX_PLATFORMS: no device of {platform!r} can be used ("
    assert error.splitlines()[-1].startswith(start), error
    assert len(error.splitlines()) == 1, error
    assert not (place / "none").exists()


COMMANDS = {
    "train": lambda place: ("train", *options(place), "--out", place / "new"),
    "evaluate": lambda place: ("evaluate", place / "run"),
    "export": lambda place: ("export", place / "run", "--out", place / "new"),
}


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS.keys())
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "JAX does not say why"),
        (RuntimeError("Unable to start\nand more"), "Unable to start"),
        (OSError("plugin.so: not found"), "plugin.so: not found"),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_command_says_that_devices_do_not_start(
    words, error, reason, command, place, monkeypatch
):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    code, line = command(*words(place))
    assert code == 2
    assert line.endswith(f" can be used ({reason})"), line


def test_a_comparison_says_that_devices_do_not_start(place, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: _raise(AssertionError()))
    with pytest.raises(ValueError, match="can be used"):
        cli.compare(CompareConfig(), place / "new")


def out_of_memory(*args, **kwargs):
    """The error of a device that has not so much, raised by the device itself."""
    with jax.transfer_guard("allow"):
        return jnp.zeros(2**46, jnp.uint8)


def test_a_step_out_of_memory_says_what_and_what_to_change(
    command, place, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "train_step", out_of_memory)
    words = options(place, *SHORT, "--accumulate", "2", "--out", tmp_path / "out")
    code, line = command("train", *words)
    assert code == 2
    expected = "ivon-jax: out of memory: a step of 2 rows of 16 tokens, 2 parts "
    assert line.startswith(expected), line
    assert f"needs {2**46} bytes" in line
    assert "--accumulate" in line and "--remat" in line and "--mesh" in line


def test_predictions_out_of_memory_say_what_and_what_to_change(
    command, place, tmp_path, monkeypatch
):
    monkeypatch.setattr(predict, "predict_batch", out_of_memory)
    words = options(place, *SHORT, "--eval-steps", "1", "--out", tmp_path / "out")
    code, line = command("train", *words)
    assert code == 2
    assert line.startswith("ivon-jax: out of memory: predictions of 1 rows of "), line
    assert "--chunk-size" in line


def caught(call):
    try:
        call()
    except Exception as error:
        return error
    raise AssertionError("raised nothing")


BLAMED = {
    "device memory": (lambda: out_of_memory(), "out of memory: a device needs "),
    "host memory": (lambda: np.zeros(2**47), "out of memory on the host (Unable to "),
    "plugin": (
        lambda: _raise(jax.errors.JaxRuntimeError("INTERNAL: driver lost\n at x.cc")),
        "JAX's runtime on cpu failed: INTERNAL: driver lost",
    ),
}
OURS = {
    "our argument": jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes differ"),
    "our key": KeyError("name"),
    "our type": TypeError("not a str"),
    "our runtime error": RuntimeError("generator raised StopIteration"),
}


def _raise(error):
    raise error


@pytest.mark.parametrize(("call", "start"), BLAMED.values(), ids=BLAMED.keys())
def test_the_machines_failures_are_one_line(call, start, command, monkeypatch):
    assert runtime.explain(caught(call)).startswith(start)
    monkeypatch.setattr(cache, "fetch", lambda name: call())
    code, line = command("models", "--fetch", "any")
    assert code == 2
    assert line.startswith(f"ivon-jax: {start}")


@pytest.mark.parametrize("error", OURS.values(), ids=OURS.keys())
def test_our_mistakes_stay_a_traceback_that_says_where_to_report(error, monkeypatch):
    monkeypatch.setattr(cache, "fetch", lambda name: _raise(error))
    monkeypatch.setattr(sys, "argv", ["ivon-jax", "models", "--fetch", "any"])
    with pytest.raises(type(error)) as raised:
        cli.main()
    assert any("please report it" in note for note in raised.value.__notes__)


@pytest.mark.parametrize("given", [None, "5"])
def test_small_programs_are_kept_unless_the_user_says_from_when(
    given, tmp_path, monkeypatch
):
    monkeypatch.setenv("IVON_JAX_CACHE", str(tmp_path))
    monkeypatch.delenv(runtime.KEPT_FROM, raising=False)
    if given:
        monkeypatch.setenv(runtime.KEPT_FROM, given)
    made = {}
    config = SimpleNamespace(jax_compilation_cache_dir=None, update=made.__setitem__)
    monkeypatch.setattr(runtime, "jax", SimpleNamespace(config=config))
    runtime.keep_compilations()
    assert made.pop("jax_compilation_cache_dir") == str(tmp_path / "compiled")
    kept_from = {"jax_persistent_cache_min_compile_time_secs": 0.0}
    assert made == ({} if given else kept_from)


NO_HOME = """
import os, pwd, runpy, sys
os.environ.pop("HOME", None)
def absent(_): raise KeyError
pwd.getpwuid = pwd.getpwnam = absent
sys.argv[0] = "ivon-jax"
runpy.run_module("ivon_jax.train.cli", run_name="__main__")
"""


@pytest.mark.parametrize(
    "cache",
    # Where it is set: test_cli.py, with a home.
    [
        "not set",
        *(pytest.param(x, marks=pytest.mark.slow) for x in ("set", "not writable")),
    ],
)
def test_a_user_without_a_home(cache, place, tmp_path, monkeypatch):
    """An explicit cache suffices; without any, nothing is kept."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").write_text("")
    there = {"set": "cache", "not set": "", "not writable": "file/cache"}[cache]
    monkeypatch.setenv("IVON_JAX_CACHE", there and str(tmp_path / there))
    words = ("train", *options(place, *SHORT), "--out", tmp_path / "out")
    child = children.start(*words, program=("-c", NO_HOME))
    (error,) = children.finish(child)
    assert child.returncode == 0, error
    assert (tmp_path / "out" / "posterior.safetensors").exists()
    kept = (tmp_path / "cache" / "compiled").is_dir()
    assert kept == (cache == "set")


def test_a_model_to_fetch_needs_a_cache(monkeypatch, command):
    monkeypatch.delenv("IVON_JAX_CACHE", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: _raise(KeyError(uid)))
    code, line = command("models", "--fetch", "smollm2-135m-instruct")
    assert code == 2
    assert line == (
        "ivon-jax: IVON_JAX_CACHE: is not set, and the user has no home folder"
    )
