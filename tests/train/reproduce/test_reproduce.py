"""The command on a tiny model: it runs, is stopped, goes on, and collates."""

import dataclasses
import json
import math
import shlex

import numpy as np
import pytest
from tiny_answers import command
from tiny_commands import one_line, problem_of, write_home
from tiny_results import gaussian, plain_texts, write_examples, write_run
from tiny_runs import stop_after

from ivon_jax.train.report import figures, tables
from ivon_jax.train.reproduce import collate
from ivon_jax.train.reproduce.draw import draw
from ivon_jax.train.reproduce.recipe import (
    Group,
    Line,
    Published,
    Recipe,
    published,
)
from ivon_jax.train.reproduce.registry import RECIPES
from ivon_jax.train.reproduce.report import published_differences, report, sign
from ivon_jax.train.runs import run

SHORT = "--adam.steps 6 --adam.batch-size 8 --ivon-lora.steps 6"
SHORT += " --ivon-lora.batch-size 8 --ivon-lora.learning-rate 0.3"


def recipe_of(home) -> Recipe:
    """A table of comparisons, and of runs scored by themselves."""
    options = shlex.join(map(str, [*problem_of(home), "--rank", "2"]))
    compared = Group(
        "compared",
        {"all": "--train-examples 32"},
        (
            f"compare --methods adam ivon-lora {SHORT} --samples 2 {options} {{case}}"
            " --eval-steps 3 --seed {seed} --out {out} --resume",
        ),
    )
    single = Group(
        "single",
        {"all": "--train-examples 32"},
        (
            f"train --method adam --steps 6 --batch-size 8 {options} {{case}}"
            " --eval-steps 3 --seed {seed} --out {out}/adam --resume",
            "evaluate {out}/adam",
        ),
    )
    groups = (compared, single)
    return Recipe(
        "tab1",
        "A table",
        "ours is better",
        "table",
        {"small": groups, "paper": groups},
        (
            Line("Adam", "adam"),
            Line("Ours", "ivon-lora, * samples, tau 1, prune 0"),
            Line("Alone", "adam", "single"),
        ),
        {"accuracy": 100, "nll": 1},
        published(
            "accuracy all average\nAdam: 70.0_3.0 70.0\nOurs: 75.0_4.0 75.0\n"
            "nll all average\nAdam: 0.70 0.7\nOurs: 0.60 0.6"
        ),
    )


