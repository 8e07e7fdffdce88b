"""Adapters and models leave for PEFT and transformers, and come back the same."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from ivon_jax.lora import Lora, LoraConfig, init_adapters
from ivon_jax.models import load
from ivon_jax.posterior import Posterior
from ivon_jax.train import adapters as peft_files
from ivon_jax.train import run
from ivon_jax.train.adapters import load_adapter, save_adapter
from ivon_jax.train.step import Streams

optax_promotes = tiny.optax_promotes
# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")

TOKENS = np.array([[1, 5, 9, 13, 2], [3, 3, 7, 11, 4]])
CONFIGS = {
    "paper": LoraConfig(rank=2, dropout=0.0),
    "rslora": LoraConfig(rank=3, alpha=5.0, dropout=0.1, rslora=True),
    "all": LoraConfig(rank=2, alpha=3.0, targets=("all-linear",)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("export")
    tiny.write_model(place / "model")
    tiny.write_data(place / "data", train=16, evaluation=12)
    return place


@pytest.fixture(scope="module")
def base(folder):
    return load(str(folder / "model"))


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


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_computes_the_same(name, folder, base, tmp_path):
    config = CONFIGS[name]
    adapters = random_adapters(base, config)
    save_adapter(tmp_path, adapters, config, "base")
    ours = our_logits(base, config, adapters)
    close(with_peft(folder, tmp_path), ours)
    zero = jax.tree.map(jnp.zeros_like, adapters)
    assert np.abs(our_logits(base, config, zero) - ours).max() > 0.01
    same(load_adapter(tmp_path, adapters, config), adapters)


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_that_peft_made(rslora, folder, base, tmp_path):
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").float()
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["q_proj", "up_proj"],
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    config = LoraConfig(4, 6.0, targets=("q_proj", "up_proj"), rslora=rslora)
    adapters = load_adapter(tmp_path, random_adapters(base, config), config)
    close(our_logits(base, config, adapters), torch_logits(model))


@pytest.fixture
def adapter(base, tmp_path):
    """A good adapter, to be damaged."""
    config = CONFIGS["paper"]
    save_adapter(tmp_path, random_adapters(base, config), config, "base")
    return tmp_path


def edit_config(folder, **changes):
    path = folder / peft_files.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("field", "value"),
    {
        "use_dora": True,
        "modules_to_save": ["lm_head"],
        "bias": "all",
        "lora_bias": True,
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"q_proj": 4},
        "layers_to_transform": [0],
        "init_lora_weights": "pissa",
        "peft_type": "IA3",
        "fan_in_fan_out": True,
        "from_the_future": 1,
    }.items(),
)
def test_what_is_not_implemented_is_named(field, value, adapter, base):
    edit_config(adapter, **{field: value})
    config = CONFIGS["paper"]
    with pytest.raises(ValueError, match=field):
        load_adapter(adapter, random_adapters(base, config), config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LoraConfig(rank=3), "r is 2, but rank is 3"),
        (LoraConfig(rank=2, alpha=8.0), "lora_alpha is 16.0, but alpha is 8.0"),
        (LoraConfig(rank=2, rslora=True), "use_rslora is False, but rslora is True"),
        (LoraConfig(rank=2, targets=("q_proj",)), "unexpected: .*v_proj"),
        (LoraConfig(rank=2, targets=("q_proj", "v_proj", "up_proj")), "missing: .*up"),
    ],
)
def test_other_settings_are_refused(config, message, adapter, base):
    with pytest.raises(ValueError, match=message):
        load_adapter(adapter, random_adapters(base, config), config)


def test_damaged_adapters_are_refused(adapter, base):
    config, shapes = CONFIGS["paper"], random_adapters(base, CONFIGS["paper"])
    weights = adapter / peft_files.WEIGHTS
    tensors = load_file(weights)
    name = next(iter(tensors))
    one = tensors[name]
    for wrong, message in (
        (np.full_like(one, np.nan), "has NaN"),
        (np.full_like(one, 1e300, np.float64), "has NaN or infinite"),
        (one.view(np.int32), "is int32"),
    ):
        save_file(tensors | {name: wrong}, weights)
        with pytest.raises(ValueError, match=rf"lora_A\.weight {message}"):
            load_adapter(adapter, shapes, config)
    weights.rename(adapter / peft_files.PICKLE)
    with pytest.raises(ValueError, match="is a pickle"):
        load_adapter(adapter, shapes, config)


@pytest.fixture
def command(monkeypatch, capsys, folder):
    """Runs a command line in the folder of model and data."""
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


TASK = ["--model", "model", "--rank", "2", "--batch-size", "4", "--task", "custom"]
TASK += ["--train-file", "data/train.jsonl", "--eval-file", "data/eval.jsonl"]
TASK += ["--labels", "no", "yes", "--prompt", tiny.PROMPT]


def trained(command, out, method, *extra):
    # A cold posterior would hide samples in the rounding.
    ess = ["--ess", "1000"] if method == "ivon-lora" else []
    args = ["--method", method, "--steps", "2", *ess, "--out", out, *extra]
    assert command("train", *TASK, *args)[0] == 0


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


def test_training_starts_from_an_adapter(command, base, tmp_path):
    config = LoraConfig(rank=2)
    adapters = random_adapters(base, config)
    (tmp_path / "given").mkdir()
    save_adapter(tmp_path / "given", adapters, config, "base")
    start = ["--adapter", tmp_path / "given"]
    trained(command, tmp_path / "run", "adam", *start, "--steps", 0)
    same(Posterior.load(tmp_path / "run" / run.POSTERIOR).mean, adapters)
    assert command("evaluate", tmp_path / "run")[0] == 0
    trained(command, tmp_path / "two", "adam", *start)
    moved = Posterior.load(tmp_path / "two" / run.POSTERIOR).mean
    for one, two in zip(jax.tree.leaves(adapters), jax.tree.leaves(moved), strict=True):
        # Two steps of Adam move no entry by more than twice the learning rate.
        assert 0 < np.abs(one - two).max() < 3 * 2e-4


def test_refusals(command, tmp_path):
    trained(command, tmp_path / "run", "adam")
    out = ["--out", tmp_path / "out"]
    for args, message in {
        ("--samples", "2"): "samples: method adam has no posterior",
        ("--prune", "0.5"): "prune: method adam has no posterior",
        ("--format", "hf", "--tau", "2"): "only with --format peft",
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
    from ivon_jax.train import export

    trained(command, tmp_path / "run", "ivon-lora")
    config, _ = run.read_config(tmp_path / "run")
    posterior = Posterior.load(tmp_path / "run" / run.POSTERIOR)
    big = jax.tree.map(lambda leaf: 100 * leaf, posterior.mean)
    Posterior(big, posterior.precision, posterior.prior_precision).save(
        tmp_path / "run" / run.POSTERIOR
    )

    def save(*args):
        saving.save(*args, shard_bytes=shard_bytes)

    monkeypatch.setattr(export, "save", save)
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


@pytest.mark.parametrize(("bits", "dtype"), [("int8", None), ("bf16", "BF16")])
def test_only_an_unquantised_base_is_merged_into(bits, dtype, command, tmp_path):
    from safetensors import safe_open

    # JAX's gradient of a 16-bit product with a 32-bit result mixes the two.
    with jax.numpy_dtype_promotion("standard"):
        trained(command, tmp_path / "run", "ivon-lora", "--base", bits)
    assert command("evaluate", tmp_path / "run", "--samples", "1")[0] == 0
    out = tmp_path / "out"
    code, error = command("export", tmp_path / "run", "--format", "hf", "--out", out)
    if dtype is None:
        assert code == 2
        assert "needs --base f32 or bf16" in error
        assert not out.exists()
    else:
        with safe_open(out / "model.safetensors", framework="numpy") as file:
            assert {file.get_slice(k).get_dtype() for k in file.keys()} == {dtype}  # noqa: SIM118
