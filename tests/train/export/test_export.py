"""Adapters and models leave for PEFT and transformers, and come back the same."""

import dataclasses
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from ivon_jax.kinds import load_posterior
from ivon_jax.lora import Lora, LoraConfig, init_adapters
from ivon_jax.models import load
from ivon_jax.models import peft_io as peft_files
from ivon_jax.models.peft_io import load_adapter, read_settings, save_adapter
from ivon_jax.posterior import Posterior
from ivon_jax.train.command_line import parse
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.config_json import from_json
from ivon_jax.train.export import files
from ivon_jax.train.keys import Streams
from ivon_jax.train.runs import run

# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")

TOKENS = np.array([[1, 5, 9, 13, 2], [3, 3, 7, 11, 4]])
CONFIGS = {
    "paper": LoraConfig(rank=2, dropout=0.0),
    "rslora": LoraConfig(rank=3, alpha=5.0, dropout=0.1, rslora=True),
    "patterns": LoraConfig(
        rank=2,
        alpha=3.0,
        targets=("all-linear",),
        rank_pattern=(("q_proj", 3), ("layers/mlp/.*", 1)),
        alpha_pattern=(("layers/self_attn/.*", 5.0), ("q_proj", 7.0)),
    ),
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


# PEFT's rule: the first key that is a layer's name from some dot on. It sorts the keys
# when it writes them, so here they are sorted.
PEFT_PATTERNS = {
    "plain": {},
    "whole layers": {"use_rslora": True, "modules_to_save": ["down_proj"]},
    "patterns": {
        "rank_pattern": {r"attn\.q_proj": 8, "mlp.up_proj": 3, "self.*|.*_proj": 2},
        "alpha_pattern": {r"^model.*q_proj": 5, r"model\.layers\.\d\.mlp.*": 9},
    },
    "patterns for every single layer": {
        "rank_pattern": {r"layers\.[02].self_attn.q_proj": 2, "1.self_attn.q_proj": 2},
        "alpha_pattern": {"0.mlp.up_proj": 3, "up_proj": 3},
        "use_rslora": True,
    },
}


@pytest.mark.parametrize("name", PEFT_PATTERNS)
def test_an_adapter_that_peft_made(name, folder, base, tmp_path):
    peft = pytest.importorskip("peft")
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model").float()
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        lora_dropout=0.25,
        target_modules=["q_proj", "up_proj"],
        task_type="CAUSAL_LM",
        **PEFT_PATTERNS[name],
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PEFT: rslora with patterns, unused keys
        model = peft.get_peft_model(model, settings)
    with torch.no_grad():
        for tensor_name, parameter in model.named_parameters():
            if "lora_" in tensor_name or "modules_to_save" in tensor_name:
                parameter.normal_(std=0.3)
    model.save_pretrained(tmp_path)
    config = read_settings(tmp_path)
    assert (config.rank, config.alpha, config.dropout) == (4, 6.0, 0.25)
    assert config.targets == ("layers/mlp/up_proj", "layers/self_attn/q_proj")
    adapters = load_adapter(tmp_path, random_adapters(base, config), config)
    close(our_logits(base, config, adapters), torch_logits(model))


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_tells_stacked_layers_apart_is_refused(field, adapter):
    edit_config(adapter, **{field: {"layers.1.self_attn.q_proj": 3}})
    message = f"{field} gives single layers of layers/self_attn/q_proj .* need one"
    with pytest.raises(ValueError, match=message):
        read_settings(adapter)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("rank_pattern", {"q_proj": 2.5}, "2.5, expected an integer"),
        ("rank_pattern", {"q_proj": True}, "True, expected an integer"),
        ("rank_pattern", {"q_proj": 0}, "0 is not >= 1"),
        ("rank_pattern", ["q_proj"], "expected an object"),
        ("rank_pattern", {"q_proj": 4}, "misshaped: .*q_proj.lora_A"),
        ("alpha_pattern", {"q_proj": "4"}, "'4', expected a number"),
        ("alpha_pattern", {"q_proj(": 4}, "'q_proj[(]' is not a regular"),
        ("r", None, "None, expected an integer"),
        ("lora_alpha", 10**400, "expected a number"),
        ("lora_dropout", 2, "dropout: 2.0 is not in"),
        ("use_rslora", 1, "1, expected true or false"),
    ],
)
def test_illegal_values_are_named(field, value, message, adapter, base):
    edit_config(adapter, **{field: value})
    with pytest.raises(ValueError, match=message):
        config = read_settings(adapter)
        load_adapter(adapter, random_adapters(base, config), config)


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
        "bias": "all",
        "lora_bias": True,
        "layers_to_transform": 0,
        "init_lora_weights": "pissa",
        "peft_type": "IA3",
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
        (LoraConfig(rank=3), "its rank of layers/self_attn/q_proj is 2, but rank 3"),
        (LoraConfig(rank=2, alpha=8.0), "alpha of .*q_proj is 16.0, but alpha 8.0"),
        (LoraConfig(rank=2, rslora=True), "use_rslora is False, but rslora True"),
        (LoraConfig(rank=2, targets=("q_proj",)), "v_proj, which targets omit"),
        (
            LoraConfig(rank=2, targets=("q_proj", "v_proj", "up_proj")),
            "no adapter for .*up",
        ),
        (LoraConfig(rank=2, rank_pattern=(("v_proj", 4),)), "v_proj is 2, but rank 4"),
        (LoraConfig(rank=2, alpha_pattern=(("v_proj", 4.0),)), "16.0, but alpha 4.0"),
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


