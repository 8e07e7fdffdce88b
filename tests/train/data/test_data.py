"""The tasks' own rows, of the data folder or the hub."""

import json
from pathlib import Path

import pytest
from tiny_rows import message, write_jsonl

from ivon_jax.train.data.examples import (
    data_folder,
    load_examples,
)
from ivon_jax.train.data.task import Example
from ivon_jax.train.tasks.registry import TASKS, get_task


def independent_count(path: Path, four_choices: bool) -> int:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    if four_choices:
        rows = [row for row in rows if len(row["choices"]["text"]) == 4]
    return len(rows)


FOLDERS = {
    "winogrande_s": ("winogrande_s", "winogrande"),
    "winogrande_m": ("winogrande_m", "winogrande"),
    "arc_challenge": ("ARC-Challenge",) * 2,
    "arc_easy": ("ARC-Easy",) * 2,
}
ABSENT = {("qnli", "train"), ("qqp", "train"), ("qqp", "eval")}
LABELLED = [name for name in TASKS if get_task(name).exchange is None]


@pytest.mark.parametrize(
    ("name", "split"),
    # No files are there for the absent ones; see the next test.
    sorted({(n, s) for n in LABELLED for s in ("train", "eval")} - ABSENT),
)
def test_every_row_of_every_task_loads(name, split, data_dir):
    task = get_task(name)
    examples = load_examples(task, split, data_dir=data_dir)
    labels = {example.label for example in examples}
    if task.label_words:
        assert labels == set(range(len(task.label_words)))
    else:  # stsb: how alike two sentences are
        assert (min(labels), max(labels)) == (0.0, 5.0)
    if name != "city-continent":
        folder = FOLDERS.get(name, (name, name))[split == "eval"]
        file = "train" if split == "train" else "validation"
        choices = name.startswith("arc") or name == "openbookqa"
        path = data_dir / folder / f"{file}.jsonl"
        # splitlines() also cuts at other separators; none may be in these files.
        assert len(examples) == independent_count(path, choices)


@pytest.mark.parametrize(("name", "split"), sorted(ABSENT))
def test_a_missing_file_is_named(name, split, data_dir):
    text = message(load_examples, get_task(name), split, data_dir=data_dir)
    file = "train" if split == "train" else "validation"
    assert f"has no {name}/{file}.jsonl" in text
    assert f"{name!r}" in text


def test_arc_drops_some_rows_and_labels_agree_with_the_file(data_dir):
    path = data_dir / "ARC-Challenge" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    kept = [row for row in rows if len(row["choices"]["text"]) == 4]
    assert 0 < len(kept) < len(rows)
    examples = load_examples(get_task("arc_challenge"), "train", data_dir=data_dir)
    for row, example in zip(kept, examples, strict=True):
        place = row["choices"]["label"].index(row["answerKey"])
        right = row["choices"]["text"][place]
        answer = "ABCD"[example.label]
        assert f" {answer}. {right[0].upper()}{right[1:]}" in example.prompt


def test_local_data_may_be_csv_and_a_file_goes_first(tmp_path):
    (tmp_path / "sst2").mkdir()
    (tmp_path / "sst2" / "validation.csv").write_text("sentence,label\nfine,1\n")
    task = get_task("sst2")
    (example,) = load_examples(task, "eval", data_dir=tmp_path)
    assert example == Example("Review: fine\nSentiment:", 1, ("fine",))
    own = write_jsonl(tmp_path / "own.jsonl", [{"sentence": "bad", "label": 0}])
    (example,) = load_examples(task, "eval", data_dir=tmp_path, eval_file=own)
    assert example.label == 0


@pytest.mark.parametrize(
    ("name", "split", "wanted"),
    [
        ("rte", "train", ("nyu-mll/glue", "rte", "train")),
        ("rte", "eval", ("nyu-mll/glue", "rte", "validation")),
    ],
)
def test_rows_of_the_hub(name, split, wanted, monkeypatch):
    rows = [
        {"sentence1": "It rains.", "sentence2": "It is wet.", "label": label, "idx": 0}
        for label in (0, 1, 2)
    ]
    asked = []

    def load_dataset(path, config, split):
        asked.append((path, config, split))
        return rows[: len(rows) - (split == "train")]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    if split == "train":
        examples = load_examples(get_task(name), split)
        assert [example.label for example in examples] == [0, 1]
        assert examples[0].texts == ("It rains.", "It is wet.")
    else:
        text = message(load_examples, get_task(name), split)
        assert text.startswith("hub data set nyu-mll/glue (rte, validation) row 3: ")
    assert asked == [wanted]


@pytest.mark.filterwarnings("default")  # of the hub's client, not ours
def test_hub_out_of_reach_is_one_line_that_names_the_remedy():
    text = message(load_examples, get_task("sst2"), "eval")
    assert text.startswith("hub data set nyu-mll/glue (sst2, validation)")
    assert "--data-dir" in text


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("IVON_JAX_DATA", raising=False)
    assert data_folder() is None
    monkeypatch.setenv("IVON_JAX_DATA", "elsewhere")
    assert data_folder() == Path("elsewhere")
    assert data_folder(tmp_path) == tmp_path