def test_a_recipe_runs_stops_goes_on_and_is_collated(tmp_path, monkeypatch, capsys):
    recipe = recipe_of(write_home(tmp_path))
    monkeypatch.setitem(RECIPES, "tab1", recipe)
    out = tmp_path / "out"
    words = ["reproduce", "tab1", "--seeds", "2", "--out", out]
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        assert command(*words) == 143
    assert not (out / "tab1.json").exists()
    capsys.readouterr()

    # One line a run that is not finished; none is, as the first was stopped.
    assert command(*words, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    runs = recipe.runs("small", str(out), 2)
    assert sorted(lines) == sorted(one.line for one in runs)
    assert [one.seed for one in sorted(runs, key=lambda x: lines.index(x.line))] == [
        *[0] * 2,
        *[1] * 2,
    ]
    # By hand, as a job of an array would.
    assert " && " not in lines[0] and " && " in lines[1]
    assert command(*shlex.split(lines[0])[1:]) == 0
    capsys.readouterr()
    assert command(*words, "--list") == 0
    assert capsys.readouterr().out.splitlines() == lines[1:]

    # What is there is collated.
    assert command(*words, "--table") == 0
    partial = json.loads((out / "tab1.json").read_text())
    assert list(partial["lines"]["Adam"]["all"]) == ["0"]
    assert "single: none yet" in (out / "tab1.md").read_text()

    before = {p: p.stat().st_mtime_ns for p in out.glob("*/*/0/*/posterior.*")}
    assert len(before) == 2
    assert command(*words) == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before  # not trained again
    capsys.readouterr()
    assert command(*words, "--list") == 0
    assert capsys.readouterr().out == ""

    found = json.loads((out / "tab1.json").read_text())
    for seed in ("0", "1"):
        results = (out / "compared" / "all" / seed / "results.json").read_text()
        rows = {tables.label(row): row for row in json.loads(results)["rows"]}
        ours = found["lines"]["Ours"]["all"][seed]
        assert ours["nll"] == rows["ivon-lora, 2 samples, tau 1, prune 0"]["nll"]
        assert found["lines"]["Adam"]["all"][seed]["nll"] == rows["adam"]["nll"]
        # A comparison has what a figure along its runs needs, up to the row itself.
        curve = collate._curve(out / "compared" / "all" / seed / "adam")
        assert curve["log"]["step"] == [3, 6]
        assert curve["nll"] == pytest.approx(rows["adam"]["nll"], rel=1e-5)
    # Trained by itself it is the same run.
    alone = found["differences"]["nll"]["Alone"]["all"]
    assert alone["mean"] == pytest.approx(0, abs=1e-5)
    text = (out / "tab1.md").read_text()
    assert "| Ours minus Adam, paper " in text
    assert "70.0 ± 3.0" in text
    assert (out / "tab1.png").stat().st_size > 5000

    # The same numbers as one small file.
    file = tmp_path / "seeds.json"
    folders = [out / "compared" / "all" / seed for seed in ("1", "0")]
    assert command("table", *folders, "--json", file, "--note", "commit abc") == 0
    kept = json.loads(file.read_text())
    assert (kept["seeds"], kept["note"], kept["steps"]) == ([1, 0], "commit abc", 6)
    assert kept["hyper"]["ivon-lora"]["learning_rate"] == 0.3
    (row,) = [row for row in kept["rows"] if row["row"] == "adam"]
    assert row["nll"] == [
        pytest.approx(found["lines"]["Adam"]["all"][seed]["nll"], abs=1e-6)
        for seed in ("1", "0")
    ]


def test_evaluations_of_other_states_are_left_out(tmp_path):
    folder = write_run(tmp_path / "adam", write_examples(tmp_path, plain_texts(8)))
    values = json.loads((folder / "evaluation-4.json").read_text())
    gaussian().save(folder / run.BEST, step=30)
    for name, step, best in (("earlier", 11, False), ("best", 30, True)):
        rows = [row | {"nll": -1.0, "prune": 0.25} for row in values["rows"]]
        rows += [row | {"nll": -1.0} for row in values["rows"]]
        other = values | {"rows": rows, "step": step, "best": best}
        run.write_json(folder / f"evaluation-1-{name}.json", other)
    assert collate.rows_of(tmp_path) == values["rows"]


def test_differences_are_paired_and_averaged_over_cases(tmp_path):
    recipe = recipe_of(tmp_path)
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 2, 4))  # line, case, seed
    found = {
        line.title: {
            case: {seed: {"nll": own} for seed, own in enumerate(by_seed)}
            for case, by_seed in zip("ab", cases, strict=True)
        }
        for line, cases in zip(recipe.lines, values, strict=False)
    }
    del found["Ours"]["b"][3]  # not finished yet
    ours = dict(collate.differences(recipe, found, recipe.lines[1], "nll"))
    pairs = values[1] - values[0]
    assert ours["a"].mean == pytest.approx(pairs[0].mean())
    assert ours["b"].seeds == 3
    averages = pairs[:, :3].mean(0)
    assert ours["average"].mean == pytest.approx(averages.mean())
    # Student's t with two degrees of freedom: 4.303 standard errors.
    reach = 4.302653 * averages.std(ddof=1) / math.sqrt(3)
    assert ours["average"].high - ours["average"].mean == pytest.approx(reach, rel=1e-5)
    assert not list(collate.differences(recipe, found, recipe.lines[0], "nll"))


def test_a_line_without_a_case_of_another_has_no_average(tmp_path):
    recipe = dataclasses.replace(recipe_of(tmp_path), published={})
    values = {"accuracy": 0.5, "nll": 1.0}
    found = {line.title: {case: {0: values} for case in "ab"} for line in recipe.lines}
    found["Alone"]["b"] = {0: {"accuracy": 0.25, "nll": 2.0}}
    del found["Ours"]["b"]  # not finished yet
    lines = report(recipe, "small", found, []).splitlines()
    starts = ("| Adam ", "| Ours ", "| Alone ")
    averages = {
        start: [x.split("|")[-2].strip() for x in lines if x.startswith(start)]
        for start in starts
    }
    assert averages["| Adam "] == ["50.0", "1.000"]
    assert averages["| Alone "][::2] == ["37.5", "1.500"]
    assert averages["| Ours "][::2] == ["", ""]


def test_every_case_counts_alike_in_figures(tmp_path, monkeypatch):
    """Whatever its number of seeds; bands are of seeds, not of cases."""
    drawn = []
    monkeypatch.setattr(figures, "trade_off", lambda path, rows: drawn.extend(rows))
    one, other = swept(seed=1), swept(seed=2)
    by_case = {"a": {0: one, 1: one, 2: one}, "b": {0: other}}
    draw(
        RECIPES["fig1a"],
        {"Adam": {}, tables.label(one): by_case}
        | dict.fromkeys(("IVON-LoRA@mean", "IVON-LoRA"), by_case),
        tmp_path,
    )
    for name in ("accuracy", "ece", "nll"):
        assert drawn[0][name] == pytest.approx((one[name] + other[name]) / 2)

    def row(level):
        log = {"step": [1, 2]} | dict.fromkeys(("accuracy", "ece", "nll"), [level] * 2)
        return {"log": log}

    saved = []
    monkeypatch.setattr(figures, "save", lambda figure, path: saved.append(figure))
    seeds = {"easy": {0: row(0.1), 1: row(0.2), 2: row(0.9)}}
    seeds["hard"] = {0: row(0.5), 1: row(0.6)}  # one is not finished yet
    draw(RECIPES["fig1b"], {"Adam": seeds, "IVON-LoRA@mean": {}}, tmp_path)
    panel = saved[0].axes[2]  # of NLL
    np.testing.assert_allclose(panel.lines[0].get_ydata(), (0.3 + 0.4) / 2)
    (band,) = panel.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(0.3) and heights.max() == pytest.approx(0.4)


