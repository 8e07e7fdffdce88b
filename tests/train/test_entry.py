"""The list of commands, which is read from the sources."""

import re
import sys

import pytest

from ivon_jax.train import cli, entry


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_all_commands_are_listed(word, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ivon-jax", word])
    entry.main()
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main()
    commands = re.search(r"\{([\w,]+)\}", capsys.readouterr().out)[1].split(",")
    assert list(entry.summaries()) == commands
    for name in commands:
        first = getattr(cli, name).__doc__.splitlines()[0]
        assert f"  {name:<9}  {first}\n" in shown


def test_all_else_is_the_command_lines(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ivon-jax", "data", "--task", "no-such-task"])
    with pytest.raises(SystemExit) as stop:
        entry.main()
    assert stop.value.code == 2
    assert "no-such-task" in capsys.readouterr().err
