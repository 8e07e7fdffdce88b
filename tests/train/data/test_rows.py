"""Files of rows: each format, and what is wrong in one."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_rows import CUSTOM, EXAMPLES, ROWS, message, write_jsonl

from ivon_jax.train.data.examples import (
    load_examples,
)
from ivon_jax.train.data.rows import read_rows
from ivon_jax.train.tasks.registry import get_task


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
