"""Files of adapters, to PEFT and from it."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_adapters import (
    close,
    our_logits,
    random_adapters,
    same,
    torch_logits,
    with_peft,
    write_home,
)

from ivon_jax.lora import LoraConfig
from ivon_jax.models import load
from ivon_jax.models import peft_io as peft_files
from ivon_jax.models.peft_io import load_adapter, read_settings, save_adapter

# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
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
    return write_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def base(folder):
    return load(str(folder / "model"))


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
