"""Words of commands on a tiny model, and what they print."""

import json
from pathlib import Path

import tiny

TASK = ["--task", "custom", "--prompt", tiny.PROMPT, "--labels", *tiny.LABELS]
SHORT = ["--steps", "6", "--batch-size", "8"]


def write_home(home: Path) -> Path:
    """Write a model and data into a folder."""
    tiny.write_model(home / "model", layers=1)
    tiny.write_data(home / "data")
    return home


def problem_of(home: Path) -> list:
    """Options that name the model and data; the last of a repeated one counts."""
    data = home / "data"
    files = ["--train-file", data / "train.jsonl", "--eval-file", data / "eval.jsonl"]
    return ["--model", home / "model", *TASK, *files]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def one_line(capsys):
    """What stderr holds, which must be a single message."""
    message = capsys.readouterr().err
    assert message.startswith("ivon-jax: ")
    assert message.count("\n") == 1
    assert message.endswith("\n")
    return message
