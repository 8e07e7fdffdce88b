"""Options out of a file: as on the command line, whose options come first."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli, config_file
from ivon_jax.train.command_line import parse
from ivon_jax.train.config import CompareConfig, DataConfig, TrainConfig, resolve
from ivon_jax.train.config_json import to_json
from ivon_jax.train.generate.command import generate
from ivon_jax.train.inference.commands import calibrate, predict
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.runs import run

COMMANDS = {
    name: getattr(cli, name)
    for name in ("train", "evaluate", "fit", "export", "plan", "compare", "data")
} | {"generate": generate, "predict": predict, "calibrate": calibrate}


@pytest.fixture
def called(monkeypatch, tmp_path):
    """Parses a command with a file of that text; returns the arguments."""

    def call(name, text, *words, suffix=".yaml"):
        file = tmp_path / f"options{suffix}"
        file.write_text(text)
        line = ["ivon-jax", name, *map(str, words), "--config", str(file)]
        monkeypatch.setattr(sys, "argv", line)
        return parse(COMMANDS).keywords

    return call


TRAIN = """\
method: adam
learning-rate: 1e-4
steps: 350
train_examples: 256
labels: [no, yes]
prompt: "{text}: "
leading_space: no
task: custom
train_file: a.jsonl
rank: 4
rslora: true
mesh: data=2
eval_steps: null
"""


def test_options_are_as_on_the_command_line(called, monkeypatch):
    words = ["--method", "adam", "--learning-rate", "1e-4", "--steps", "350"]
    words += ["--train-examples", "256", "--labels", "no", "yes", "--out", "runs/x"]
    words += ["--prompt", "{text}: ", "--leading-space", "no", "--task", "custom"]
    words += ["--train-file", "a.jsonl", "--rank", "4", "--rslora", "--mesh", "data=2"]
    monkeypatch.setattr(sys, "argv", ["ivon-jax", "train", *words])
    wanted = parse(COMMANDS).keywords
    assert called("train", TRAIN + "out: runs/x\n") == wanted
    assert wanted["config"].data.labels == ("no", "yes")


def test_the_command_line_comes_first(called):
    words = ["--steps", 9, "--labels", "a", "b", "--no-rslora", "--train-examples=None"]
    config = called("train", TRAIN, *words, "--out", "x")["config"]
    assert (config.hyper.steps, config.hyper.learning_rate) == (9, 1e-4)
    assert config.data.labels == ("a", "b")
    assert config.data.train_examples is None
    assert (config.lora.rslora, config.lora.rank) == (False, 4)


@pytest.mark.parametrize(
    ("name", "text", "words", "found"),
    [
        ("evaluate", "samples: 3\ntau: 2\n", ["run"], {"samples": 3, "tau": 2.0}),
        ("evaluate", "directory: run\nbest: true", [], {"directory": Path("run")}),
        ("export", "format: hf\nout: x", ["run"], {"format": "hf", "out": Path("x")}),
        ("predict", "keep: [a, b]", ["run"], {"keep": ("a", "b")}),
        ("calibrate", "file: dev.csv\nconformal: 0.1", ["run"], {"conformal": 0.1}),
        ("plan", "chip: v5e", [], {"chip": "v5e"}),
        ("data", "seed: 3\ntask: sst2", [], {"seed": 3, "config": DataConfig("sst2")}),
    ],
)
def test_every_command_takes_a_file(name, text, words, found, called):
    keywords = called(name, text, *words)
    assert {key: keywords[key] for key in found} == found


def test_a_fit_has_the_options_of_its_method(called):
    text = "method: tfb\nsamples: 3\ntolerance: 0.01\nout: x\ndirectories: [a, b]"
    keywords = called("fit", text)
    assert keywords["config"].name == "tfb"
    assert keywords["directories"] == (Path("a"), Path("b"))
    assert (keywords["config"].samples, keywords["config"].tolerance) == (3, 0.01)


def test_a_comparison_names_the_methods_of_options(called):
    text = "adam: {steps: 3}\nivon-lora.gamma: 75\nhyper:\n  ivon_lora: {steps: 3}"
    config = called("compare", text, "--out", "x", "--adam.eps", "1e-6")["config"]
    hyper = config.hyper
    assert (hyper.adam.steps, hyper.adam.eps, hyper.ivon_lora.steps) == (3, 1e-6, 3)
    assert hyper.ivon_lora.gamma == 75.0


def test_nested_options_of_generate(called):
    keywords = called("generate", "outputs: 3\nsampler: {temperature: 0.5}", "run")
    assert keywords["options"].outputs == 3
    assert keywords["options"].sampler.temperature == 0.5


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train", "stepz: 3", "unknown key 'stepz'; legal: model, seed, task, .*steps"),
        ("train", "gamma: 3\nmethod: adam", "unknown key 'gamma'; legal: .*eps"),
        ("train", "method: sgd", "method: 'sgd' is not a legal value"),
        ("train", "steps: soon", "steps: 'soon' is not a legal value"),
        ("train", "steps: 1.5", "steps: 1.5 is not a legal value"),
        ("train", "rank: 0", "rank: 0 is not >= 1"),
        ("train", "labels: a b", "labels: 'a b' is not a legal value"),
        ("train", "seed: 1\nseed: 2", "not valid YAML: 'seed' occurs twice"),
        ("train", "seed: 1\ndata: {seed: 2}", "'seed' occurs twice"),
        ("train", "seed: [", "not valid YAML: while parsing"),
        ("train", "- seed", "has no names of options"),
        ("train", "", "has no names of options"),
        ("compare", "adam: {gamma: 3}", "unknown key 'gamma'; legal: adam.steps, "),
        ("evaluate", "method: adam", "unknown key 'method'; legal: directory, "),
        ("models", "seed: 1", "unknown key 'seed'; legal: fetch"),
    ],
)
def test_what_is_refused(name, text, message, called, monkeypatch):
    monkeypatch.setitem(COMMANDS, "models", cli.models)
    with pytest.raises(ValueError, match=rf"^\S*options.yaml: {message}") as caught:
        called(name, text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("none.yaml", None, "none.yaml: cannot be read .No such file"),
        ("a.txt", b"", "a.txt: options are in .yaml, .yml, .json files"),
        ("a.json", b"{", "a.json: not valid JSON: "),
        ("a.json", b'{"a": 1, "a": 2}', "a.json: not valid JSON: 'a' occurs twice"),
        ("a.yaml", b"\xff", "a.yaml: not UTF-8 .byte 1"),
        ("a.json", b"[" * 100_000, "a.json: not valid JSON: "),
    ],
)
def test_files_that_cannot_be_read(path, content, message, tmp_path):
    if content is not None:
        (tmp_path / path).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        config_file.read(tmp_path / path)


@given(st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers()))
def test_numbers_are_those_of_json(tmp_path_factory, number):
    path = tmp_path_factory.mktemp("numbers") / "a.yaml"
    path.write_text(f"a: {json.dumps(number)}")
    found = config_file.read(path)["a"]
    assert (found, type(found)) == (number, type(number))


@pytest.mark.parametrize("word", ["no", "yes", "on", "1_000", "1:30", "2026-11-26"])
def test_words_stay_words(word, tmp_path):
    (tmp_path / "a.yaml").write_text(f"a: {word}")
    assert config_file.read(tmp_path / "a.yaml") == {"a": word}


CONFIGS = [
    TrainConfig(method=name, data=DataConfig(task), lora=LoraConfig(**lora))
    for name in METHODS
    for task, lora in (
        ("boolq", {"rank_pattern": (("q", 2),), "targets": ("a", "b")}),
        ("sst2", {}),
    )
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.method}-{c.data.task}")
def test_a_runs_own_file_is_the_run(config, called):
    """And it still is when it is resolved for its number of examples."""
    preset = {"boolq": "commonsense", "sst2": "glue"}[config.data.task]
    resolved = resolve(config, preset, 640)
    file = {"config": to_json(resolved), "started": "now", "versions": run.versions()}
    found = called("train", json.dumps(file), "--out", "x", suffix=".json")["config"]
    assert resolve(found, preset, 640) == resolved


def test_lambda_follows_the_number_of_examples(called):
    config = resolve(TrainConfig(), "commonsense", 640)
    file = {"config": to_json(config), "versions": run.versions()}
    found = called("train", json.dumps(file), "--out", "x", suffix=".json")["config"]
    assert resolve(found, "commonsense", 160).hyper.ess == config.hyper.ess / 2


def test_a_comparisons_own_file(called):
    config = CompareConfig(taus=(0.5, 1.0), fit=("tau:*",))
    file = {"config": to_json(config), "versions": run.versions()}
    keywords = called("compare", json.dumps(file), "--out", "x", suffix=".json")
    assert keywords["config"] == config


def test_a_file_may_have_options_of_methods_that_are_not_compared(called):
    text = "adam: {steps: 3}\nivon-lora.steps: 3"
    words = ("--out", "x", "--methods", "adam")
    assert called("compare", text, *words)["config"].methods == ("adam",)
    message = "^ivon-lora.learning_rate: ivon-lora is not one of --methods adam$"
    with pytest.raises(ValueError, match=message):
        called("compare", text, *words, "--ivon_lora.learning-rate=0.1")


def test_a_run_of_another_version(called):
    values = to_json(TrainConfig()) | {"depth": 3}
    file = {"config": values, "versions": {"ivon-jax": "9.1.0"}}
    message = "unknown key 'depth'; .*; a run of ivon-jax 9.1.0, this is [0-9.]+"
    with pytest.raises(ValueError, match=message):
        called("train", json.dumps(file), "--out", "x", suffix=".json")


def test_a_run_writes_the_complete_file_back(tmp_path, monkeypatch):
    model, data = tiny.write_task(tmp_path, layers=1)
    options = {"model": model, **to_json(data), "method": "ivon-lora"}
    options |= {"steps": 3, "batch_size": 8, "rank": 2}
    options = {k: v for k, v in options.items() if v is not None}
    (tmp_path / "run.json").write_text(json.dumps(options))
    one, two = tmp_path / "one", tmp_path / "two"
    for file, out in ((tmp_path / "run.json", one), (one / "config.json", two)):
        line = ["ivon-jax", "train", "--config", str(file), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", line)
        cli.main()
    configs = [run.read_config(out)[0] for out in (one, two)]
    assert configs[0] == configs[1]
    assert dataclasses.asdict(configs[0].hyper)["steps"] == 3
    written = [(out / run.POSTERIOR).read_bytes() for out in (one, two)]
    assert written[0] == written[1]
