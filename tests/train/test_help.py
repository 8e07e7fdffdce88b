"""What --help says."""

import dataclasses
import inspect
import re

import pytest
from tiny_fits import command

from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import CompareConfig, DataConfig, TrainConfig
from ivon_jax.train.fits.registry import FITS
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.pod.processes import ProcessConfig
from ivon_jax.train.trackers.registry import TRACKERS

COMMANDS = (
    cli.train,
    cli.fit,
    cli.evaluate,
    cli.export,
    cli.plan,
    cli.compare,
    cli.table,
    cli.data,
    cli.models,
)
CONFIGS = (
    CompareConfig,
    DataConfig,
    LoraConfig,
    ProcessConfig,
    TrainConfig,
    *(method.hyper_type for method in METHODS.values()),
    *FITS.values(),
)


@pytest.mark.parametrize("function", COMMANDS, ids=lambda f: f.__name__)
def test_help(function, capsys):
    assert command(function.__name__, "--help") == 0
    shown = capsys.readouterr().out
    assert f"usage: ivon-jax {function.__name__}" in shown
    assert function.__doc__.splitlines()[0] in shown


def test_help_lists_the_trackers(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert command("train", "--help") == 0
    assert f"its numbers, of {', '.join(TRACKERS)}; their" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "plan"])
@pytest.mark.parametrize(
    ("words", "method"),
    [
        ([], "ivon-lora"),
        *(([f"--method={name}"], name) for name in METHODS),
        *((["--method", name, "--seed", "3"], name) for name in METHODS),
    ],
)
def test_help_shows_the_options_of_the_chosen_method(
    name, words, method, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    assert command(name, *words, "--help") == 0
    shown = set(re.findall(r"--([a-z0-9-]+)", capsys.readouterr().out))
    names = {
        name: {
            field.name.replace("_", "-") for field in dataclasses.fields(one.hyper_type)
        }
        for name, one in METHODS.items()
    }
    assert shown & set.union(*names.values()) == names[method]


def test_help_of_compare_shows_the_options_of_every_method(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert command("compare", "--help") == 0
    shown = set(re.findall(r"--([a-z-]+\.[a-z0-9-]+) ", capsys.readouterr().out))
    wanted = {
        f"{name}.{field.name.replace('_', '-')}"
        for name, method in METHODS.items()
        for field in dataclasses.fields(method.hyper_type)
    }
    assert shown == wanted


@pytest.mark.parametrize("source", [*COMMANDS, *CONFIGS], ids=lambda f: f.__name__)
def test_every_option_is_explained(source):
    kinds = source.mro() if inspect.isclass(source) else [source]
    text = "\n".join(kind.__doc__ for kind in kinds)
    explained = set(re.findall(r"^ +(\w+): \S", text, re.MULTILINE))
    # Those have options of their own, or carry their help with their type.
    explained |= {"config", "processes", "out", "resume"}
    assert set(inspect.signature(source).parameters) <= explained
