"""Recipes: their commands parse as ours, and the paper's numbers are its own."""

import dataclasses
import inspect
import shlex

import pytest

from ivon_jax.train import cli, config_file
from ivon_jax.train.command_line import parse, read_options
from ivon_jax.train.compare import jobs_of
from ivon_jax.train.config import CompareConfig, DataConfig, TrainConfig, resolve
from ivon_jax.train.config_json import to_json
from ivon_jax.train.reproduce.recipe import AVERAGE, published
from ivon_jax.train.reproduce.registry import RECIPES
from ivon_jax.train.splits import find_task

SCALES = ("paper", "small")
GROUPS = {
    (scale, group.name, *group.cases): group
    for recipe in RECIPES.values()
    for scale in SCALES
    for group in recipe.groups[scale]
}


def config_of(words, monkeypatch):
    """What a command is given; of a tuned one, the options of a default run."""
    if words[1] == "--config":
        method = words[2].split("best-")[-1].removesuffix(".json")
        tuned = to_json(TrainConfig(method=method))
        monkeypatch.setattr(config_file, "read", lambda path: tuned)
    call = parse(cli.commands(), words)
    bound = inspect.signature(call.func).bind(*call.args, **call.keywords)
    return bound.arguments.get("config")


@pytest.mark.parametrize("key", GROUPS, ids="-".join)
def test_commands_are_legal(key, monkeypatch):
    """Options, ranges and names; what can be checked without a model and data."""
    runs = list(GROUPS[key].runs("OUT", 1))
    assert [run.case for run in runs] == list(GROUPS[key].cases)
    # Cases differ in options of the data only.
    for options in GROUPS[key].cases.values():
        find_task(read_options(DataConfig, shlex.split(options)))
    for words in runs[0].commands:
        config = config_of(words, monkeypatch)
        if config is None:
            continue
        preset = find_task(config.data).preset
        if isinstance(config, CompareConfig):
            jobs_of(config, preset, num_examples=1)
        else:
            resolve(config, preset, num_examples=1)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_lines_belong_to_groups(recipe):
    assert recipe.claim and recipe.title
    titles = {line.title for line in recipe.lines}
    for scale in SCALES:
        names = {group.name for group in recipe.groups[scale]}
        for line in recipe.lines:
            # The strict protocol is not the paper's.
            assert recipe.group_of(line, scale) in names or line.group == "strict"
    for lines in recipe.published.values():
        assert lines.keys() <= titles
    assert set(recipe.published) in (set(), set(recipe.metrics))


def test_tables_share_runs():
    folders = {
        name: {run.folder for run in recipe.runs("paper", "OUT", 2)}
        for name, recipe in RECIPES.items()
    }
    assert folders["tab1"] == folders["tab2"] == folders["fig2"] == folders["fig1a"]
    assert folders["tab1"] < folders["tab5"] == folders["tab3"]
    lines = {}
    for scale in SCALES:
        for recipe in RECIPES.values():
            for run in recipe.runs(scale, "OUT", 1):
                # One folder, one line.
                assert lines.setdefault((scale, run.folder), run.line) == run.line
                assert shlex.split(run.line)[0] == "ivon-jax"


# Digits of the paper's columns: an average of rounded numbers is as exact as they are.
DIGITS = {"accuracy": 1, "ece": 1, "nll": 2, "brier": 2}
# Where the paper's own average is not that of its columns, to rounding: 14.7, not 14.6.
WRONG = {("ece", "IVON-LoRA@mean"): 0.8 / 6}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_averages_are_those_of_the_columns(recipe):
    for metric, lines in recipe.published.items():
        for title, numbers in lines.items():
            own = [value.mean for case, value in numbers.items() if case != AVERAGE]
            assert len(own) == (7 if recipe.name == "tab7" else 6)
            error = abs(sum(own) / len(own) - numbers[AVERAGE].mean)
            unit = 10.0 ** -DIGITS[metric]
            expected = WRONG.get((metric, title))
            if expected is not None:
                assert error == pytest.approx(expected)
            else:
                assert error <= unit + 1e-9, (metric, title, error)


