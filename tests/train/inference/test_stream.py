"""Predictions of files and streams by the command line."""

import csv
import datetime
import io
import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tiny
from tiny_inference import command, lines, predicted, texts, write_run

from ivon_jax import metrics
from ivon_jax.ensemble import average
from ivon_jax.train.data.rows import read_rows
from ivon_jax.train.inference import pipeline
from ivon_jax.train.inference.pipeline import PART
from ivon_jax.train.keys import Streams
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.sources import read_run
from ivon_jax.train.step import predict_batch

SAMPLED = ("--samples", 3)
MANY = PART + 100


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(home):
    return write_run(home)


@pytest.fixture(scope="module")
def file(home):
    """More rows than a part has, of all lengths."""
    return tiny.write_rows(home / "many.jsonl", texts(MANY, longest=30))


@pytest.fixture(scope="module")
def whole(run, home, file):
    """What is predicted of it without an interruption."""
    out = home / "whole.jsonl"
    assert command("predict", run, "--file", file, "--out", out, *SAMPLED) == 0
    return out


def test_a_row_tells_what_evaluate_predicts(run, tmp_path):
    source = read_run(run, "data=1")
    encoded, streams = source.problem.splits["test"], Streams.from_seed(0)
    wanted = Samples(3, tau=0.5, prune=0.2)
    log_probs = jnp.asarray(
        predict(source.problem, encoded, source.posterior, wanted, streams)
    )
    mean = average(log_probs)
    options = (*SAMPLED, "--tau", 0.5, "--prune", 0.2, "--per-sample")
    rows = lines(source.config.data.eval_file)
    found = predicted(run, tmp_path / "a", rows, *options)
    assert [row["id"] for row in found] == list(range(1, len(rows) + 1))
    columns = {
        "confidence": jnp.exp(mean).max(axis=1),
        "entropy": metrics.entropy(mean),
        "mutual_information": metrics.mutual_information(log_probs),
    }
    for name, values in columns.items():
        np.testing.assert_allclose([row[name] for row in found], values, atol=1e-5)
    assert columns["mutual_information"].max() > 1e-3
    for row, probs, draws in zip(
        found, jnp.exp(mean), jnp.exp(log_probs).swapaxes(0, 1), strict=True
    ):
        assert list(row["probabilities"]) == list(tiny.LABELS)
        assert row["prediction"] == tiny.LABELS[int(probs.argmax())]
        np.testing.assert_allclose(
            list(row["probabilities"].values()), probs, atol=1e-5
        )
        np.testing.assert_allclose(row["samples"], draws, atol=1e-5)
        assert set(row) == {
            *("id", "prediction", "probabilities", "samples"),
            *columns,
        }


def test_many_rows_are_those_of_few(run, whole, file, tmp_path):
    """Parts, batches and buckets change nothing but the last digits."""
    rows = lines(file)
    found = lines(whole)
    assert len(found) == MANY
    for start in (0, PART - 5):
        few = predicted(run, tmp_path / str(start), rows[start : start + 9], *SAMPLED)
        for one, other in zip(few, found[start : start + 9], strict=True):
            assert one["prediction"] == other["prediction"]
            assert abs(one["confidence"] - other["confidence"]) < 1e-5


def test_programs_are_bounded(run, tmp_path):
    before = predict_batch._cache_size()
    for count in (1, 33, 40):
        rows = texts(count, seed=count, longest=40)
        predicted(run, tmp_path / str(count), rows, *SAMPLED)
    # Buckets of 8 up to 48, a shared prefix of the prompt or none, and two batch sizes.
    assert predict_batch._cache_size() - before <= 15


@pytest.mark.parametrize("longest", [1, 6])
def test_the_mean_and_the_default(run, longest, tmp_path):
    rows = texts(5, longest=longest)
    mean = predicted(run, tmp_path / "mean", rows, "--samples", 0)
    assert all(row["mutual_information"] == 0 for row in mean)
    default = predicted(run, tmp_path / "default", rows)
    assert default == predicted(run, tmp_path / "ten", rows, "--samples", 10)
    assert default != mean


AWKWARD = [
    {"id": "x1", "text": "red old", "note": 'a "quoted"\r\nnote, and more'},
    {"id": "x2", "text": "one\nbig", "note": "ünïcode"},
    {"id": "x3", "text": "three, two", "note": ""},
]


def csv_file(path, encoding="utf-8", **options):
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(AWKWARD[0]), **options)
    writer.writeheader()
    writer.writerows(AWKWARD)
    path.write_bytes(buffer.getvalue().encode(encoding))
    return path


@pytest.fixture(scope="module")
def awkward(run, tmp_path_factory):
    """Predictions of the awkward rows as JSONL."""
    return predicted(run, tmp_path_factory.mktemp("awkward") / "a", AWKWARD, *KEPT)


