"""Eight steps on the real pretrained model, against those of an older commit."""

import json
import os
import subprocess
import sys

import pytest
from reference import FIXTURES, header, summary

RECORDED = json.loads((FIXTURES / "smollm2.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["adam", "ivon-lora"])
def test_eight_steps_are_those_of_the_recorded_commit(method, tmp_path):
    """Without dropout: the old commit drew its masks for padded rows."""
    # As a user's shell has it: one device, and programs optimised as usual.
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    run = tmp_path / method
    words = [*RECORDED["command"], "--method", method, "--out", str(run)]
    program = [sys.executable, "-m", "ivon_jax.train.cli", *words]
    subprocess.run(program, env=env, check=True, capture_output=True)

    lines = (run / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses == pytest.approx(RECORDED["losses"][method], rel=1e-4)
    expected = RECORDED["posteriors"][method]
    got = summary(run / "posterior.safetensors")
    assert got.keys() == expected["tensors"].keys()
    metadata = header(run / "posterior.safetensors")
    assert metadata.items() >= expected["header"].items()
    for name, wanted in expected["tensors"].items():
        for kind in ("dtype", "shape"):
            assert got[name][kind] == wanted[kind], name
        # Adam divides by a gradient's size: where that is rounding, so is the update.
        close = {"rel": 1e-3, "abs": 1e-3 * wanted["norm"]}
        for kind in ("norm", "projection"):
            assert got[name][kind] == pytest.approx(wanted[kind], **close), name
