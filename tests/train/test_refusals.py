"""What the command line refuses: in one line, early, and leaving nothing behind."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from ivon_jax.posterior import Posterior
from ivon_jax.train import cli

STEPS = 6


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny.write_model(folder / "model", layers=1)
    tiny.write_data(folder / "data", train=16, evaluation=12)
    (folder / "folder.jsonl").mkdir()
    return folder


@pytest.fixture
def ivon_jax_command(monkeypatch, capsys, place):
    """Runs a command line in the place of models and data."""
    monkeypatch.chdir(place)
    monkeypatch.delenv("IVON_JAX_DATA", raising=False)

    def run(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ivon-jax", *map(str, args)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


def task(**changes: object) -> list[object]:
    options = {
        "model": "model",
        "task": "custom",
        "train_file": "data/train.jsonl",
        "eval_file": "data/eval.jsonl",
        "prompt": tiny.PROMPT,
        "labels": tiny.LABELS,
        "rank": 2,
    }
    return flags(**options | changes)


def flags(prefix: str = "", **options: object) -> list[object]:
    out: list[object] = []
    for name, value in options.items():
        values = value if isinstance(value, tuple | list) else (value,)
        if value is not None:
            out += [f"--{prefix}{name.replace('_', '-')}", *values]
    return out


def train(**changes: object) -> list[object]:
    hyper = {"steps": STEPS, "batch_size": 4, "learning_rate": 0.01}
    return ["train", *task(**hyper | changes)]


@pytest.fixture(scope="module")
def trained(place) -> dict[str, Path]:
    """A run of each method, made by the first test that needs it."""
    return {method: place / f"run-{method}" for method in ("adam", "ivon-lora")}


@pytest.fixture
def runs(trained, ivon_jax_command) -> dict[str, Path]:
    for method, out in trained.items():
        if not out.exists():
            code, _, _ = ivon_jax_command(*train(method=method, out=out))
            assert code == 0
    return trained


@pytest.fixture
def copied(runs, tmp_path) -> Path:
    """A copy of a run, to be damaged."""
    return Path(shutil.copytree(runs["ivon-lora"], tmp_path / "copy"))


def compare(**changes: object) -> list[object]:
    hyper = {"steps": STEPS, "batch_size": 4, "learning_rate": 0.01}
    both = flags("adam.", **hyper) + flags("ivon-lora.", **hyper)
    return ["compare", *task(**changes), *both]


def snapshot(*folders: Path) -> dict[str, bytes]:
    files = [path for folder in folders for path in folder.rglob("*")]
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in files}


def refused(run, place: Path, args: list[object], names: str, *folders: Path) -> None:
    before = snapshot(place, *folders)
    code, stdout, stderr = run(*args)
    assert code == 2, stderr
    assert stdout == ""
    lines = stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("ivon-jax: ")
    assert names in lines[0]
    assert snapshot(place, *folders) == before


@pytest.fixture
def no_loading(monkeypatch):
    """Makes loading a model a failure: the error must come before it."""

    def load(name):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("ivon_jax.train.problem.load", load)


EARLY = {
    "a kernel for other chips": ({"attention": "splash"}, "splash needs a TPU"),
    "a kernel that is none": ({"attention": "flash"}, "--attention"),
    "unknown task": ({"task": "chess"}, "letters, custom, text"),
    "no such data file": ({"train_file": "data/no.jsonl"}, "data/no.jsonl"),
    "no such evaluation file": ({"eval_file": "data/no.jsonl"}, "data/no.jsonl"),
    "kind of data file": ({"train_file": "data/train.txt"}, "data/train.txt"),
    "no prompt": ({"prompt": None}, "prompt: needed with --task custom"),
    "no labels": ({"labels": None}, "labels: needed with --task custom"),
    "one label": ({"labels": ["yes"]}, "labels"),
    "unknown field": ({"prompt": "{txt} Answer:"}, "txt"),
    "other labels": ({"labels": ["good", "bad"]}, "label"),
    "custom option of a known task": ({"task": "rte"}, "--task custom"),
    "too many examples": ({"train_examples": 17}, "train_examples: "),
    "no examples": ({"eval_examples": 0}, "eval_examples: "),
    "all held out": ({"validation_examples": 16}, "validation_examples: "),
    "seed": ({"seed": -1}, "seed: -1"),
    "steps": ({"steps": 0}, "steps: 0"),
    "more steps than an int32": ({"steps": 10**22}, "steps: 1000"),
    "more than a float32": ({"gamma": 1e300}, "gamma: 1e+300 is not <= 3.402"),
    "option of texts": ({"learn": "all"}, "learn: only with a text task, not custom"),
    "learning rate": ({"learning_rate": -1}, "learning_rate: -1"),
    "not a number": ({"learning_rate": "nan"}, "learning_rate: nan"),
    "beta": ({"beta2": 1.0}, "beta2: 1.0"),
    "both lambdas": ({"gamma": 1, "ess": 1}, "gamma: excludes ess"),
    "style of built-in tasks": (
        {"prompt_style": "choice_text"},
        "prompt_style: not with --task custom",
    ),
    "more than are held out": (
        {"validation_examples": 4, "eval_examples": 5},
        "eval_examples, of those held out: cannot take 5 examples of 4",
    ),
    "folder as data file": ({"train_file": "folder.jsonl"}, "folder.jsonl: not a file"),
    "option of Adam": ({"eps": 1e-8}, "eps: method ivon-lora has"),
    "option of IVON": ({"method": "adam", "gamma": 1}, "gamma: method adam has"),
    "used folder": ({"out": "data"}, "data: holds another run"),
    "file as folder": ({"out": "data/train.jsonl"}, "data/train.jsonl is a file"),
    "brackets": ({"out": "new/[run]"}, "no checkpoints can be kept in a path with ["),
    "backslash": ({"out": "new\\run"}, "no checkpoints can be kept in a path with \\"),
    "bucket": ({"out": "gs://bucket/run"}, "gs:/bucket/run: is a URL"),
    "file as parent": ({"out": "data/eval.jsonl/run"}, "data/eval.jsonl is a file"),
}


@pytest.mark.parametrize("case", EARLY)
def test_train_refuses_before_loading(case, ivon_jax_command, place, no_loading):
    changes, names = EARLY[case]
    args = train(**{"out": "new/run"} | changes)
    refused(ivon_jax_command, place, args, names)
    if "out" in changes:
        refused(ivon_jax_command, place, [*args, "--resume"], names)


def test_a_folder_that_may_not_be_written_to(
    ivon_jax_command, place, no_loading, monkeypatch
):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may do all
    refused(ivon_jax_command, place, train(out="data/run"), "data cannot be written to")


def test_malformed_rows_are_named_by_line(ivon_jax_command, place, tmp_path):
    path = tmp_path / "rows.jsonl"
    good = '{"text": "red", "label": "yes"}\n'
    for bad in ('{"text": "red", "label": \n', "[1]\n", '{"label": "yes"}\n', "NaN\n"):
        path.write_text(good * 2 + bad + good)
        args = train(out=tmp_path / "out", train_file=path)
        refused(ivon_jax_command, place, args, f"{path}:3: ", tmp_path)


def test_train_refuses_models(ivon_jax_command, place, tmp_path):
    def broken(name: str) -> Path:
        return Path(shutil.copytree(place / "model", tmp_path / name))

    truncated = broken("truncated") / "model.safetensors"
    truncated.write_bytes(truncated.read_bytes()[:-100])
    weights = load_file(place / "model" / "model.safetensors")
    weights["model.norm.weight"][3] = np.nan
    save_file(weights, broken("nan") / "model.safetensors")
    (broken("config") / "config.json").write_text("{")
    (broken("tokenizer") / "tokenizer.json").write_text("{")
    empty = tmp_path / "empty.gguf"
    empty.write_bytes(b"GGUF")
    for model, names in (
        ("nowhere", "'nowhere'"),
        (tmp_path / "truncated", "model.safetensors"),
        (tmp_path / "nan", "model.norm.weight"),
        (tmp_path / "config", "config.json"),
        (tmp_path / "tokenizer", "tokenizer"),
        (empty, "empty.gguf"),
        (tmp_path / "none.gguf", "none.gguf"),
    ):
        args = train(out=tmp_path / "out", model=model)
        refused(ivon_jax_command, place, args, names, tmp_path)


def test_train_refuses_what_does_not_fit_the_model(ivon_jax_command, place, tmp_path):
    numbered = [
        {"text": row["text"], "label": tiny.LABELS.index(row["label"])}
        for row in tiny.rows(8, seed=3)
    ]
    files = tiny.write_rows(tmp_path / "numbered.jsonl", numbered)
    both = {"train_file": files, "eval_file": files}
    long = [{"text": "red " * 200, "label": "yes"}]
    long_file = tiny.write_rows(tmp_path / "long.jsonl", long)
    for changes, names in (
        (both | {"labels": ["no", "yes no"]}, "' yes no' is 2 tokens"),
        (both | {"labels": ["strange", "unheard"]}, "' strange' is unknown"),
        ({"targets": ["q_proj", "c_attn"]}, "'c_attn' matches no linear layer"),
        ({"targets": ["q_proj("]}, "targets: "),
        ({"rank_pattern": ["up_proj", 4]}, "'up_proj' matches no layer of targets"),
        ({"alpha_pattern": ["q_proj", 0]}, "alpha_pattern: 0.0 is not a number > 0"),
        ({"eval_file": long_file}, "128"),
    ):
        args = train(**{"out": tmp_path / "out"} | changes)
        refused(ivon_jax_command, place, args, names, tmp_path)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--samples", 0], "samples: 0"),
        (["--samples", -3], "samples: -3"),
        (["--tau", 0], "tau: 0"),
        (["--tau", -1.5], "tau: -1.5"),
        (["--tau", "nan"], "tau: nan"),
        (["--tau", "inf"], "tau: inf"),
        (["--prune", 1], "prune: 1"),
        (["--prune", -0.1], "prune: -0.1"),
        (["--chunk-size", 0], "chunk_size: 0"),
        (["--dropout-samples", -1], "dropout_samples: -1"),
    ],
)
def test_evaluate_refuses_options(
    options, names, runs, ivon_jax_command, place, no_loading
):
    args = ["evaluate", runs["ivon-lora"], *options]
    refused(ivon_jax_command, place, args, names)


def damage_config(run: Path) -> str:
    (run / "config.json").write_bytes((run / "config.json").read_bytes()[:50])
    return "config.json"


def empty_config(run: Path) -> str:
    (run / "config.json").write_text("[]")
    return "config.json"


def unknown_key(run: Path) -> str:
    values = json.loads((run / "config.json").read_text())
    values["config"]["lora"]["colour"] = 1
    (run / "config.json").write_text(json.dumps(values))
    return "colour"


def no_config(run: Path) -> str:
    (run / "config.json").unlink()
    return "not a run"


def no_posterior(run: Path) -> str:
    (run / "posterior.safetensors").unlink()
    return "posterior.safetensors"


def truncated_posterior(run: Path) -> str:
    path = run / "posterior.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    return "posterior.safetensors"


def altered_posterior(run: Path) -> str:
    path = run / "posterior.safetensors"
    data = bytearray(path.read_bytes())
    data[-8] ^= 1
    path.write_bytes(bytes(data))
    return "posterior.safetensors"


@pytest.mark.parametrize(
    "damage",
    [
        damage_config,
        empty_config,
        unknown_key,
        no_config,
        no_posterior,
        truncated_posterior,
        altered_posterior,
    ],
)
def test_evaluate_refuses_damaged_runs(
    damage, copied, ivon_jax_command, place, no_loading
):
    names = damage(copied)
    refused(ivon_jax_command, place, ["evaluate", copied], names, copied)


def test_evaluate_refuses_other_adapters(copied, ivon_jax_command, place):
    posterior = Posterior.load(copied / "posterior.safetensors")
    smaller = jax.tree.map(lambda leaf: leaf[..., :1], posterior.mean)
    Posterior.point(smaller).save(copied / "posterior.safetensors")
    names = "posterior: its parameters"
    refused(ivon_jax_command, place, ["evaluate", copied], names, copied)


def test_evaluate_refuses_what_changed(ivon_jax_command, place, tmp_path):
    model = Path(shutil.copytree(place / "model", tmp_path / "model"))
    data = tiny.write_data(tmp_path / "data", train=16, evaluation=12)
    files = {"train_file": data / "train.jsonl", "eval_file": data / "eval.jsonl"}
    out = tmp_path / "out"
    code, _, _ = ivon_jax_command(*train(out=out, model=model, **files))
    assert code == 0
    weights = load_file(model / "model.safetensors")
    save_file(weights | {"model.norm.weight": weights["model.norm.weight"] * 2}, model
              / "model.safetensors")  # fmt: skip
    args = ["evaluate", out]
    refused(ivon_jax_command, place, args, "model_fingerprint", tmp_path)
    save_file(weights, model / "model.safetensors")
    tiny.write_rows(data / "eval.jsonl", tiny.rows(12, seed=9))
    refused(ivon_jax_command, place, args, "eval_fingerprint", tmp_path)
    (data / "eval.jsonl").unlink()
    refused(ivon_jax_command, place, args, "eval.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"samples": 0}, "samples: 0"),
        ({"sweep_samples": 0}, "sweep_samples: 0"),
        ({"taus": (1.0, 0.0)}, "tau: 0.0"),
        ({"prunes": (0.5, 1.0)}, "prune: 1.0"),
        ({"adam.gamma": 1.0}, "gamma: method adam has"),
        ({"ivon-lora.eps": 1.0}, "eps: method ivon-lora has"),
        ({"ivon-lora.beta1": 1.0}, "beta1: 1.0"),
        ({"task": "chess"}, "chess"),
        ({"seed": -1}, "seed: -1"),
        ({"out": "data"}, "data: holds another run"),
        ({"out": "new/[run]"}, "no checkpoints can be kept in a path with ["),
    ],
)
def test_compare_refuses_before_loading(
    changes, names, ivon_jax_command, place, no_loading
):
    args = compare(**{"out": "new/compared"} | changes)
    refused(ivon_jax_command, place, args, names)


def test_other_commands_refuse(ivon_jax_command, place):
    for args, names in (
        (["table"], "directories"),
        (["table", "data"], "data/results.json"),
        (["data", "--task", "chess"], "chess"),
        (["data", "--train-examples", 4, "--seed", -1], "seed: -1"),
        (["data", "--task", "rte", "--data-dir", "nowhere"], "nowhere"),
        (["models", "--fetch", "gpt"], "'gpt'"),
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "data"], "not a run"),
    ):
        refused(ivon_jax_command, place, args, names)


def test_predictions_that_are_not_finite(runs, ivon_jax_command, place):
    args = ["evaluate", runs["ivon-lora"], "--samples", 2, "--tau", 1e-60]
    names = "predictions: not finite for 12 of 12 examples (2-tau1e-60)"
    code, stdout, stderr = ivon_jax_command(*args)
    assert (code, stdout) == (2, "")
    assert stderr.splitlines()[-1] == f"ivon-jax: {names}"
    assert not list(runs["ivon-lora"].glob("evaluation*1e-60*"))