KEPT = ("--samples", 2, "--keep", "note", "text")


@pytest.mark.parametrize("form", ["csv", "bom", "unix", "parquet", "stdin"])
def test_every_form_of_the_rows_is_read_alike(form, run, awkward, tmp_path, capsys):
    stdin, file = None, tmp_path / "in.csv"
    if form == "parquet":
        file = tmp_path / "in.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(AWKWARD), file)
    elif form == "stdin":
        stdin = "".join(json.dumps(row) + "\n" for row in AWKWARD).encode()
    else:
        encoding = "utf-8-sig" if form == "bom" else "utf-8"
        end = "\n" if form == "unix" else "\r\n"
        csv_file(file, encoding, lineterminator=end)
    if stdin is not None:
        assert command("predict", run, *KEPT, stdin=stdin) == 0
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    else:
        out = tmp_path / "out.jsonl"
        assert command("predict", run, "--file", file, "--out", out, *KEPT) == 0
        found = lines(out)
    assert found == awkward
    assert [row["id"] for row in found] == ["x1", "x2", "x3"]
    assert [row["note"] for row in found] == [row["note"] for row in AWKWARD]


def test_what_is_no_number_in_parquet_is_null(run, tmp_path):
    file, out = tmp_path / "in.parquet", tmp_path / "out.jsonl"
    notes = [{"a": [math.nan, 1.0], "when": datetime.date(2020, 1, 2)}] * 2
    table = {"text": ["red", "one"], "id": [math.nan, 2.0], "note": notes}
    pyarrow.parquet.write_table(pyarrow.table(table), file)
    options = ("--file", file, "--out", out, "--keep", "note")
    assert command("predict", run, *SAMPLED, *options) == 0
    found = [row for _, row in read_rows(out)]  # of strict JSON
    assert [row["id"] for row in found] == [None, 2.0]
    assert found[0]["note"] == {"a": [None, 1.0], "when": "2020-01-02"}


def interrupted(run, file, out, monkeypatch, error, calls=2):
    """Predict until the given part, which fails."""
    real, count = pipeline.Pipeline._results, 0

    def failing(self, *args):
        nonlocal count
        count += 1
        if count == calls:
            raise error
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.Pipeline, "_results", failing)
        return command("predict", run, "--file", file, "--out", out, *SAMPLED)


@pytest.mark.parametrize("cut", [0, 10])
def test_what_was_killed_is_resumed_to_the_line(
    cut, run, file, whole, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "out.jsonl"
    assert interrupted(run, file, out, monkeypatch, KeyboardInterrupt()) == 130
    assert "--resume continues" in capsys.readouterr().err
    rows = tmp_path / "out.jsonl.part" / "rows.jsonl"
    assert not out.exists() and len(lines(rows)) == PART
    if cut:  # the power fails in the middle of a line
        rows.write_bytes(rows.read_bytes()[:-cut])
    options = ("--file", file, "--out", out, *SAMPLED)
    assert command("predict", run, *options) == 2
    assert "unfinished predictions; --resume continues" in capsys.readouterr().err
    assert command("predict", run, *options, "--resume") == 0
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rows", r"many.jsonl:\d+: rows up to here have changed"),
        ("fewer", "has fewer than 512 rows now"),
        ("setting", "predictor: is now Samples"),
        ("state", "state.json: damaged"),
    ],
)
def test_other_predictions_are_not_resumed(
    change, message, run, file, tmp_path, monkeypatch, capsys
):
    own = tmp_path / "many.jsonl"
    own.write_bytes(file.read_bytes())
    out, options = tmp_path / "out.jsonl", SAMPLED
    interrupted(run, own, out, monkeypatch, KeyboardInterrupt())
    capsys.readouterr()
    part = tmp_path / "out.jsonl.part"
    before = (part / "rows.jsonl").read_bytes()
    if change == "rows":
        tiny.write_rows(own, [{"text": "blue"}, *lines(file)[1:]])
    elif change == "fewer":
        tiny.write_rows(own, lines(file)[:100])
    elif change == "setting":
        options = ("--samples", 2)
    else:
        (part / "state.json").write_text("[")
    words = ("predict", run, "--file", own, "--out", out, *options, "--resume")
    assert command(*words) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x[:9] == "ivon-jax:"]
    assert len(errors) == 1
    assert re.search(message, errors[0])
    assert (part / "rows.jsonl").read_bytes() == before