def test_bad_input_is_one_line(tmp_path, capsys):
    for words, message in (
        (["tab9", "--out", tmp_path], "tab9"),
        (["tab1", "--out", tmp_path, "--seeds", "0"], "seeds: 0 is not"),
        (["tab1", "--out", tmp_path, "--scale", "big"], "('paper', 'small')"),
        (["tab1", "--out", tmp_path, "--list", "--table"], "list: not together"),
        (
            ["tab1", "--out", tmp_path, "--table"],
            "table: none of its 50 runs is finished in",
        ),
        (["tab1"], "--out"),
    ):
        assert command("reproduce", *words) == 2
        assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())


def test_a_damaged_result_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(RECIPES, "tab1", recipe_of(tmp_path))
    folder = tmp_path / "out" / "compared" / "all" / "0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"rows": [{}]}')
    words = ["reproduce", "tab1", "--out", tmp_path / "out", "--table"]
    assert command(*words) == 2
    assert f"{folder / 'results.json'}: not results" in one_line(capsys)


def test_published_differences_are_of_independent_runs(tmp_path):
    recipe = recipe_of(tmp_path)
    found = dict(published_differences(recipe, recipe.lines[1], "accuracy"))
    assert found["all"].mean == 5.0
    assert found["all"].high == pytest.approx(5.0 + 1.96 * 5.0, abs=1e-3)
    without = dict(published_differences(recipe, recipe.lines[1], "nll"))
    assert without["average"].low is None


def test_a_sign_needs_both_intervals():
    def of(mean, reach):
        return collate.Difference(mean, mean - reach, mean + reach, 5)

    assert sign(of(1, 0.5), of(2, 1)) == "same"
    assert sign(of(-1, 0.5), of(2, 1)) == "opposite"
    assert sign(of(1, 1.5), of(2, 1)) == "not clear"
    assert sign(collate.Difference(1, None, None, 1), of(2, 1)) == "not clear"
    assert sign(None, of(2, 1)) == ""


def swept(tau=1.0, prune=0.0, seed=0, predict="samples"):
    rng = np.random.default_rng(seed)
    values = {x: float(rng.uniform(0.1, 0.9)) for x in ("accuracy", "ece", "nll")}
    row = {"method": "ivon-lora", "predict": predict, "samples": 2, "tau": tau}
    return row | {"prune": prune, "spread": True} | values


@pytest.mark.parametrize("name", ["fig1a", "fig2", "fig1b", "fig4", "fig1d", "fig3"])
def test_figures_are_drawn_of_what_is_there(name, tmp_path):
    recipe = RECIPES[name]
    log = {"step": [2, 4], "seconds": [1.0, 2.0], "nll": [1.0, 0.5]}
    log |= {"accuracy": [0.2, 0.5], "ece": [0.1, 0.2]}
    curve = {"outputs": [1, 2, 4], "vote": [0.1, 0.2, 0.3]}
    cases = ["128", "256"] if name == "fig1d" else ["one", "two"]
    row = swept() | {"log": log, "curve": curve, "vote_accuracy": 0.3}
    found = {
        line.title: {case: {0: row, 1: row} for case in cases} for line in recipe.lines
    }
    if recipe.kind == "trade_off":
        rows = [swept(predict="mean"), swept(tau=2.0, seed=1), swept(prune=0.5, seed=2)]
        for one in rows:
            found[tables.label(one)] = {case: {0: one} for case in cases}
    drawn = draw(recipe, found, tmp_path)
    assert all((tmp_path / image).stat().st_size > 5000 for image in drawn)
    assert len(drawn) == (2 if name == "fig2" else 1)
    assert drawn[0] in report(recipe, "small", found, drawn)


def test_numbers_without_errors_are_shown_without():
    assert Published(1.0, None) == published("nll a\nx: 1.0")["nll"]["x"]["a"]


def test_a_comparison_that_was_not_scored_on_the_way_has_no_curve(tmp_path, capsys):
    folder = tmp_path / "curves" / "city-continent" / "0"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text('{"rows": []}')
    assert command("reproduce", "fig1b", "--table", "--out", tmp_path) == 2
    assert "needs --eval-steps" in one_line(capsys)
    assert [x.name for x in tmp_path.iterdir()] == ["curves"]
