"""GSM8K by the real model: it learns the format, stops, and is read."""

import json

import pytest
from tiny_answers import command

pytestmark = pytest.mark.slow


def test_a_few_steps_teach_the_format(data_dir, tmp_path):
    out = tmp_path / "run"
    data = ["--task", "gsm8k", "--train-examples", "200", "--eval-examples", "6"]
    data += ["--data-dir", data_dir, "--max-length", "160", "--too-long", "drop"]
    steps = ["--method", "adam", "--steps", "24", "--batch-size", "4", "--warmup", "2"]
    rate = ["--learning-rate", "1e-3"]
    assert command("train", *data, *steps, *rate, "--out", out) == 0
    votes = ["--samples", "1", "--outputs", "2", "--max-tokens", "256"]
    assert command("evaluate", out, *votes) == 0
    (path,) = out.glob("evaluation-*.json")
    (row,) = json.loads(path.read_text())["rows"]
    # The untrained model writes no "####", and its answers are longer.
    assert row["parsed"] >= 0.5
    assert row["cut"] <= 0.5
    texts = [
        json.loads(line)["text"]
        for line in (out / "outputs-mean-max_tokens256.jsonl").read_text().splitlines()
    ]
    assert sum("#### " in text for text in texts) >= 6
