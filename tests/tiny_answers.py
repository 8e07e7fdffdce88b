"""A text task of one digit, whose answer is the first digit of a text."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ivon_jax.testing.tiny import write_text_model
from ivon_jax.train import cli
from ivon_jax.train.data.exchanges import Exchange
from ivon_jax.train.data.task import Task
from ivon_jax.train.tasks.registry import TASKS

NAME = "tiny-sums"
QUESTIONS = 6


def parse(text: str) -> str | None:
    found = re.search(r"\d", text)
    return found[0] if found else None


def rows(split: str) -> list[dict[str, str]]:
    of = range(8) if split == "train" else range(QUESTIONS)
    # The untrained model repeats the last character, which is right half of the time.
    return [{"question": f"1+{i}", "answer": f"{i + i % 2}."} for i in of]


def task(style: str = "") -> Task:
    return Task(
        NAME,
        "text",
        rows=rows,
        exchange=lambda row: Exchange(str(row["question"]), str(row["answer"])),
        parse=parse,
    )


def home_of(folder: Path) -> Iterator[Path]:
    """Writes the model, and registers the task as long as the generator lives."""
    write_text_model(folder / "model", layers=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, NAME, task)
        yield folder


def options(home: Path) -> list[str]:
    small = ["--rank", "2", "--train-examples", "8"]
    return ["--task", NAME, "--model", str(home / "model"), *small]


def command(*args: object) -> int:
    """Runs the command line in this process; returns the exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", *map(str, args)])
        try:
            cli.main()
        except SystemExit as stop:
            return int(stop.code or 0)
    return 0
