"""Comparisons of every method and every fit; interrupted, and on several devices."""

import dataclasses
import itertools
import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import tiny
from matplotlib.image import imread
from safetensors.numpy import load_file
from tiny_fits import command, one_line

from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli, loop
from ivon_jax.train.config import CompareConfig, Hypers
from ivon_jax.train.fits import tfb
from ivon_jax.train.fits.registry import FITS
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.report import tables
from ivon_jax.train.runs import fitted, run

STEPS = 4  # SWAG needs two in the last half
FEW = ("adam", "ivon-lora")
SOME = ("tfb:adam", "temperature:*")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> CompareConfig:
    """All methods with all fits, of IVON-LoRA's posterior or of two runs."""
    place = tmp_path_factory.mktemp("tiny")
    model, data = tiny.write_task(place, layers=1, evaluation=32)
    hypers = {
        name.replace("-", "_"): method.hyper_type(steps=STEPS, batch_size=8)
        for name, method in METHODS.items()
    }
    of = {name: "+".join(FEW) if fit.several else FEW[1] for name, fit in FITS.items()}
    of["tfb"] += " --anchors 8"
    of["temperature"] += " --samples 2"
    return CompareConfig(
        model,
        data=dataclasses.replace(data, validation_examples=16),
        lora=LoraConfig(rank=2, dropout=0.0),
        hyper=Hypers(**hypers),
        methods=tuple(METHODS),
        fit=tuple(f"{name}:{methods}" for name, methods in of.items()),
        samples=3,
        sweep_samples=3,  # one program for all
        taus=(4.0,),
        prunes=(0.5,),
    )


