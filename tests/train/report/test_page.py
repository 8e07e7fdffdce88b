"""The page about runs: what it holds, and that texts stay texts."""

import html.parser
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_fits
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.stats import binomtest
from tiny_fits import command
from tiny_results import (
    HOSTILE,
    gaussian,
    members,
    numbers,
    plain_texts,
    point,
    tokens,
    write_examples,
    write_numbers,
    write_run,
    write_text,
)

from ivon_jax import Mixture, metrics
from ivon_jax.ensemble import average
from ivon_jax.train.objectives.text import Text
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.report import page, sweep
from ivon_jax.train.report.contents import contents
from ivon_jax.train.report.evaluated import read
from ivon_jax.train.report.sweep import Sweep

NONE = Sweep(0, (), ())
GRID = Sweep(2, (2.0,), (0.5,))


class Reader(html.parser.HTMLParser):
    """Collects elements, and the text of the data."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.data = [], [], ""
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append(dict(attrs))
        self.inside = dict(attrs).get("id") == "data"

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, text):
        self.data += text * self.inside


@pytest.fixture(scope="module")
def texts():
    return plain_texts(60)


@pytest.fixture
def data(tmp_path, texts):
    return write_examples(tmp_path / "data", texts)


def shown(*folders, settings=NONE):
    return contents([read(folder) for folder in folders], settings, test=False)


# Texts stay texts.


@given(st.recursive(st.text() | st.sampled_from(HOSTILE), st.lists))
def test_any_text_survives_and_ends_nothing(value):
    text = page.embedded({"x": value})
    assert json.loads(text) == {"x": value}
    assert text.isascii()
    assert not set(text) & set("<>&\u2028\u2029\n")


def test_numbers_that_are_not_finite_are_null():
    assert json.loads(page.embedded([float("nan"), float("inf"), 1.0])) == [
        None,
        None,
        1,
    ]


def test_hostile_texts_do_not_leave_the_data(tmp_path):
    data = write_examples(tmp_path / "data", [text + " x" for text in HOSTILE * 3])
    name = "<img src=x onerror=alert(1)>&$title"
    folder = write_run(tmp_path / name, data)
    out = tmp_path / "report.html"
    assert command("report", folder, "--samples", 0, "--out", out) == 0
    found = Reader(out.read_text())
    clean = Reader(page.render({"title": ""}, ""))
    assert found.tags == clean.tags
    assert [a.keys() for a in found.attributes] == [a.keys() for a in clean.attributes]
    values = json.loads(found.data)
    assert values["runs"][0]["name"] == name
    kept = {
        row[0]["text"]
        for t in values["runs"][0]["examples"]["tables"]
        for row in t["rows"]
    }
    assert kept <= {text + " x" for text in HOSTILE}
    assert len(kept) == len(HOSTILE)


def test_the_page_loads_nothing_and_runs_its_own_script_only():
    text = page.render({"title": "a"}, "")
    assert not re.search(r"(src|href)=\"(?!#)", text)
    assert not re.search(r"\burl\(|@import|innerHTML|\beval\b|fetch\(", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


# What it holds.


def test_the_same_runs_make_the_same_page(data, tmp_path):
    folder = write_run(tmp_path / "run", data)
    pages = []
    for name in ("a.html", "b.html"):
        assert command("report", folder, "--samples", 0, "--out", tmp_path / name) == 0
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_results_have_intervals(data, tmp_path):
    folder = write_run(tmp_path / "run", data)
    table = shown(folder)["results"]
    assert [row[0] for row in table["rows"]] == [
        "run, 4 samples, tau 1, prune 0",
        "run@mean",
    ]
    row = dict(zip(table["head"], table["rows"][0], strict=True))
    predictions, labels = read(folder).predictions(Samples(4))
    right = np.asarray(average(jnp.asarray(predictions))).argmax(axis=1) == labels
    low, high = binomtest(int(right.sum()), 60).proportion_ci(0.95, "wilson")
    assert row["accuracy %"] == {
        "value": f"{100 * right.mean():.1f}",
        "interval": f"{100 * low:.1f} to {100 * high:.1f}",
    }
    # The standard error of a mean, which the bootstrap's is close to.
    own = -np.asarray(average(jnp.asarray(predictions)))[np.arange(60), labels]
    low, high = map(float, row["NLL"]["interval"].split(" to "))
    assert (high - low) / 2 / 1.96 == pytest.approx(own.std() / 60**0.5, rel=0.1)
    assert row["AURC"] == {"value": "0.100"}


def test_differences_are_paired_where_the_examples_are_the_same(data, tmp_path):
    one = write_run(tmp_path / "one", data, posterior=gaussian())
    two = write_run(tmp_path / "two", data, [Mean()], point(), "adam", seed=9)
    found = shown(one, two)
    table = found["differences"]
    assert table["caption"].startswith("Differences to one, 4 samples")
    assert [row[0] for row in table["rows"]] == ["one@mean", "two"]
    both = [read(one).predictions(Samples(4)), read(two).predictions(Mean())]
    means = jnp.stack([average(jnp.asarray(p)) for p, _ in both])
    drawn = metrics.bootstrap(means, jnp.asarray(both[0][1]), seed=0)["nll"]
    low, high = np.quantile(drawn[:, 1] - drawn[:, 0], [0.025, 0.975])
    cell = dict(zip(table["head"], table["rows"][1], strict=True))["NLL"]
    assert cell["interval"].replace("\u2212", "-") == f"{low:+.3f} to {high:+.3f}"
    assert cell["mark"] == (low > 0 or high < 0)


def test_other_examples_have_no_differences(data, tmp_path, texts):
    other = write_examples(tmp_path / "other", texts[1:])
    one, two = write_run(tmp_path / "one", data), write_run(tmp_path / "two", other)
    found = shown(one, two)
    assert (found["alike"], found["differences"]) == (False, None)
    assert [one["run"] for one in found["curves"][0]["series"]] == [0, 1]


def test_points_have_bins_levels_and_the_curve(data, tmp_path):
    run = shown(write_run(tmp_path / "run", data))["runs"][0]
    (only,) = run["points"]
    assert (only["tau"], only["prune"], only["samples"]) == (1.0, 0.0, 4)
    assert sum(one["size"] for one in only["bins"]) == 60
    assert [one["size"] for one in only["levels"]][:3] == [60, 57, 54]
    assert only["curve"][-1][0] == 1


def test_notable_examples_are_the_uncertain_and_the_wrong(data, tmp_path, texts):
    folder = write_run(tmp_path / "run", data)
    uncertain, wrong = shown(folder)["runs"][0]["examples"]["tables"]
    predictions, labels = read(folder).predictions(Samples(4))
    probs = np.exp(predictions.astype(float)).mean(axis=0)
    entropy = -(probs * np.log(probs)).sum(axis=1)
    first = int(entropy.argmax())
    assert uncertain["rows"][0][0] == {"text": texts[first]}
    assert uncertain["rows"][0][4] == f"{entropy[first]:.3f}"
    confidence = np.where(probs.argmax(axis=1) != labels, probs.max(axis=1), 0)
    assert wrong["rows"][0][0] == {"text": texts[int(confidence.argmax())]}
    assert wrong["rows"][0][3] == f"{100 * confidence.max():.1f} %"


def test_examples_that_have_changed_are_not_shown(data, tmp_path, capsys):
    folder = write_run(tmp_path / "run", data)
    data.eval_file.write_text(data.eval_file.read_text().replace("number 1", "other"))
    missing = shown(folder)["runs"][0]["examples"]["missing"]
    assert "have changed" in missing
    data.eval_file.unlink()
    assert "rows.jsonl" in shown(folder)["runs"][0]["examples"]["missing"]


def test_numbers_have_rmse_and_likelihood(tmp_path):
    data = write_numbers(tmp_path / "data", 30)
    labels = np.arange(30, dtype=np.float32) / 30
    folder = write_run(
        tmp_path / "run", data, predictions=lambda one: numbers(labels, one.passes)
    )
    found = shown(folder)
    row = dict(zip(found["results"]["head"], found["results"]["rows"][0], strict=True))
    mean = numbers(labels, 4)[..., 0].astype(float).mean(axis=0)
    assert row["RMSE"]["value"] == f"{np.square(mean - labels).mean() ** 0.5:.3f}"
    assert "interval" in row["NLL of a Gaussian"]
    run = found["runs"][0]
    assert {"rmse", "density_nll"} <= run["points"][0]["levels"][0]["values"].keys()
    uncertain, wrong = run["examples"]["tables"]
    assert (uncertain["caption"], wrong["caption"]) == (
        "Most uncertain",
        "Largest error",
    )
    worst = int(np.abs(mean - labels).argmax())
    assert wrong["rows"][0][0] == {"text": f"first {worst}\nsecond {worst}"}


def test_text_has_the_metrics_of_tokens(tmp_path):
    lengths = [3, 1, 4, 2]
    data = write_text(tmp_path / "data", [str(n) for n in lengths])
    made = {one: tokens(lengths, one.passes) for one in (Mean(), Samples(4))}
    folder = write_run(
        tmp_path / "run",
        data,
        predictions=lambda one: made[one][0],
        labels=made[Mean()][1],
    )
    found = shown(folder)
    row = dict(zip(found["results"]["head"], found["results"]["rows"][0], strict=True))
    wanted = Text("completion", 100, False).score(*made[Samples(4)])
    assert row["perplexity"]["value"] == f"{wanted['perplexity']:.3f}"
    assert row["all right %"]["value"] == f"{100 * wanted['sequence_accuracy']:.1f}"
    assert "interval" in row["tokens right %"]
    (table,) = found["runs"][0]["examples"]["tables"]
    own = -np.log(np.exp(made[Samples(4)][0][..., 0].astype(float)).mean(axis=0))
    means = [part.mean() for part in np.split(own, np.cumsum(lengths)[:-1])]
    worst = int(np.argmax(means))
    assert table["rows"][0][0] == {"text": f"{worst}:\n\u2192 {lengths[worst]}"}
    assert table["rows"][0][1] == f"{means[worst]:.3f}"


def test_votes_have_their_accuracy_by_outputs(tmp_path):
    lengths = [3, 1]
    folder = write_run(
        tmp_path / "run",
        write_text(tmp_path / "data", [str(n) for n in lengths]),
        predictions=lambda one: tokens(lengths, one.passes)[0],
        labels=tokens(lengths, 1)[1],
    )
    assert shown(folder)["votes"] == []
    # Votes are in one of two files with the same predictors, whichever is read first.
    path = folder / "evaluation-4.json"
    values = json.loads(path.read_text())
    curve = {"outputs": [1, 2], "vote": [0.25, 0.5], "vote_error": [0.125, 0.0]}
    rows = [row | {"curve": curve, "vote_accuracy": 0.5} for row in values["rows"]]
    path.with_name("evaluation-9.json").write_text(json.dumps(values | {"rows": rows}))
    main, mean = shown(folder)["votes"]
    assert main["points"] == mean["points"] == [[1, 25.0, 12.5], [2, 50.0, 0.0]]
    assert (main["main"], mean["main"], mean["label"]) == (True, False, "run@mean")


# The settings of the sliders.


@pytest.mark.parametrize(
    ("posterior", "count", "ends"),
    [
        (gaussian(), 3 * 2, True),
        (point(), 0, False),
        (members(), 0, False),
        (Mixture.of([gaussian(0), gaussian(1)]), 2 * 2, False),
    ],
)
def test_settings_are_those_that_a_posterior_allows(
    posterior, count, ends, data, tmp_path
):
    run = read(write_run(tmp_path / "run", data, [Mean()], posterior))
    found = GRID.settings(run)
    assert len(found) == len(set(found)) == count
    assert any(isinstance(one, Mean) for one in found) == ends
    assert NONE.settings(run) == []


def test_rows_of_the_sweep_are_points_and_no_results(data, tmp_path):
    run = read(write_run(tmp_path / "run", data))
    settings = GRID.settings(run)
    folder = write_run(tmp_path / "swept", data, [*settings, Samples(4)])
    found = shown(folder, settings=GRID)
    labels = [row[0] for row in found["results"]["rows"]]
    assert labels == ["swept, 4 samples, tau 1, prune 0", "swept@mean"]
    points = found["runs"][0]["points"]
    assert {(p["tau"], p["prune"]) for p in points} == {
        (tau, prune) for tau in (1.0, 2.0, None) for prune in (0.0, 0.5)
    }
    # Without a sweep it is what was evaluated before.
    assert set(NONE.settings(read(folder))) == set(settings)
    before = shown(folder)
    assert before["results"] == found["results"]
    for one in points:
        assert one in before["runs"][0]["points"]


def test_a_sweep_is_an_evaluation_that_is_made_once(tmp_path, monkeypatch, capsys):
    config = tiny_fits.write_task(tmp_path, held_out=None)
    folder = tiny_fits.train(config, tmp_path / "run", "ivon-lora")
    assert command("evaluate", folder, "--samples", 3) == 0
    words = ("report", folder, "--samples", 2, "--taus", 4, "--prunes", 0.5, "--out")
    capsys.readouterr()
    assert command(*words, tmp_path / "a.html") == 0
    captured = capsys.readouterr()
    # The mean of all parameters is there; the others are 4 of samples and a mean.
    assert "5 settings of tau and pruning once, with 9 forward passes" in captured.err
    options = ("--samples", 2, "--tau", 4, "--prune", 0.5)
    name = "predictions-2-tau4.0-prune0.5.safetensors"
    swept = load_file(folder / name)["log_probs"]
    assert command("evaluate", folder, *options) == 0
    np.testing.assert_array_equal(swept, load_file(folder / name)["log_probs"])
    monkeypatch.setattr(sweep, "read_run", None)  # the model is not loaded again
    assert command(*words, tmp_path / "b.html") == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
