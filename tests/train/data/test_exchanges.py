"""Rows of every format as exchanges."""

import pytest
import tiny

from ivon_jax.train.data.exchanges import Exchange, Message, exchange_reader
from ivon_jax.train.data.rows import read_rows


def chat(*turns: str, first: str = "user") -> tuple[Message, ...]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))


ALPACA = ("prompt=instruction+input", "completion=output")
SHAREGPT = ("messages=conversations", "role=from", "content=value")


@pytest.mark.parametrize(
    ("row", "columns", "wanted", "format"),
    [
        ({"text": "ab"}, (), Exchange("", "ab"), "text"),
        (
            {"prompt": "a", "completion": "b", "text": "c", "id": 3},
            (),
            Exchange("a", "b"),
            "prompt and completion",
        ),
        (
            {"prompt": "hi", "messages": [{"role": "user", "content": "a"}]},
            (),
            Exchange((), chat("a")),
            "messages",
        ),
        (
            {
                "prompt": [{"role": "user", "content": "a"}],
                "completion": [{"role": "assistant", "content": "b"}],
            },
            (),
            Exchange(chat("a"), chat("b", first="assistant")),
            "prompt and completion of messages",
        ),
        (
            {"instruction": "a", "input": "b", "output": "c"},
            ALPACA,
            Exchange("a\nb", "c"),
            "prompt and completion",
        ),
        (
            {"instruction": "a", "input": "", "output": "c"},
            ALPACA,
            Exchange("a", "c"),
            "prompt and completion",
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}]},
            SHAREGPT,
            Exchange((), chat("a")),
            "messages",
        ),
        (
            {"conversations": [{"from": "gpt", "value": "a"}]},
            SHAREGPT,
            Exchange((), chat("a", first="assistant")),
            "messages",
        ),
        ({"prompt": 2, "completion": 4.5}, (), Exchange("2", "4.5"), None),
    ],
)
def test_rows_of_every_format(row, columns, wanted, format):
    found = exchange_reader(columns)(row)
    assert found == wanted
    assert format is None or found.format == format


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"question": "a"},
            "no field 'messages', .*; the fields are 'question'",
        ),
        ({}, "the fields are none"),
        ({"prompt": "a"}, "no field"),
        ({"prompt": "a", "completion": " \n"}, "the completion is empty"),
        ({"text": ""}, "the text is empty"),
        ({"text": ["a"]}, "field 'text' must be text"),
        ({"prompt": "a", "completion": [{"role": "a", "content": "b"}]}, "one is text"),
        ({"messages": []}, "field 'messages' must be a list of messages"),
        ({"messages": "[]"}, "field 'messages' must be a list"),
        ({"messages": ["a"]}, "message 1 is not an object but 'a'"),
        ({"messages": [{"role": "user"}]}, "no field 'content'"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "1: 'content' must be text",
        ),
        (
            {"messages": [{"role": "assistant", "content": " "}]},
            "1: the reply is empty",
        ),
    ],
)
def test_bad_rows(row, message):
    with pytest.raises(ValueError, match=message) as caught:
        exchange_reader()(row)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["prompt", "prompt=", "answer=output", "prompt=a+"])
def test_bad_columns(column):
    with pytest.raises(ValueError, match="^columns: .* is not of the form NAME=FIELD"):
        exchange_reader([column])


def test_csv_and_parquet_hold_the_same_exchanges(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"prompt": "a, b", "completion": 'c "d"\n'},
        {"prompt": "1", "completion": "2"},
    ]
    tiny.write_rows(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.csv").write_text('prompt,completion\n"a, b","c ""d""\n"\n1,2\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = exchange_reader()
    found = [
        [read(row) for _, row in read_rows(tmp_path / name)]
        for name in ("a.jsonl", "a.csv", "a.parquet")
    ]
    assert found[0] == found[1] == found[2]
    messages = [{"messages": [{"role": "user", "content": "a"}]}]
    table = pyarrow.Table.from_pylist(messages)
    pyarrow.parquet.write_table(table, tmp_path / "m.parquet")
    ((_, row),) = read_rows(tmp_path / "m.parquet")
    assert read(row) == Exchange((), chat("a"))
