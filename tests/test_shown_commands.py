"""Command lines that an older README and older docs showed still parse."""

import functools
import importlib
import json
import shlex
import sys

import numpy as np
import pytest
import tyro
from reference import FIXTURES
from safetensors.numpy import save_file

from ivon_jax.train import cli

LINES = (FIXTURES / "commands.txt").read_text().splitlines()
# `--pack` was removed since, with a message of its own.
SHOWN = [
    line.replace(" --pack 2", "") for line in LINES if line and not line.startswith("#")
]
COMMANDS = ("train", "evaluate", "export", "plan", "compare", "table", "data", "models")


def recorder(command, calls):
    """The command's signature; in place of running, what it was given is kept."""
    return functools.wraps(command)(lambda *a, **k: calls.append((a, k)))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory that has the adapter some commands name."""
    adapter = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1}
    adapter["target_modules"] = ["q_proj"]
    layer = "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {
        f"{layer}.lora_A.weight": np.zeros((4, 8), np.float32),
        f"{layer}.lora_B.weight": np.zeros((8, 4), np.float32),
    }
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("line", [x for x in SHOWN if x.startswith("ivon-jax ")])
def test_commands(line, place, monkeypatch):
    calls = []
    for name in COMMANDS:
        monkeypatch.setattr(cli, name, recorder(getattr(cli, name), calls))
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    cli.main()
    assert len(calls) == 1


def test_a_removed_option_is_named(monkeypatch, capsys):
    words = "ivon-jax train --pack 2 --out runs/named"
    monkeypatch.setattr(sys, "argv", words.split())
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pack: was removed: batches have no padding" in line


@pytest.mark.parametrize("line", [x for x in SHOWN if x.startswith("python -m ")])
def test_benchmarks(line, monkeypatch):
    calls = []
    _, _, module, *words = shlex.split(line)
    main = importlib.import_module(module).main
    tyro.cli(recorder(main, calls), args=words)
    assert len(calls) == 1


def test_every_shown_line_is_one_of_these():
    kinds = ("ivon-jax ", "python -m benchmarks.")
    assert [line for line in SHOWN if not line.startswith(kinds)] == []
    assert len(SHOWN) > 40
