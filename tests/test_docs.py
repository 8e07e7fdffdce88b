"""Commands that README and docs show parse, and what they link to exists."""

import functools
import importlib
import inspect
import re
import shlex
import sys
from pathlib import Path

import pytest
import tyro
from test_imports import PACKAGES

ROOT = Path(__file__).parent.parent
TOP = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
PAGES = sorted([*TOP, *(ROOT / "docs").rglob("*.md")])


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def options() -> dict[str, set[str]]:
    """Every option of every command, from the dataclasses and signatures."""
    import dataclasses

    from ivon_jax.lora import LoraConfig
    from ivon_jax.models.sampler import Sampler
    from ivon_jax.train import cli
    from ivon_jax.train.config import CompareConfig, DataConfig, TrainConfig, Voting
    from ivon_jax.train.fits.registry import FITS
    from ivon_jax.train.generate import Options
    from ivon_jax.train.inference.commands import RunOrAdapter
    from ivon_jax.train.methods.registry import METHODS
    from ivon_jax.train.plan.sweep import Sweep
    from ivon_jax.train.pod.processes import ProcessConfig

    def fields(*kinds, prefix=""):
        names = (field.name for kind in kinds for field in dataclasses.fields(kind))
        return {prefix + name.replace("_", "-") for name in names}

    hypers = [method.hyper_type for method in METHODS.values()]
    train = fields(TrainConfig, DataConfig, LoraConfig, ProcessConfig, *hypers)
    train |= {"out", "resume"}
    each = {
        option
        for name, method in METHODS.items()
        for option in fields(method.hyper_type, prefix=f"{name}.")
    }

    def arguments(command):
        return {
            name.replace("_", "-") for name in inspect.signature(command).parameters
        }

    legal = {
        "train": train,
        "plan": train | arguments(cli.plan) | fields(Sweep, prefix="sweep."),
        "tune": train | arguments(cli.tune),
        "compare": fields(CompareConfig, DataConfig, LoraConfig, Voting, *FITS.values())
        | each
        | {"out", "resume"},
        "fit": fields(DataConfig, *FITS.values()) | arguments(cli.fit),
        "evaluate": fields(DataConfig, Voting) | arguments(cli.evaluate),
        "predict": fields(DataConfig, RunOrAdapter) | arguments(cli.predict),
        "calibrate": fields(DataConfig, RunOrAdapter)
        | arguments(cli.calibrate)
        | {"no-temperature"},
        "show": arguments(cli.show),
        "report": arguments(cli.report),
        "generate": fields(Options, Sampler) | arguments(cli.generate),
        "export": arguments(cli.export),
        "models": arguments(cli.models),
        "table": arguments(cli.table),
        "reproduce": arguments(cli.reproduce) | {"list"},
        "data": fields(DataConfig) | arguments(cli.data),
    }
    return {name: names | {"config"} for name, names in legal.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shown_options_exist(page):
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    legal = options()
    for line in text.splitlines():
        if command := re.match(rf".*ivon-jax ({'|'.join(legal)}) ", line):
            shown = set(re.findall(r"--([\w.-]+)", line[command.end() :]))
            assert shown <= legal[command[1]], line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shown_runs_are_legal(page, monkeypatch):
    from ivon_jax.lora import LoraConfig
    from ivon_jax.models import peft_io
    from ivon_jax.train import cli, config_file
    from ivon_jax.train.command_line import parse
    from ivon_jax.train.config import resolve
    from ivon_jax.train.splits import find_task

    monkeypatch.setattr(peft_io, "read_settings", lambda folder: LoraConfig())
    monkeypatch.setattr(config_file, "read", lambda path: {})
    commands = {"train": cli.train, "plan": cli.plan}
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ").replace("$1", "0")
    text = text.replace("$DATA", "")  # more options
    for line in re.findall(r"ivon-jax ((?:train|plan) [^;&\n]*)", text):
        if line.count('"') % 2:  # the end of what is quoted for a remote shell
            line = line.rstrip(' "')
        monkeypatch.setattr(sys, "argv", ["ivon-jax", *shlex.split(line)])
        call = parse(commands)
        bound = inspect.signature(call.func).bind(*call.args, **call.keywords)
        config = bound.arguments["config"]
        resolve(config, find_task(config.data).preset, num_examples=1)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_exist(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_shown_benchmarks_have_those_options(page, monkeypatch):
    """Each is parsed as it is shown, and not run."""
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    for name, words in re.findall(r"python -m benchmarks\.(\w+)([^\n]*)", text):
        module = importlib.import_module(f"benchmarks.{name}")
        run = functools.wraps(module.main)(lambda *args, **kwargs: None)
        tyro.cli(run, args=shlex.split(words))


def test_make_targets_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"make ([a-z-]+)", page.read_text()):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_table_of_models_is_what_the_code_says():
    from ivon_jax.models.support import table

    assert table() in (ROOT / "docs" / "models.md").read_text()


def test_contributing_has_the_packages_that_are_held():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    _, table = text.split("| package | holds |\n|---|---|\n")
    rows = [row.split("|")[1] for row in table.split("\n\n")[0].splitlines()]
    assert [set(re.findall("`(.*?)`", row)) for row in rows] == list(PACKAGES)


def test_paths_in_contributing_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = set(re.findall(r"`([\w./]+/[\w.]*)`", text)) - {"dist/"}
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []
