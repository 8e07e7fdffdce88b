"""The scripts in examples/ run, and show what they say."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def main_of(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def run_alone(*command):
    """Runs in a process of its own, with as many devices as it asks for."""
    # It compiles as fast as the tests do.
    flags = [x for x in os.environ["XLA_FLAGS"].split() if "device_count" not in x]
    out = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=EXAMPLES.parent,
        env=os.environ | {"XLA_FLAGS": " ".join(flags)},
        timeout=500,
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_optax_chain():
    # optax's schedules promote a step's number to a float.
    with jax.numpy_dtype_promotion("standard"):
        mean, std = main_of("optax_chain")()
    assert abs(mean[2]) < 0.1  # sin(0), in the middle of the data
    assert std[2] < 0.1
    # At -6 and 6 half a bump's neighbours contribute: the prior's own deviation.
    bumps = np.exp(-2 * np.square(np.linspace(-6, 6, 25) - 6))
    prior = np.sqrt(np.sum(bumps**2))
    np.testing.assert_allclose(std[np.array([0, 4])], prior, rtol=0.2)


def test_fine_tune():
    mean, samples = main_of("fine_tune")()
    assert mean["accuracy"] > 0.8
    assert samples["accuracy"] > 0.8
    assert (samples["samples"], samples["tau"]) == (8, 1.0)


def test_ensemble():
    found = main_of("ensemble")()
    # The average of probabilities is no worse than members are on average (Jensen).
    assert found["nll"] <= np.mean(found["single"])
    assert len(set(found["single"])) == 16
    assert found["unknown"] > 2 * found["known"] > 0


def test_own_method():
    """Alone: the configuration of this process knows its methods already."""
    out = run_alone(EXAMPLES / "own_method.py")
    accuracy = re.findall(
        r"\| sgd-gaussian(?:@mean|, 8 samples\S*).*?\| ([\d.]+) ", out
    )
    assert len(accuracy) == 2
    assert min(map(float, accuracy)) > 80


def test_own_method_on_the_command_line():
    code = "import own_method, sys; from ivon_jax.train.cli import main; main()"
    line = ["train", "--method", "sgd-gaussian", "--momentum", "1.5", "--out", "x"]
    path = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); "
    with pytest.raises(AssertionError, match=r"momentum: 1.5 is not in \[0, 1\)"):
        run_alone("-c", path + code, *line)


def test_sharded_step():
    out = run_alone(EXAMPLES / "sharded_step.py")
    assert "the adapters are the same" in out
    losses = re.findall(r"^(data=\S+): loss ([\d.]+)$", out, re.MULTILINE)
    assert [mesh for mesh, _ in losses] == ["data=2,fsdp=2,tensor=2", "data=1"]
    first, second = (float(loss) for _, loss in losses)
    assert first == pytest.approx(second, abs=1e-5)
    # A kernel of 32 by 32 in two layers is in four parts.
    assert re.search(r"q_proj/kernel +\(2, 32, 32\) .*\(2, 16, 16\)$", out, re.M)


def test_all_examples_are_tested():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert {f"test_{name}" for name in names} <= globals().keys()
