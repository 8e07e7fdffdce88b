"""Training and evaluation that start from an adapter."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_adapters import (
    EVAL,
    TASK,
    command_in,
    random_adapters,
    same,
    trained,
    write_home,
)

from ivon_jax.lora import LoraConfig
from ivon_jax.models import load
from ivon_jax.models import peft_io as peft_files
from ivon_jax.models.peft_io import save_adapter
from ivon_jax.posterior import Posterior
from ivon_jax.train.command_line import parse
from ivon_jax.train.runs import run

# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def base(folder):
    return load(str(folder / "model"))


@pytest.fixture
def command(folder, monkeypatch, capsys):
    return command_in(folder, monkeypatch, capsys)


OWN = LoraConfig(
    rank=3,
    alpha=5.0,
    dropout=0.25,
    targets=("layers/mlp/up_proj", "layers/self_attn/q_proj"),
    rslora=True,
    rank_pattern=(("layers/mlp/up_proj", 2),),
    alpha_pattern=(("layers/self_attn/q_proj", 4.0),),
)


@pytest.fixture
def given(base, tmp_path):
    """An adapter that differs from the defaults in everything."""
    (tmp_path / "given").mkdir()
    save_adapter(tmp_path / "given", random_adapters(base, OWN), OWN, "model")
    return tmp_path / "given"


@pytest.mark.parametrize("name", ["train", "plan"])
def test_an_adapters_own_settings_are_the_defaults_beside_it(name, given, monkeypatch):
    from ivon_jax.train import cli

    def parsed(*args):
        extra = {"train": ["--out", "new"], "plan": ["--chip", "v5e"]}[name]
        argv = ["ivon-jax", name, *extra, *map(str, args)]
        monkeypatch.setattr("sys.argv", argv)
        return parse({"train": cli.train, "plan": cli.plan}).keywords["config"]

    config = parsed("--adapter", given, "--seed", 3)
    assert (config.adapter, config.seed, config.lora) == (given, 3, OWN)
    changed = parsed("--dropout", 0.5, "--adapter", given, "--rank", 8).lora
    assert changed == dataclasses.replace(OWN, dropout=0.5, rank=8)
    assert parsed().lora == LoraConfig()
    config = parsed("--method", "adam", "--adapter", given, "--eps", 1)
    assert (config.method, config.hyper.eps, config.lora) == ("adam", 1.0, OWN)


def test_training_and_evaluation_start_from_an_adapter(command, given, base, tmp_path):
    adapters = random_adapters(base, OWN)
    start = ["--adapter", given]
    trained(command, tmp_path / "run", "adam", *start, "--steps", 0, lora=())
    assert run.read_config(tmp_path / "run")[0].lora == OWN
    same(Posterior.load(tmp_path / "run" / run.POSTERIOR).mean, adapters)
    assert command("evaluate", tmp_path / "run")[0] == 0
    out = tmp_path / "evaluated"
    code, printed = command("evaluate", *start, *EVAL, "--out", out)
    assert code == 0
    assert "| adapter " in printed
    name = "predictions-mean.safetensors"
    same(load_file(out / name), load_file(tmp_path / "run" / name))
    found, wanted = (
        json.loads((place / "evaluation-mean.json").read_text())
        for place in (out, tmp_path / "run")
    )
    assert found["rows"] == [wanted["rows"][0] | {"method": "adapter"}]
    for fact in ("eval_fingerprint", "model_fingerprint", "versions"):
        assert found[fact] == wanted[fact]
    assert found["config"]["adapter"] == str(given)
    assert found["config"]["seed"] == wanted["config"]["seed"]
    trained(command, tmp_path / "two", "adam", *start, lora=())
    moved = Posterior.load(tmp_path / "two" / run.POSTERIOR).mean
    for one, two in zip(jax.tree.leaves(adapters), jax.tree.leaves(moved), strict=True):
        # Two steps of Adam move no entry by more than twice the learning rate.
        assert 0 < np.abs(one - two).max() < 3 * 2e-4


def test_options_that_an_adapter_contradicts(command, given, tmp_path):
    start = ["--adapter", given, "--out", tmp_path / "out"]
    for options, message in {
        ("--rank", 8): "its rank of layers/self_attn/q_proj is 3, but rank 8",
        ("--alpha", 1): "its alpha of layers/mlp/up_proj is 5.0, but alpha 1.0",
        (
            "--targets",
            "q_proj",
            "up_proj",
            "v_proj",
        ): "has no adapter for layers/self_attn",
        ("--no-rslora",): "its use_rslora is True, but rslora False",
        ("--rank-pattern",): "its rank of layers/mlp/up_proj is 2, but rank 3",
    }.items():
        code, error = command("train", *TASK, *start, *options)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
    save_file({"score.weight": np.ones((2, 2), np.float32)}, given / peft_files.WEIGHTS)
    code, error = command("train", *TASK, *start)
    assert (code, error.count("\n")) == (2, 1)
    assert "tensor score.weight is not implemented" in error
    assert not (tmp_path / "out").exists()


def test_evaluate_takes_a_run_or_an_adapter(command, given, tmp_path):
    place = ["--out", tmp_path / "out"]
    for args, message in {
        (): "directory: name a run, or an adapter",
        (given, "--adapter", given): "directory: name a run, or an adapter",
        (given, "--model", "model"): "model: only with --adapter",
        (given, "--task", "rte"): "task: only with --adapter",
        ("--adapter", given, *EVAL): "adapter: needs --model and --out",
        ("--adapter", given, *EVAL, *place, "--best"): "has no --best",
        ("--adapter", given, *EVAL, "--out", given): "holds another run",
        ("--adapter", given, *EVAL, *place, "--prune", 0.5): "prune: the method has no",
        ("--adapter", tmp_path, *EVAL, *place): "adapter_config.json: no such file",
        # Before the model is looked for.
        ("--adapter", given, *EVAL, *place, "--model", "no", "--outputs", 4): (
            "outputs: only with a task of answers in texts, not custom"
        ),
    }.items():
        code, error = command("evaluate", *args)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
    assert not (tmp_path / "out").exists()
