"""The text tasks: their rows, and the answers that are read in solutions."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax.train.data.examples import load_examples
from ivon_jax.train.tasks.final_number import final_number
from ivon_jax.train.tasks.letters import letters_rows
from ivon_jax.train.tasks.registry import get_task
from ivon_jax.train.tasks.sums import sums_rows


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 72", "72"),
        ("so 3.\n#### -1,234.", "-1234"),
        ("#### $29.00", "29"),
        ("#### -$1,018.50.", "-1018.5"),
        ("#### 007", "7"),
        ("#### -0.0", "0"),
        ("#### .50", "0.5"),
        ("#### 12 apples", "12"),
        ("####18", "18"),
        ("Question: a\n#### 5\nQuestion: b\n#### 6", "6"),
        ("#### 5\nand ####", "5"),
        ("#### ,", None),
        ("#### 1.2.3", None),
        ("#### twelve", None),
        ("72", None),
        ("", None),
    ],
)
def test_final_number(text, answer):
    assert final_number(text) == answer


@given(st.integers(-(10**12), 10**12), st.booleans())
def test_a_number_has_one_spelling(value, cents):
    written = f"#### {value:,}" + ".00" * cents
    assert final_number(written) == str(value)


def test_gsm8k_reads_every_row_of_the_data(data_dir):
    task = get_task("gsm8k")
    for split, count in (("train", 7473), ("eval", 1319)):
        examples = load_examples(task, split, data_dir=data_dir)
        assert len(examples) == count
        for example in examples:
            assert example.prompt.startswith("Solve the following math word problem: ")
            last = example.completion.rpartition("#### ")[2].replace(",", "")
            assert float(task.parse(example.completion)) == float(last)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_sums_are_right(split):
    for row in sums_rows(split):
        *steps, last = row["solution"].split("\n")
        asked = [int(n) for n in re.findall(r"\d+", row["problem"])]
        used = [int(n) for n in re.findall(r"\d+", steps[0])][:2]
        used += [int(re.findall(r"\d+", step)[1]) for step in steps[1:]]
        assert asked == used
        for step in steps:
            calculation, total = step.split(" = ")
            assert eval(calculation) == int(total) >= 0
        assert last == f"#### {total}"


def test_sums_hold_numbers_and_wordings_out():
    def numbers(row):
        return tuple(sorted(int(n) for n in re.findall(r"\d+", row["problem"])))

    train, held_out = sums_rows("train"), sums_rows("eval")
    assert not set(map(numbers, train)) & set(map(numbers, held_out))
    assert len(set(map(numbers, train))) == len(train)
    assert any("books" in row["problem"] for row in held_out)
    assert not any("books" in row["problem"] for row in train)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_letters_are_counted(split):
    for row in letters_rows(split):
        pairs, last = row["solution"].split("\n")
        spelled = [pair.split() for pair in pairs.split(", ")]
        assert "".join(letter for letter, _ in spelled) == row["word"]
        counts = [row["word"][:i].count(row["letter"]) for i in range(1, 10)]
        assert [int(count) for _, count in spelled] == counts[: len(spelled)]
        assert last == f"#### {row['word'].count(row['letter'])}"


def test_letters_hold_words_out_and_have_balanced_answers():
    train, held_out = letters_rows("train"), letters_rows("eval")
    assert not {row["word"] for row in train} & {row["word"] for row in held_out}
    for rows in (train, held_out):
        answers = [final_number(row["solution"]) for row in rows]
        shares = [answers.count(answer) / len(rows) for answer in ("1", "2", "3")]
        assert max(shares) - min(shares) < 0.01


@pytest.mark.parametrize("name", ["sums", "letters"])
def test_scripted_rows_are_exchanges_with_an_answer(name):
    task = get_task(name)
    examples = load_examples(task, "eval")
    assert len(examples) == 200
    assert all(task.parse(example.completion) for example in examples)
    with pytest.raises(ValueError, match=f"task {name} asks for text, not a class"):
        task.question({})
    assert json.loads(json.dumps(examples[0].parts)) == list(examples[0])
