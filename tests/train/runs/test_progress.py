"""What is shown of a run: lines where nobody watches, a bar on a terminal."""

import io
import re
import sys

import pytest

from ivon_jax.train.runs import progress


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_where_nobody_watches(clock, capsys):
    with progress.progress("train", total=10, every=4, done=2) as report:
        for _ in range(8):
            clock.now += 3
            report(1, "loss 1.5")
    # At 4, 8 and the end; 3 seconds for each of the units that are left.
    assert capsys.readouterr().err.splitlines() == [
        "train 4/10  loss 1.5  18 s left",
        "train 8/10  loss 1.5  6 s left",
        "train 10/10  loss 1.5  0 s left",
    ]


def test_steps_of_many_units(clock, capsys):
    with progress.progress("evaluate", total=70, every=32) as report:
        for count in (32, 32, 6):
            clock.now += 1
            report(count, "2 samples")
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["32/70", "64/70", "70/70"]


def test_a_bar_on_a_terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress("train", total=10, every=4, done=2) as report:
        for _ in range(8):
            report(1, "loss 1.5")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search(r"train .*10/10  loss 1\.5", shown)
    assert "s left" not in shown


def test_nothing_where_nothing_is_wanted(capsys):
    with progress.progress("train", total=1, every=1, show=False) as report:
        report(1, "loss 1.5")
    assert capsys.readouterr() == ("", "")


class Gone(io.StringIO):
    """A terminal or a pipe that nobody reads any more."""

    def __init__(self, *, terminal: bool, error: Exception) -> None:
        super().__init__()
        self.terminal, self.error = terminal, error

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(), OSError(28, "no space"), ValueError("closed file")],
    ids=lambda error: type(error).__name__,
)
def test_what_cannot_be_shown_stops_nothing(terminal, error, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Gone(terminal=terminal, error=error))
    monkeypatch.setenv("TERM", "xterm")
    done = []
    progress.say("a line")
    with progress.progress("train", total=3, every=1) as report:
        for step in (1, 2, 3):
            report(1, "loss 1.5")
            done.append(step)
    assert done == [1, 2, 3]
    with pytest.raises(ZeroDivisionError), progress.progress("t", 1, 1):
        1 / 0  # noqa: B018