def test_rows_that_are_too_long_are_named_before_the_first_prediction(
    run, file, whole, tmp_path, capsys
):
    long = {"text": "big " * 200}
    broken = [*lines(file)[: PART + 50], long, {"text": "red"}, long]
    own = tiny.write_rows(tmp_path / "in.jsonl", broken)
    out = tmp_path / "out.jsonl"
    assert command("predict", run, "--file", own, "--out", out, *SAMPLED) == 2
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x[:9] == "ivon-jax:"]
    assert f"in.jsonl:{PART + 51}: 1 of 1 prompts are longer" in error
    assert error.endswith(f"; 1 more, as {own}:{PART + 53}")
    assert list(tmp_path.iterdir()) == [own]


def test_a_mended_file_goes_on(run, file, whole, tmp_path, monkeypatch):
    """A prediction that is not finite is found late; nothing before it is lost."""
    out = tmp_path / "out.jsonl"
    words = ("predict", run, "--file", file, "--out", out, *SAMPLED)

    def failing(part, draws):
        if len(part) < PART:
            raise ValueError("not finite")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_check_finite", failing)
        assert command(*words) == 2
    assert len(lines(tmp_path / "out.jsonl.part" / "rows.jsonl")) == PART
    assert command(*words, "--resume") == 0
    assert out.read_bytes() == whole.read_bytes()


def test_a_stream_that_breaks_loses_nothing_before(run, file, whole, capsys):
    good = file.read_bytes().splitlines(keepends=True)[: PART + 20]
    stdin = b"".join(good) + b'{"text": "re'
    assert command("predict", run, *SAMPLED, stdin=stdin) == 2
    out, err = capsys.readouterr()
    assert f"stdin:{PART + 21}: not valid JSON" in err
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == PART + 20
    assert found[:PART] == lines(whole)[:PART]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", (), "in.jsonl: no rows"),
        ("\n\n", (), "in.jsonl: no rows"),
        (
            '{"words": "red"}\n',
            (),
            "in.jsonl:1: no field 'text'; the fields are 'words'",
        ),
        (
            '{"text": "red"}\n{"text": null}\n',
            (),
            "in.jsonl:2: field 'text' must be text",
        ),
        ('{"text": "red"}\n[1]\n', (), "in.jsonl:2: not a JSON object but [1]"),
        ('{"text": "red"', (), "in.jsonl:1: not valid JSON"),
        ('{"text": "\\ud800"}\n', (), "in.jsonl:1: the text is not valid Unicode"),
        ('{"text": "red", "id": "\\ud800"}\n', (), "in.jsonl:1: the text is not valid"),
        (
            '{"text": "red", "note": "\\ud800"}\n',
            ("--keep", "note"),
            "in.jsonl:1: the text is not valid Unicode",
        ),
        ('{"text": "red"}\n', ("--keep", "note"), "in.jsonl:1: no field 'note'"),
        ('{"text": "red"}\n', ("--keep", "set"), "keep: set is a field of the pred"),
        ('{"text": "red"}\n', ("--samples", -1), "samples: -1 is not >= 0"),
        ('{"text": "red"}\n', ("--tau", 0), "tau: 0.0 is not a number > 0"),
        ('{"text": "red"}\n', ("--prune", 1), "prune: 1.0 is not in [0, 1)"),
        ('{"text": "red"}\n', ("--chunk-size", 0), "chunk_size: 0 is not >= 1"),
        ('{"text": "red"}\n', ("--model", "x"), "model: only with --adapter; a run"),
        ('{"text": "red"}\n', ("--best",), "best.safetensors; train with --eval-steps"),
    ],
)
def test_bad_input_is_one_line(content, options, message, run, tmp_path, capsys):
    file, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    file.write_text(content)
    assert command("predict", run, "--file", file, "--out", out, *options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_outputs_that_cannot_be(run, file, whole, tmp_path, capsys):
    before = whole.read_bytes()
    cases = {
        ("--out", whole): "exists; choose a new file",
        ("--out", tmp_path / "no" / "out.jsonl"): "its folder does not exist",
        ("--resume",): "resume: needs a file in --out",
    }
    for options, message in cases.items():
        assert command("predict", run, "--file", file, *options) == 2
        assert message in capsys.readouterr().err
    assert whole.read_bytes() == before
    assert command("predict", run, "--resume", "--out", tmp_path / "x", stdin=b"") == 2
    assert "resume: needs a file in --file" in capsys.readouterr().err


def test_an_empty_stream_leaves_nothing(run, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert command("predict", run, "--out", out, "--samples", 1, stdin=b"\n") == 2
    assert "stdin: no rows" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_labels_are_not_read(run, tmp_path):
    rows = texts(4)
    labelled = [row | {"label": "neither"} for row in rows]
    found = predicted(run, tmp_path / "a", labelled, *SAMPLED)
    assert found == predicted(run, tmp_path / "b", rows, *SAMPLED)
