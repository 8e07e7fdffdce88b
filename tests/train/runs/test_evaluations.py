"""The evaluations in a run's folder, read back."""

import json

import pytest

from ivon_jax.train.runs.evaluations import read_evaluations


def write(folder, name, rows, **values):
    (folder / name).write_text(json.dumps({"rows": rows} | values))


def test_files_come_by_name_and_say_what_they_are_of(tmp_path):
    write(tmp_path, "evaluation-mean.json", [{"method": "adam"}])
    write(tmp_path, "evaluation-4-ood-rte.json", [], best=True, step=3)
    (tmp_path / "predictions-mean.safetensors").touch()
    foreign, own = read_evaluations(tmp_path)
    assert (foreign.foreign, foreign.of) == ("rte", (True, 3))
    assert (own.foreign, own.of) == ("", (None, None))  # version 0.1.0 named neither


def test_of_equal_rows_the_first_stays(tmp_path):
    rows = [{"method": "a", "nll": 1}, {"method": "b"}, {"method": "a", "nll": 2}]
    write(tmp_path, "evaluation-4.json", rows)
    (found,) = read_evaluations(tmp_path)
    assert found.rows_by(lambda row: row["method"]) == {"a": rows[0], "b": rows[1]}


@pytest.mark.parametrize("text", ["[]", "{", "{}", '{"rows": {}}', '{"rows": null}'])
def test_a_damaged_file_is_named(text, tmp_path):
    path = tmp_path / "evaluation-4.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"^{path}: not an evaluation: .+"):
        list(read_evaluations(tmp_path))


@pytest.mark.parametrize("row", [{}, [], None, 1])
def test_a_row_without_what_is_read_names_the_file(row, tmp_path):
    write(tmp_path, "evaluation-4.json", [row])
    (found,) = read_evaluations(tmp_path)
    with pytest.raises(ValueError, match=r"evaluation-4.json: not an evaluation: .+"):
        found.rows_by(lambda one: one["method"])
