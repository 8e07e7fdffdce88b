"""Data sets of the hub with fields of their own, from a folder in its layout."""

import dataclasses
import json
from pathlib import Path

import pytest

from ivon_jax.train.config import DataConfig
from ivon_jax.train.data.task import Example
from ivon_jax.train.splits import find_examples, find_task


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set in the hub's layout, with fields and splits of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    topics = ("sport", "art")
    place = tmp_path / "news"
    place.mkdir()
    for split, count in (("train", 12), ("validation", 6)):
        lines = (
            json.dumps({"headline": f"{split} {i}", "topic": topics[i % 2]})
            for i in range(count)
        )
        (place / f"{split}.jsonl").write_text("\n".join(lines))
    return DataConfig(
        task="custom",
        dataset=str(place),
        dataset_splits=("train", "validation"),
        prompt="News: {headline} Topic:",
        labels=topics,
        label_field="topic",
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_any_fields(folder, streaming):
    data = dataclasses.replace(folder, streaming=streaming)
    found = find_examples(find_task(data), data, 0, ["train", "test"])
    assert found["train"] == [
        Example(f"News: train {i} Topic:", i % 2) for i in range(12)
    ]
    assert found["test"][5] == Example("News: validation 5 Topic:", 1)
    assert len(found["test"]) == 6


def test_a_stream_is_read_as_far_as_it_is_needed(folder, monkeypatch):
    import datasets

    data = dataclasses.replace(
        folder, streaming=True, train_examples=5, eval_examples=2
    )
    real, read = datasets.load_dataset, []

    def load_dataset(*args, **options):
        assert options["streaming"]
        for row in real(*args, **options):
            read.append(row["headline"])
            yield row

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = find_examples(find_task(data), data, 3, ["train", "test"])
    assert sorted(e.prompt for e in found["train"]) == [
        f"News: train {i} Topic:" for i in range(5)
    ]
    assert len(read) == 7


def test_a_stream_that_breaks_is_one_line(folder, monkeypatch):
    import datasets

    def load_dataset(*args, **options):
        yield {"headline": "a", "topic": "art"}
        raise ConnectionError("the hub\nhas gone")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = dataclasses.replace(folder, streaming=True)
    with pytest.raises(ValueError, match="^hub data set .*: the hub has gone$"):
        find_examples(find_task(data), data, 0, ["train"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_file": Path("a.jsonl")}, "^train_file: .* or --dataset, not both"),
        ({"eval_file": Path("a.jsonl")}, "^eval_file: not with --dataset"),
        ({"dataset": None}, "^train_file: needed with --task custom without --dataset"),
        ({"labels": ()}, "^labels: needed with --task custom$"),
        ({"columns": ("a=b",)}, "^columns: only with --task text"),
        ({"task": "boolq"}, "^dataset: only with --task custom or text"),
        ({"label_field": "headline"}, "shows the answer"),
    ],
)
def test_options_of_data_sets_that_do_not_go_together(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        find_task(dataclasses.replace(folder, **changes))


def test_a_field_that_a_data_set_has_not(folder):
    data = dataclasses.replace(folder, label_field="class")
    with pytest.raises(ValueError, match="row 1: no field 'class'; the fields are "):
        find_examples(find_task(data), data, 0, ["train"])