EVAL = ["--model", "model", "--task", "custom", "--eval-file", "data/eval.jsonl"]
EVAL += ["--labels", "no", "yes", "--prompt", tiny.PROMPT]
TASK = [*EVAL, "--train-file", "data/train.jsonl", "--batch-size", "4"]


def trained(command, out, method, *extra, lora=("--rank", 2)):
    # A cold posterior would hide samples in the rounding.
    ess = ["--ess", "1000"] if method == "ivon-lora" else []
    args = ["--method", method, "--steps", "2", *ess, "--out", out, *lora, *extra]
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


OWN = LoraConfig(
    rank=3,
    alpha=5.0,
    dropout=0.25,
    targets=("layers/mlp/up_proj", "layers/self_attn/q_proj"),
    rslora=True,
    rank_pattern=(("layers/mlp/up_proj", 2),),
    alpha_pattern=(("layers/self_attn/q_proj", 4.0),),
)


@pytest.fixture
def given(base, tmp_path):
    """An adapter that differs from the defaults in everything."""
    (tmp_path / "given").mkdir()
    save_adapter(tmp_path / "given", random_adapters(base, OWN), OWN, "model")
    return tmp_path / "given"


@pytest.mark.parametrize("name", ["train", "plan"])
def test_an_adapters_own_settings_are_the_defaults_beside_it(name, given, monkeypatch):
    from ivon_jax.train import cli

    def parsed(*args):
        extra = {"train": ["--out", "new"], "plan": ["--chip", "v5e"]}[name]
        argv = ["ivon-jax", name, *extra, *map(str, args)]
        monkeypatch.setattr("sys.argv", argv)
        return parse({"train": cli.train, "plan": cli.plan}).keywords["config"]

    config = parsed("--adapter", given, "--seed", 3)
    assert (config.adapter, config.seed, config.lora) == (given, 3, OWN)
    changed = parsed("--dropout", 0.5, "--adapter", given, "--rank", 8).lora
    assert changed == dataclasses.replace(OWN, dropout=0.5, rank=8)
    assert parsed().lora == LoraConfig()
    config = parsed("--method", "adam", "--adapter", given, "--eps", 1)
    assert (config.method, config.hyper.eps, config.lora) == ("adam", 1.0, OWN)


def test_training_and_evaluation_start_from_an_adapter(command, given, base, tmp_path):
    adapters = random_adapters(base, OWN)
    start = ["--adapter", given]
    trained(command, tmp_path / "run", "adam", *start, "--steps", 0, lora=())
    assert run.read_config(tmp_path / "run")[0].lora == OWN
    same(Posterior.load(tmp_path / "run" / run.POSTERIOR).mean, adapters)
    assert command("evaluate", tmp_path / "run")[0] == 0
    out = tmp_path / "evaluated"
    code, printed = command("evaluate", *start, *EVAL, "--out", out)
    assert code == 0
    assert "| adapter " in printed
    name = "predictions-mean.safetensors"
    same(load_file(out / name), load_file(tmp_path / "run" / name))
    found, wanted = (
        json.loads((place / "evaluation-mean.json").read_text())
        for place in (out, tmp_path / "run")
    )
    assert found["rows"] == [wanted["rows"][0] | {"method": "adapter"}]
    for fact in ("eval_fingerprint", "model_fingerprint", "versions"):
        assert found[fact] == wanted[fact]
    assert found["config"]["adapter"] == str(given)
    assert found["config"]["seed"] == wanted["config"]["seed"]
    trained(command, tmp_path / "two", "adam", *start, lora=())
    moved = Posterior.load(tmp_path / "two" / run.POSTERIOR).mean
    for one, two in zip(jax.tree.leaves(adapters), jax.tree.leaves(moved), strict=True):
        # Two steps of Adam move no entry by more than twice the learning rate.
        assert 0 < np.abs(one - two).max() < 3 * 2e-4


def test_options_that_an_adapter_contradicts(command, given, tmp_path):
    start = ["--adapter", given, "--out", tmp_path / "out"]
    for options, message in {
        ("--rank", 8): "its rank of layers/self_attn/q_proj is 3, but rank 8",
        ("--alpha", 1): "its alpha of layers/mlp/up_proj is 5.0, but alpha 1.0",
        (
            "--targets",
            "q_proj",
            "up_proj",
            "v_proj",
        ): "has no adapter for layers/self_attn",
        ("--no-rslora",): "its use_rslora is True, but rslora False",
        ("--rank-pattern",): "its rank of layers/mlp/up_proj is 2, but rank 3",
    }.items():
        code, error = command("train", *TASK, *start, *options)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
    save_file({"score.weight": np.ones((2, 2), np.float32)}, given / peft_files.WEIGHTS)
    code, error = command("train", *TASK, *start)
    assert (code, error.count("\n")) == (2, 1)
    assert "tensor score.weight is not implemented" in error
    assert not (tmp_path / "out").exists()


def test_evaluate_takes_a_run_or_an_adapter(command, given, tmp_path):
    place = ["--out", tmp_path / "out"]
    for args, message in {
        (): "directory: name a run, or an adapter",
        (given, "--adapter", given): "directory: name a run, or an adapter",
        (given, "--model", "model"): "model: only with --adapter",
        (given, "--task", "rte"): "task: only with --adapter",
        ("--adapter", given, *EVAL): "adapter: needs --model and --out",
        ("--adapter", given, *EVAL, *place, "--best"): "has no --best",
        ("--adapter", given, *EVAL, "--out", given): "holds another run",
        ("--adapter", given, *EVAL, *place, "--prune", 0.5): "prune: the method has no",
        ("--adapter", tmp_path, *EVAL, *place): "adapter_config.json: no such file",
    }.items():
        code, error = command("evaluate", *args)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
    assert not (tmp_path / "out").exists()


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
