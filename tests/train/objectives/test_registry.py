"""A task and an objective of one's own, through the commands."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest
import tiny
from tiny_answers import command
from tiny_commands import lines

from ivon_jax.train.data.answers import answer_tokens
from ivon_jax.train.data.task import Task
from ivon_jax.train.objectives.label_words import LabelWords
from ivon_jax.train.objectives.registry import OBJECTIVES
from ivon_jax.train.report import tables
from ivon_jax.train.tasks.registry import TASKS

FACTOR = 7.0


def rows(split):
    texts = [f"the {w} of {i}" for i in range(24) for w in ("good", "bad")]
    return [{"text": text, "label": i % 2} for i, text in enumerate(texts)]


def moods(style):
    return Task(
        "moods",
        "custom",
        prompt=lambda row: f"Text: {row['text']} Answer:",
        target=lambda row: row["label"],
        label_words=tiny.LABELS,
        other_space=True,
        rows=rows,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Own(LabelWords):
    """A loss that is a multiple of the usual one, and a metric more."""

    @property
    def shown(self):
        return ("nll", "own_metric")

    def loss(self, outputs, batch):
        return FACTOR * super().loss(outputs, batch)

    def score(self, predictions, labels):
        found = super().score(predictions, labels)
        return found | {"own_metric": -found["nll"]}


def own(task, model_config, tokenizer, name):
    label_ids = answer_tokens(tokenizer, task.label_words, task.leading_space)
    return Own(label_ids, task.metrics, model_config.max_position_embeddings)


@pytest.fixture
def model(tmp_path, monkeypatch) -> Path:
    monkeypatch.setitem(TASKS, "moods", moods)
    tiny.write_model(tmp_path / "model", layers=1)
    return tmp_path / "model"


def train(model: Path, out: Path, *more: object) -> list[dict]:
    words = ("--model", model, "--task", "moods", "--method", "adam", "--rank", 2)
    words += ("--steps", 4, "--batch-size", 8, "--dropout", 0, *more)
    assert command("train", *words, "--out", out) == 0
    return lines(out / "metrics.jsonl")


def test_its_loss_is_trained_and_its_scores_are_logged(model, tmp_path, monkeypatch):
    usual = train(model, tmp_path / "usual")
    monkeypatch.setitem(OBJECTIVES, "moods", own)
    found = train(model, tmp_path / "own", "--eval-steps", 2)
    # B is zero at the start, so both runs' first step has the same outputs.
    assert found[0]["loss"] == pytest.approx(FACTOR * usual[0]["loss"], rel=1e-5)
    scored = [x for x in found if "eval_nll" in x]
    assert [x["eval_own_metric"] for x in scored] == [-x["eval_nll"] for x in scored]
    resumed = train(model, tmp_path / "own", "--eval-steps", 2, "--resume")
    assert [x["loss"] for x in resumed] == [x["loss"] for x in found]


def test_it_is_compared_tuned_and_tabulated(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(OBJECTIVES, "moods", own)
    words = ("--model", model, "--task", "moods", "--rank", 2)
    words += ("--validation-examples", 16)
    short = ("--adam.steps", 2, "--adam.batch-size", 8)
    compared = ("--methods", "adam", "--fit", "temperature:adam", *short)
    out = tmp_path / "compared"
    assert command("compare", *words, *compared, "--out", out) == 0
    for row in json.loads((out / "results.json").read_text())["rows"]:
        assert row["own_metric"] == -row["nll"]
    capsys.readouterr()
    assert command("table", out) == 0
    assert f"| {tables.COLUMNS['nll'][0]} " in capsys.readouterr().out
    searched = ("--method", "adam", "--steps", 2, "--batch-size", 8)
    searched += ("--sampler", "grid", "--search", "learning_rate=1e-4,1e-3")
    assert command("tune", *words, *searched, "--out", tmp_path / "tuned") == 0
    assert (tmp_path / "tuned" / "best-adam.json").exists()
