"""Comparisons on several devices and processes, in rows and micro-batches."""

import dataclasses
import json
from pathlib import Path

import children
import numpy as np
import pytest
import tiny

from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import CompareConfig, Hypers
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.runs.run import METRICS

# Of each method: methods/test_common.py; of predictions: pod/test_mesh.py; of rows and
# micro-batches: test_step.py.
pytestmark = pytest.mark.slow
STEPS = 3
CLOCK = ("step_seconds", "fit_seconds")


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> CompareConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=2)
    common = {"steps": STEPS, "batch_size": 8, "learning_rate": 0.01, "warmup": 0}
    return CompareConfig(
        model,
        data=data,
        lora=LoraConfig(rank=4, dropout=0.0),
        hyper=Hypers(adam=AdamHyper(**common), ivon_lora=IvonLoraHyper(**common)),
        samples=2,
        sweep_samples=2,
        taus=(4.0,),
    )


@pytest.fixture(scope="module")
def alone(config, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("alone") / "compare"
    cli.compare(config, out)
    return out


def results(out: Path) -> list[dict]:
    return json.loads((out / "results.json").read_text())["rows"]


def losses(out: Path) -> list[float]:
    lines = (out / METRICS).read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def assert_same(out: Path, alone: Path) -> None:
    assert len(losses(out)) == 2 * STEPS
    np.testing.assert_allclose(losses(out), losses(alone), rtol=1e-4)
    assert len(results(out)) >= 4
    for found, wanted in zip(results(out), results(alone), strict=True):
        assert found.keys() == wanted.keys()
        for name in (*CLOCK, "peak_bytes", "errors", "differences"):
            del found[name], wanted[name]
        for name, value in wanted.items():
            # They jump where a bin ends.
            if name in ("ece", "ece15", "adaptive_ece", "mce", "accuracy"):
                assert found[name] == pytest.approx(value, abs=0.06)
            else:
                assert found[name] == (
                    value if isinstance(value, str) else pytest.approx(value, rel=1e-3)
                )
    assert (out / "report.md").exists() and (out / "training.png").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"mesh": "data=2", "share_prefix": "off", "remat": "full", "accumulate": 2},
        {"mesh": "data=2,fsdp=2,tensor=2"},
    ],
    ids=str,
)
def test_how_it_is_computed_changes_no_number(changes, config, alone, tmp_path):
    """There is no dropout, of which all prompts share the mask of a shared prefix."""
    cli.compare(dataclasses.replace(config, **changes), tmp_path / "compare")
    assert_same(tmp_path / "compare", alone)


def test_two_processes_change_no_number(config, tmp_path):
    """Neither of the methods nor of a fit, which sums over all processes' rows."""
    alone, out = tmp_path / "alone", tmp_path / "compare"
    cli.compare(dataclasses.replace(config, fit=("laplace-kfac:adam",)), alone)
    words = [
        *("--model", config.model, "--task", "custom", "--rank", 4, "--dropout", 0.0),
        *("--train-file", config.data.train_file),
        *("--eval-file", config.data.eval_file),
        *("--prompt", tiny.PROMPT, "--labels", *tiny.LABELS),
        *("--samples", 2, "--sweep-samples", 2, "--taus", 4.0),
        *("--fit", "laplace-kfac:adam", "--mesh", "data=2", "--out", out),
    ]
    for name in ("adam", "ivon-lora"):
        for option, value in vars(config.hyper.adam).items():
            if value is not None:
                words += [f"--{name}.{option.replace('_', '-')}", value]
    address = children.free_address()
    crew = [
        children.start(
            *("compare", *words, "--coordinator", address),
            *("--processes", 2, "--process", index),
        )
        for index in range(2)
    ]
    said = [child.communicate(timeout=240) for child in crew]
    assert [child.returncode for child in crew] == [0, 0], said
    assert_same(out, alone)
    assert "laplace-kfac(adam)" in {row["method"] for row in results(out)}
    tables = ["| ivon-lora" in stdout for stdout, _ in said]
    assert tables == [True, False]
