"""Prediction and generation are for one process, and say so."""

from pathlib import Path

import jax
import pytest
from tiny_fits import command, one_line

import ivon_jax
from ivon_jax.train.generate import open_adapter, open_model, open_run

CALLS = {
    "load": lambda: ivon_jax.load("run"),
    "open_run": lambda: open_run(Path("run")),
    "open_adapter": lambda: open_adapter(Path("adapter"), "model"),
    "open_model": lambda: open_model("model"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_several_processes_are_refused_before_anything_is_read(call, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="processes: there are 2, and this is for one"):
        call()


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "run"),
        ("calibrate", "run", "--file", "rows.jsonl"),
        ("generate", "run"),
        ("export", "run", "--out", "out"),
    ],
    ids=lambda words: words[0],
)
def test_their_commands_join_no_others(words, capsys):
    assert command(*words, "--coordinator", "localhost:1") == 2
    assert "--coordinator" in one_line(capsys)
