"""GSM8K by the real model: it learns the format, stops, and is read."""

import json

import pytest
from tiny_answers import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_a_few_steps_teach_the_format(data_dir, tmp_path):
    out = tmp_path / "run"
    data = ["--task", "gsm8k", "--train-examples", "256", "--eval-examples", "4"]
    data += ["--data-dir", data_dir, "--max-length", "256", "--too-long", "drop"]
    steps = ["--method", "adam", "--steps", "64", "--batch-size", "2", "--warmup", "4"]
    assert command("train", *data, *steps, "--learning-rate", "1e-3", "--out", out) == 0
    votes = ["--samples", "1", "--outputs", "2", "--max-tokens", "256"]
    assert command("evaluate", out, *votes) == 0
    (path,) = out.glob("evaluation-*.json")
    (row,) = json.loads(path.read_text())["rows"]
    assert row["parsed"] >= 0.5
    assert row["cut"] <= 0.5