@pytest.fixture(scope="module")
def every(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("every") / "compared"
    cli.compare(dataclasses.replace(config, lora=LoraConfig(rank=2, dropout=0.1)), out)
    return out


@pytest.fixture(scope="module")
def few(config) -> CompareConfig:
    return dataclasses.replace(config, methods=FEW, fit=SOME, taus=(), prunes=())


@pytest.fixture(scope="module")
def alone(few, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("few") / "compared"
    cli.compare(few, out)
    return out


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["rows"]


COSTS = ("step_seconds", "peak_bytes", "posterior_bytes", "fit_seconds", "passes")
METRICS = ("accuracy", "nll", "ece", "ece15", "adaptive_ece", "mce", "brier", "aurc")


def test_every_method_and_fit_is_in_one_table(every):
    rows = rows_of(every)
    names = {tables.name_of(row) for row in rows}
    assert names >= set(METHODS)
    assert {name.partition("(")[0] for name in names - set(METHODS)} == set(FITS)
    assert len({tables.label(row) for row in rows}) == len(rows)
    for row in rows:
        assert all(np.isfinite(row[name]) for name in (*METRICS, *COSTS))
        if not row["method"].startswith("mc-dropout"):  # which computes nothing
            assert (row["fit_seconds"] > 0) == ("(" in row["method"])
        assert row["passes"] >= 1 and row["posterior_bytes"] > 0
    report = (every / "report.md").read_text()
    assert all(f"| {tables.label(row)} " in report for row in rows)
    for name in ("training", "reliability", "trade_off"):
        assert imread(every / f"{name}.png")[..., :3].std() > 0.01


def test_passes_at_test_time(every):
    """Samples, members, and a linearised model's derivatives of two classes."""
    rows = {tables.name_of(row): row["passes"] for row in rows_of(every)}
    assert (rows["adam"], rows["ensemble"]) == (1, 3)
    assert rows["laplace-kfac(ivon-lora)"] == rows["laplace-diag(ivon-lora)"] == 1 + 2


def test_members_have_no_row_of_their_average(every):
    labels = [tables.label(row) for row in rows_of(every)]
    assert "ivon-lora@mean" in labels
    assert [x for x in labels if x.startswith("ensemble")] == [
        "ensemble, 3 samples, tau 1, prune 0",
        "ensemble(adam, ivon-lora), 2 samples, tau 1, prune 0",
    ]


def test_a_fit_has_the_options_of_its_quotes(every):
    options = fitted.read(every / "tfb-ivon-lora").options
    assert (options["anchors"], options["high"]) == (8, None)


def test_fits_average_as_many_samples_as_methods(every):
    """Unless their options name another number; an ensemble has all its members."""
    samples = {tables.name_of(row): row["samples"] for row in rows_of(every)}
    assert samples["tfb(ivon-lora)"] == samples["tau(ivon-lora)"] == 3
    assert samples["mc-dropout(ivon-lora)"] == 3
    assert samples["temperature(ivon-lora)"] == 2
    assert samples["ensemble(adam, ivon-lora)"] == 2


@pytest.mark.parametrize(("samples", "averaged"), [(3, 2), (1, 1)])
def test_a_fit_averages_no_more_samples_than_there_are(
    samples, averaged, config, tmp_path, monkeypatch
):
    """Of an ensemble of two members."""
    hyper = dataclasses.replace(
        config.hyper, ensemble=dataclasses.replace(config.hyper.ensemble, members=2)
    )
    jobs = []

    def stop(found, *_):
        jobs.extend(found)
        raise KeyboardInterrupt

    monkeypatch.setattr("ivon_jax.train.compare.run_all", stop)
    chosen = {"methods": ("ensemble",), "fit": ("temperature:*",), "hyper": hyper}
    with pytest.raises(KeyboardInterrupt):
        cli.compare(
            dataclasses.replace(config, samples=samples, **chosen), tmp_path / "out"
        )
    assert jobs[1].fit.samples == averaged


@pytest.mark.parametrize(
    ("fit", "message"),
    [
        ("tau:adam", "tau:adam: taus: adam has no posterior to temper"),
        ("tau:*", "tau:adam: taus: adam has no posterior to temper"),
        (
            "tau:ensemble --samples 2",
            "tau:ensemble: tau: 0.25 is not 1, and particles have no",
        ),
        ("mc-dropout:adam", "mc-dropout:adam: dropout_samples: the run was trained"),
        ("tfb:ensemble", "tfb:ensemble: tfb: the run has several members, not one"),
        ("laplace-diag:ensemble", "laplace-diag:ensemble: laplace-diag: the run has"),
    ],
)
def test_a_fit_of_a_posterior_without_what_it_needs(fit, message, config, tmp_path):
    """Before any method is trained."""
    chosen = {"methods": ("adam", "ensemble"), "fit": (fit,)}
    with pytest.raises(ValueError, match=f"^fit: {re.escape(message)}"):
        cli.compare(dataclasses.replace(config, **chosen), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_too_few_examples_for_a_temperature(config, tmp_path):
    few = dataclasses.replace(config.data, validation_examples=1)
    changes = {"data": few, "methods": ("adam",), "fit": ("temperature:adam",)}
    with pytest.raises(ValueError, match="^fit: temperature:adam: temperature: 1 ex"):
        cli.compare(dataclasses.replace(config, **changes), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_a_fit_used_is_not_scored(every):
    """The task's own 32 examples are, by every run."""
    results = json.loads((every / "results.json").read_text())
    assert results["eval_examples"] == 32
    folders = [path.parent for path in every.glob("*/evaluation-*-test.json")]
    assert len(folders) == len(METHODS) + len(FITS)
    for folder in folders:
        for path in folder.glob("predictions-*"):
            assert len(load_file(path)["labels"]) == 32


def test_curves_are_those_that_a_posterior_allows(every):
    """Of every diagonal Gaussian over tau and pruning, of points none."""
    swept: dict[str, set] = {}
    for row in rows_of(every):
        point = (row["tau"], row["prune"])
        swept.setdefault(tables.name_of(row), set()).add(point)
    curve = {(1, 0), (4, 0), (1, 0.5)}
    for name in ("ivon-lora", "ivon", "tfb(ivon-lora)"):
        assert swept[name] == curve
    assert swept["adam"] == swept["temperature(ivon-lora)"] == {(1, 0)}


def test_several_sources_cost_what_all_of_them_do(every):
    rows = {tables.name_of(row): row for row in rows_of(every)}
    one, two = (rows[name] for name in FEW)
    (both,) = (
        row for name, row in rows.items() if name.endswith(f"({', '.join(FEW)})")
    )
    assert both["step_seconds"] == one["step_seconds"] + two["step_seconds"]
    assert both["peak_bytes"] == max(one["peak_bytes"], two["peak_bytes"])


def test_costs_of_a_fit_are_its_sources_and_its_own(every):
    rows = {tables.name_of(row): row for row in rows_of(every)}
    source, made = rows["ivon-lora"], rows["tfb(ivon-lora)"]
    assert made["step_seconds"] == source["step_seconds"]
    assert made["peak_bytes"] == source["peak_bytes"]
    folder = every / "tfb-ivon-lora"
    assert made["fit_seconds"] == fitted.read(folder).seconds
    size = (folder / run.POSTERIOR).stat().st_size
    assert made["posterior_bytes"] == size != source["posterior_bytes"]


CLOCK = ("step_seconds", "fit_seconds")


def assert_same(out: Path, alone: Path, *, exact: bool) -> None:
    """Compare rows but for the clock's part, or only to rounding."""
    found, wanted = rows_of(out), rows_of(alone)
    assert [tables.label(row) for row in found] == [tables.label(row) for row in wanted]
    for one, other in zip(found, wanted, strict=True):
        if exact:
            for name in CLOCK:
                assert one.pop(name) >= 0 and other.pop(name) >= 0
            assert one == other
        else:
            for name in ("nll", "brier"):
                assert one[name] == pytest.approx(other[name], rel=2e-3)


def interrupt(patch, module, name, call):
    """Send SIGINT in one of the calls of a module's function."""
    real, calls = getattr(module, name), itertools.count(1)

    def interrupted(*args, **kwargs):
        if next(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return real(*args, **kwargs)

    patch.setattr(module, name, interrupted)


def test_it_goes_on_where_it_stopped(few, alone, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for module, name, call in ((loop, "train_step", 1), (tfb, "predict", 3)):
        with monkeypatch.context() as patch:
            interrupt(patch, module, name, call)
            with pytest.raises(KeyboardInterrupt):
                cli.compare(few, out, resume=True)
        assert not (out / "results.json").exists()
    assert not (out / "tfb-adam" / "fit.json").exists()
    cli.compare(few, out, resume=True)
    assert_same(out, alone, exact=True)
    # Then nothing is trained, fitted or predicted again.
    monkeypatch.setattr(loop, "train_step", None)
    monkeypatch.setattr(tfb, "predict", None)
    monkeypatch.setattr("ivon_jax.train.sources.draws", None)
    (out / "results.json").unlink()
    monkeypatch.setattr("ivon_jax.train.report.costs.step_bytes", lambda *_: 1)
    cli.compare(few, out, resume=True)
    assert [row["nll"] for row in rows_of(out)] == [r["nll"] for r in rows_of(alone)]


def test_a_folder_of_another_fit_is_refused(few, alone, tmp_path):
    out = shutil.copytree(alone, tmp_path / "out")
    shutil.rmtree(out / "temperature-adam")
    shutil.copytree(out / "tfb-adam", out / "temperature-adam")
    with pytest.raises(ValueError, match="temperature-adam: holds another run"):
        cli.compare(few, out, resume=True)


@pytest.mark.slow  # without fits: test_compare_mesh.py
def test_a_mesh_changes_no_number(few, alone, tmp_path):
    mesh = dataclasses.replace(few, mesh="data=2,fsdp=2,tensor=2")
    cli.compare(mesh, tmp_path / "out")
    assert_same(tmp_path / "out", alone, exact=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fit", "sgd:adam"), "fit: sgd:adam is not FIT:METHOD, FIT of "),
        (("--fit", "tfb"), "fit: tfb is not of methods that are compared, adam, ivon"),
        (("--fit", "tfb:blob"), "fit: tfb:blob is not of methods that are compared"),
        (("--fit", "tfb:adam+ivon-lora"), "is of several methods, not one"),
        (("--fit", "tfb:adam", "temperature:*"), "needs --validation-examples"),
        (("--fit", "laplace-kfac:* --prior validation"), "needs --validation-examples"),
        (("--fit", "tfb:adam --samples 0"), "fit: tfb:adam --samples 0: samples: 0 is"),
        (("--fit", "tfb:adam --prior marglik"), "fit: tfb:adam --prior marglik: "),
        (("--fit", "tfb:adam '"), "fit: tfb:adam ': No closing quotation"),
        (("--fit", ""), "fit:  is not FIT:METHOD"),
        (("--fit", "tfb:*", "tfb:adam --samples 2"), "tfb:adam is named twice, with"),
    ],
)
def test_a_wrong_pair_is_refused_before_loading(options, message, tmp_path, capsys):
    words = ("--model", "missing", "--task", "custom", "--prompt", "{text}", "--labels")
    words += ("no", "yes", "--train-file", "x.jsonl", "--eval-file", "x.jsonl")
    assert command("compare", *words, *options, "--out", tmp_path / "out") == 2
    assert message in one_line(capsys)
    assert not list(tmp_path.iterdir())
