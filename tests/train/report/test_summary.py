"""`ivon-jax show`, and the statistics of a posterior."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_fits import command, one_line
from tiny_results import (
    gaussian,
    members,
    plain_texts,
    point,
    write_examples,
    write_run,
)

from ivon_jax.diagnostics import QUANTILES
from ivon_jax.train.report.logs import blocks, read_log, values_of
from ivon_jax.train.report.posteriors import Entries
from ivon_jax.train.report.summary import BLOCKS, sparkline
from ivon_jax.train.runs import run, status
from ivon_jax.train.runs.diagnostics import DIAGNOSTICS


@pytest.fixture
def data(tmp_path):
    return write_examples(tmp_path / "data", plain_texts(12))


def test_a_summary_tells_all_without_a_model(data, tmp_path, capsys):
    folder = write_run(tmp_path / "run", data)
    assert command("show", folder) == 0
    out = capsys.readouterr().out
    for text in (
        "evaluated, step 40 of 40; 20 s of training",
        "custom, 64 train, 12 eval",
        "some/model, base f32",
        "rank 8",
        "ivon-lora: steps 40",
        "eval_accuracy 0.75",
        "gaussian, 20 parameters, 20 of them vary, ess 64, step 40",
        "evaluation-4.json",
        "ivon-lora@mean",
    ):
        assert text in re.sub(r"\s+", " ", out), text
    # All variances are 1/4.
    assert re.search(r"sigma +0\.5 +0\.5 +0\.5 +0\.5 +0\.5", out)
    loss = [line for line in out.splitlines() if line.startswith("loss")]
    assert re.search(rf" [{BLOCKS} ]{{40}}  \d\.\d+ → \d\.\d+", loss[0])


def test_the_diagnosis_of_the_run_is_there(data, tmp_path, capsys):
    folder = write_run(tmp_path / "run", data)
    values = {"clipped": 0.25, "hess": [1, 2, 3, 4, None], "advice": ["raise [gamma]"]}
    run.write_json(folder / DIAGNOSTICS, values)
    assert command("show", folder) == 0
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    for text in ("h/hess_init 1 2 3 4 nan", "25.0% of the last step", "raise [gamma]"):
        assert text in out


def test_results_of_earlier_steps_are_left_out(data, tmp_path, capsys):
    folder = write_run(tmp_path / "run", data)
    values = json.loads((folder / "evaluation-4.json").read_text())
    gaussian().save(folder / run.BEST, step=30)
    for name, change in {
        "earlier": {"step": 11},
        "best-earlier": {"best": True, "step": 20},
        "best": {"best": True, "step": 30},
    }.items():
        run.write_json(folder / f"evaluation-4-{name}.json", values | change)
    assert command("show", folder) == 0
    shown = re.findall(r"evaluation-\S+", capsys.readouterr().out)
    assert shown == ["evaluation-4-best.json", "evaluation-4.json"]


@pytest.mark.parametrize(
    ("posterior", "text"),
    [(point(), "gaussian, 20 parameters, a point"), (members(), "3 members")],
)
def test_other_posteriors(posterior, text, data, tmp_path, capsys):
    command("show", write_run(tmp_path / "run", data, [], posterior))
    assert text in re.sub(r"\s+", " ", capsys.readouterr().out)


def test_a_run_that_is_being_trained(data, tmp_path, capsys):
    folder = write_run(tmp_path / "run", data, [], state="training")
    (folder / run.POSTERIOR).unlink()
    status.write(folder, 10, 40, "training")
    log = (folder / run.METRICS).read_text()
    (folder / run.METRICS).write_text(log + '{"step": 41, "lo')
    assert command("show", folder) == 0
    out = capsys.readouterr().out
    assert "training; the newest checkpoint is at step 10 of 40" in out
    assert "none yet" in out


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (run.CONFIG, None, "not a run"),
        (run.METRICS, "{}\n", "not the metrics of a run: a line has no step"),
        ("evaluation-4.json", "[]", "not an evaluation"),
        (run.POSTERIOR, "", "posterior"),
    ],
)
def test_a_damaged_run_is_one_line(name, text, message, data, tmp_path, capsys):
    folder = write_run(tmp_path / "run", data)
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    assert command("show", folder) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


def test_best_needs_a_best_posterior(data, tmp_path, capsys):
    assert command("show", write_run(tmp_path / "run", data), "--best") == 2
    assert "has no best.safetensors" in one_line(capsys)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_a_sparkline_has_the_lowest_block_at_the_lowest_value(values):
    line = sparkline(values)
    assert len(line) == len(values)
    assert line[int(np.argmin(values))] == BLOCKS[0]
    if max(values) > min(values):
        assert line[int(np.argmax(values))] == BLOCKS[-1]


def test_a_long_sparkline_is_of_means():
    assert sparkline([0, 2, 10, 10, None, None], width=3) == "▁█ "
    assert sparkline([]) == ""
    assert sparkline([None, float("nan")]) == "  "


def test_blocks_cover_all_steps_and_keep_the_mean():
    values = [(i, float(i % 7)) for i in range(1, 1001)]
    found = blocks(values)
    assert len(found) == 60
    assert [b.first for b in found[1:]] == [b.last + 1 for b in found[:-1]]
    assert (found[0].first, found[-1].last) == (1, 1000)
    sizes = [b.last - b.first + 1 for b in found]
    mean = np.average([b.mean for b in found], weights=sizes)
    assert mean == pytest.approx(np.mean([v for _, v in values]))
    part = np.array([v for i, v in values if found[3].first <= i <= found[3].last])
    error = 1.96 * part.std(ddof=1) / len(part) ** 0.5
    assert found[3].high - found[3].mean == pytest.approx(error, rel=1e-3)
    assert blocks([]) == []


def test_a_skipped_steps_loss_has_no_value(data, tmp_path):
    log = read_log(write_run(tmp_path / "run", data, []))
    steps = [step for step, _ in values_of(log, "loss")]
    assert steps == [i for i in range(1, 41) if i != 6]


def test_quantiles_are_those_of_the_entries():
    posterior = gaussian().prune(0.5)  # exact entries do not vary
    entries = Entries.of(posterior)
    assert (entries.size, len(entries.deviation)) == (20, 10)
    found = entries.quantiles()
    leaves = [np.ravel(leaf) for leaf in posterior.mean["x"].values()]
    kept = np.sort(np.abs(np.concatenate(leaves)))[10:]
    assert found["sigma"] == [0.5] * len(QUANTILES)
    # Of ten, the quantile of a share s is the value at place ceil(10 s).
    places = [0, 2, 4, 7, 9]
    np.testing.assert_allclose(found["|m|/sigma"], (kept / 0.5)[places], rtol=1e-5)
    np.testing.assert_allclose(
        found["sigma/|m|"], np.sort(0.5 / kept)[places], rtol=1e-5
    )


def test_members_differ_by_their_variance():
    posterior = members()
    entries = Entries.of(posterior)
    stacked = np.stack([np.ravel(gaussian(s).mean["x"]["lora_a"]) for s in range(3)])
    np.testing.assert_allclose(entries.deviation[:12], stacked.std(axis=0), rtol=1e-5)
    assert Entries.of(point()).quantiles() == {}