def test_the_same_number_is_the_same_in_every_table():
    seen = {}
    for recipe in RECIPES.values():
        for metric, lines in recipe.published.items():
            for title, numbers in lines.items():
                for case, value in numbers.items():
                    key = (metric, title, case, len(numbers))
                    assert seen.setdefault(key, value) == value, (recipe.name, key)


def test_differences_of_averages_are_those_that_the_paper_states():
    """Tab. 1 to 6 print them in parentheses."""
    stated = {
        ("tab1", "accuracy", "BLoB@mean"): 0.6,
        ("tab1", "accuracy", "IVON-LoRA@mean"): 1.6,
        ("tab1", "ece", "BLoB@mean"): -7.7,
        ("tab1", "ece", "IVON-LoRA@mean"): -3.9,
        ("tab1", "nll", "BLoB@mean"): -1.06,
        ("tab1", "nll", "IVON-LoRA@mean"): -0.78,
        ("tab2", "accuracy", "LA (KFAC)"): -0.2,
        ("tab2", "accuracy", "LA (diag)"): -3.1,
        ("tab2", "accuracy", "BLoB"): -1.1,
        ("tab2", "accuracy", "IVON-LoRA"): 0.2,
        ("tab2", "ece", "LA (KFAC)"): -11.8,
        ("tab2", "ece", "LA (diag)"): 1.3,
        ("tab2", "ece", "BLoB"): -13.2,
        ("tab2", "ece", "IVON-LoRA"): -12.0,
        ("tab2", "nll", "IVON-LoRA"): -1.17,
        ("tab2", "brier", "IVON-LoRA"): -0.10,
        ("tab5", "accuracy", "IVON-LoRA@mean (2x)"): 2.2,
        ("tab5", "ece", "IVON-LoRA@mean (2x)"): -2.4,
        ("tab5", "nll", "Adam (2x)"): 0.39,
        ("tab5", "nll", "IVON-LoRA@mean (2x)"): -0.40,
    }
    for (name, metric, title), value in stated.items():
        numbers = RECIPES[name].published[metric]
        found = numbers[title][AVERAGE].mean - numbers["Adam"][AVERAGE].mean
        assert found == pytest.approx(value, abs=1e-9), (name, metric, title)
    # Tab. 6: to Adam with as many examples.
    for metric, value in (("accuracy", 2.2), ("ece", -3.8), ("nll", -1.06)):
        numbers = RECIPES["tab6"].published[metric]
        names = ("IVON-LoRA@mean (50%)", "Adam (50%)")
        one, other = (numbers[title][AVERAGE].mean for title in names)
        assert one - other == pytest.approx(value, abs=1e-9)


def test_settings_are_the_papers():
    """App. D, by what the commands resolve to."""
    words = next(RECIPES["tab1"].groups["paper"][0].runs("OUT", 1)).commands[0]
    call = parse(cli.commands(), words)
    config = call.args[0] if call.args else call.keywords["config"]
    runs = {
        name: resolve(run, "commonsense", 640).hyper
        for name, run in config.runs().items()
    }
    assert (config.model, config.base) == ("meta-llama/Llama-3.2-3B", "int8")
    assert (config.lora.rank, config.lora.alpha, config.lora.dropout) == (8, 16, 0.1)
    assert {(h.steps, h.batch_size) for h in runs.values()} == {(5000, 8)}
    assert [runs[x].warmup for x in ("adam", "ivon-lora", "blob")] == [150, 150, 300]
    assert runs["adam"].learning_rate == 2e-4
    ours = dataclasses.asdict(runs["ivon-lora"])
    expected = {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.9995, "gamma": 5000.0}
    expected |= {"hess_init": 5e-2, "clip_radius": 5e-3, "mc_samples": 1}
    assert {k: ours[k] for k in expected} == expected


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="zip"):
        published("nll a b\nAdam: 1.0")
