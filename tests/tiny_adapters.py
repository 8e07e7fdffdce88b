"""Adapters of a tiny model, and what they compute, here and in PEFT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ivon_jax.lora import Lora, init_adapters

TOKENS = np.array([[1, 5, 9, 13, 2], [3, 3, 7, 11, 4]])


def our_logits(base, config, adapters):
    @jax.jit
    def compute(params, adapters):
        variables = {"params": params, "lora": adapters}
        hidden = Lora(base.model, config).apply(variables, jnp.asarray(TOKENS))
        return base.model.apply({"params": params}, hidden, method="unembed")

    return np.asarray(compute(base.params, adapters))


def torch_logits(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def with_peft(folder, adapter):
    peft = pytest.importorskip("peft")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").float()
    return torch_logits(peft.PeftModel.from_pretrained(model, adapter))


def random_adapters(base, config, seed=0):
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = init_adapters(Lora(base.model, config), jax.random.key(0), tokens)
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes
    )


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, two)


def close(a, b):
    assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max()


EVAL = ["--model", "model", "--task", "custom", "--eval-file", "data/eval.jsonl"]
EVAL += ["--labels", "no", "yes", "--prompt", tiny.PROMPT]
TASK = [*EVAL, "--train-file", "data/train.jsonl", "--batch-size", "4"]


def trained(command, out, method, *extra, lora=("--rank", 2)):
    # A cold posterior would hide samples in the rounding.
    ess = ["--ess", "1000"] if method == "ivon-lora" else []
    args = ["--method", method, "--steps", "2", *ess, "--out", out, *lora, *extra]
    assert command("train", *TASK, *args)[0] == 0


def write_home(place):
    """Writes a model and data."""
    tiny.write_model(place / "model")
    tiny.write_data(place / "data", train=16, evaluation=12)
    return place


def command_in(folder, monkeypatch, capsys):
    """Runs command lines in the folder of model and data."""
    import sys

    from ivon_jax.train import cli

    monkeypatch.chdir(folder)
    monkeypatch.delenv("IVON_JAX_DATA", raising=False)

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["ivon-jax", *map(str, args)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    return call
