"""Runs leave for PEFT and transformers, and come back the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_adapters import (
    close,
    command_in,
    our_logits,
    same,
    torch_logits,
    trained,
    with_peft,
    write_home,
)

from ivon_jax.kinds import load_posterior
from ivon_jax.lora import LoraConfig
from ivon_jax.models import load
from ivon_jax.models import peft_io as peft_files
from ivon_jax.models.peft_io import load_adapter
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.config_json import from_json
from ivon_jax.train.export import files
from ivon_jax.train.keys import Streams
from ivon_jax.train.runs import run

# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def base(folder):
    return load(str(folder / "model"))


@pytest.fixture
def command(folder, monkeypatch, capsys):
    return command_in(folder, monkeypatch, capsys)


def test_a_run_goes_to_peft_and_back(command, folder, base, tmp_path):
    trained(command, tmp_path / "run", "ivon-lora")
    options = ("--samples", 2, "--tau", 4, "--prune", 0.25)
    code, _ = command("export", tmp_path / "run", "--out", tmp_path / "out", *options)
    assert code == 0
    posterior = Posterior.load(tmp_path / "run" / run.POSTERIOR)
    pruned = posterior.prune(0.25)
    config, _ = run.read_config(tmp_path / "run")
    same(load_adapter(tmp_path / "out", pruned.mean, config.lora), pruned.mean)
    same(Posterior.load(tmp_path / "out" / run.POSTERIOR), posterior)
    settings = json.loads((tmp_path / "out" / peft_files.RUN).read_text())
    assert from_json(settings["config"], TrainConfig) == config
    metadata = {"step": 2, "ess": 1000}
    assert load_posterior(tmp_path / "out" / run.POSTERIOR)[1] == metadata
    assert settings.items() > metadata.items()
    key = Streams.from_seed(config.seed).ensemble
    for i in range(2):
        sample = pruned.temper(4.0).draw(key, i)
        loaded = load_adapter(tmp_path / "out" / f"sample-{i}", sample, config.lora)
        same(loaded, sample)
        assert any(
            np.abs(a - b).max() > 1e-3
            for a, b in zip(
                jax.tree.leaves(loaded), jax.tree.leaves(pruned.mean), strict=True
            )
        )
    ours = our_logits(base, config.lora, pruned.mean)
    close(with_peft(folder, tmp_path / "out"), ours)
    # Again into the same folder: refused, and the folder is as it was.
    code, error = command("export", tmp_path / "run", "--out", tmp_path / "out")
    assert code == 2
    assert "holds another run" in error
    assert (tmp_path / "out" / "sample-1").is_dir()


def test_refusals(command, tmp_path):
    trained(command, tmp_path / "run", "adam")
    out = ["--out", tmp_path / "out"]
    for args, message in {
        ("--samples", "2"): "samples: method adam has no posterior",
        ("--prune", "0.5"): "prune: method adam has no posterior",
        ("--format", "hf", "--tau", "2"): "only with --format peft",
        ("--dequantize",): "dequantize: only with --format hf",
        ("--prune", "1"): "prune: 1.0 is not in [0, 1)",
    }.items():
        code, error = command("export", tmp_path / "run", *out, *args)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard_bytes", [10**9, 10_000])
def test_transformers_loads_a_merged_model(
    shard_bytes, command, folder, base, tmp_path, monkeypatch
):
    pytest.importorskip("torch")
    import transformers

    from ivon_jax.models import save as saving

    trained(command, tmp_path / "run", "ivon-lora")
    config, _ = run.read_config(tmp_path / "run")
    posterior = Posterior.load(tmp_path / "run" / run.POSTERIOR)
    big = jax.tree.map(lambda leaf: 100 * leaf, posterior.mean)
    Posterior.point(big).save(tmp_path / "run" / run.POSTERIOR, step=7)

    def save(*args):
        saving.save(*args, shard_bytes=shard_bytes)

    monkeypatch.setattr(files, "save", save)
    out = tmp_path / "whole"
    assert command("export", tmp_path / "run", "--format", "hf", "--out", out)[0] == 0
    assert (len(list(out.glob("*.safetensors"))) > 1) == (shard_bytes < 10**9)
    ours = our_logits(base, config.lora, big)
    zero = our_logits(base, config.lora, jax.tree.map(jnp.zeros_like, big))
    assert np.abs(ours - zero).max() > 0.01
    close(torch_logits(transformers.AutoModelForCausalLM.from_pretrained(out)), ours)
    close(
        our_logits(load(str(out)), config.lora, jax.tree.map(jnp.zeros_like, big)), ours
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    text = "Text: red one Answer:"
    assert tokenizer(text).input_ids == base.tokenizer(text).input_ids
    settings = json.loads((tmp_path / "run" / run.CONFIG).read_text())
    found = json.loads((out / peft_files.RUN).read_text())
    assert found == settings | {"step": 7}


def test_a_quantised_base_is_merged_into_on_request(command, folder, tmp_path):
    qwix = pytest.importorskip("qwix")
    # JAX's gradient of a 16-bit product with a 32-bit result mixes the two.
    with jax.numpy_dtype_promotion("standard"):
        trained(command, tmp_path / "run", "ivon-lora", "--base", "int8")
    assert command("evaluate", tmp_path / "run", "--samples", "1")[0] == 0
    posterior = Posterior.load(tmp_path / "run" / run.POSTERIOR)
    mean = jax.tree.map(lambda leaf: 50 * leaf, posterior.mean)
    Posterior.point(mean).save(tmp_path / "run" / run.POSTERIOR)
    out = tmp_path / "out"
    args = ("export", tmp_path / "run", "--format", "hf", "--out", out)
    code, error = command(*args)
    assert code == 2
    assert "has --base int8; --dequantize writes that base in bfloat16" in error
    assert not out.exists()
    assert command(*args, "--dequantize")[0] == 0
    written, original = (
        load_file(place / "model.safetensors") for place in (out, folder / "model")
    )
    assert written.keys() == original.keys()
    for name, weight in original.items():
        wanted = jnp.asarray(weight)
        if "_proj" in name:
            kernel = qwix.quantize(wanted.T, jnp.int8, channelwise_axes=[1])
            wanted = qwix.dequantize(kernel).T
        wanted = wanted.astype(jnp.bfloat16)
        if "q_proj" in name or "v_proj" in name:
            _, _, layer, _, module, _ = name.split(".")
            pair = mean["layers"]["self_attn"][module]
            product = 16 / 2 * (pair["a"][int(layer)] @ pair["b"][int(layer)])
            assert np.abs(product).max() > 0.02
            wanted = (wanted.astype(jnp.float32) + product.T).astype(jnp.bfloat16)
        assert written[name].dtype == jnp.bfloat16
        # A sum may be rounded the other way.
        np.testing.assert_allclose(
            written[name].astype(np.float32), wanted.astype(np.float32), rtol=2**-7
        )
    # Transformers loads it, and computes what we do.
    pytest.importorskip("torch")
    import transformers

    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).float()
    nothing = jax.tree.map(jnp.zeros_like, mean)
    ours = our_logits(load(str(out)), LoraConfig(rank=2), nothing)
    close(torch_logits(theirs), ours)


def test_a_16_bit_run_stays_in_16_bits(command, tmp_path):
    from safetensors import safe_open

    with jax.numpy_dtype_promotion("standard"):
        trained(command, tmp_path / "run", "ivon-lora", "--base", "bf16")
    out = tmp_path / "out"
    assert command("export", tmp_path / "run", "--format", "hf", "--out", out)[0] == 0
    with safe_open(out / "model.safetensors", framework="numpy") as file:
        assert {file.get_slice(k).get_dtype() for k in file.keys()} == {"BF16"}  # noqa: SIM118
