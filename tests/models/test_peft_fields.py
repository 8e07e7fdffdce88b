"""Every field of PEFT's LoraConfig is taken over, says nothing, or is refused."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from ivon_jax.lora import LoraConfig
from ivon_jax.models.peft_io import CONFIG, read_settings, save_adapter

peft = pytest.importorskip("peft")

# A value of each field that is not its default; a new field of PEFT needs one here.
OTHER = {
    "alora_invocation_tokens": [1, 2],
    "alpha_pattern": {"q_proj": 3},
    "arrow_config": {"top_k": 2},
    "auto_mapping": {"base_model_class": "LlamaForCausalLM"},
    "base_model_name_or_path": "some/base",
    "bias": "lora_only",
    "corda_config": {"corda_method": "kpm"},
    "ensure_weight_tying": True,
    "eva_config": {"rho": 2.0},
    "exclude_modules": ["k_proj"],
    "fan_in_fan_out": True,
    "inference_mode": True,
    "init_lora_weights": "pissa",
    "kasa_config": {"svd_rank": 2},
    "layer_replication": [[0, 2], [1, 2]],
    "layers_pattern": "layers",
    "layers_to_transform": 0,
    "loftq_config": {"loftq_bits": 4},
    "lora_alpha": 5,
    "lora_bias": True,
    "lora_dropout": 0.25,
    "lora_ga_config": {"direction": "ArB2r"},
    "megatron_config": {"hidden_size": 32},
    "megatron_core": "another.core",
    "modules_to_save": ["classifier"],
    "monteclora_config": {"num_samples": 2},
    "peft_type": "IA3",
    "peft_version": "0.1.0",
    "qalora_group_size": 8,
    "r": 3,
    "rank_pattern": {"q_proj": 3},
    "revision": "main",
    "runtime_config": {"ephemeral_gpu_offload": True},
    "target_modules": ".*q_proj",
    "target_parameters": ["q_proj.weight"],
    "task_type": "SEQ_CLS",
    "trainable_token_indices": [0],
    "use_bdlora": {"target_modules_bd_a": ["q_proj"]},
    "use_dora": True,
    "use_qalora": True,
    "use_rslora": True,
    "velora_config": {"num_groups": 2},
}
PATH = "layers/self_attn/q_proj"
# What becomes of those that are taken over; other tests compare with PEFT's outputs.
TAKEN = {
    "alpha_pattern": {"alpha_pattern": ((PATH, 3.0),)},
    "lora_alpha": {"alpha": 5.0},
    "lora_dropout": {"dropout": 0.25},
    "r": {"rank": 3},
    "rank_pattern": {"rank_pattern": ((PATH, 3),)},
    "use_rslora": {"rslora": True},
}
# What these say is told by the names of the tensors.
TOLD = {"exclude_modules", "modules_to_save", "target_modules"}
SAYS_NOTHING = {
    "auto_mapping",
    "base_model_name_or_path",
    # Without the initialisation that they belong to.
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_ga_config",
    "fan_in_fan_out",  # PEFT switches it off for linear layers
    "inference_mode",
    "megatron_core",  # without megatron_config
    "peft_version",
    "qalora_group_size",  # without use_qalora
    "revision",
    "task_type",
}
FIELDS = [field.name for field in dataclasses.fields(peft.LoraConfig)]


ADAPTERS = {"layers": {"self_attn": {"q_proj": {
    "a": jnp.ones((2, 6, 2)), "b": jnp.ones((2, 2, 6))}}}}  # fmt: skip


def with_config(folder, values):
    """An adapter's folder with these fields of PEFT's."""
    save_adapter(folder, ADAPTERS, LoraConfig(rank=2), "base")
    (folder / CONFIG).write_text(json.dumps(values))
    return folder


@pytest.fixture
def defaults():
    """What PEFT writes of a plain adapter."""
    values = peft.LoraConfig(r=2, target_modules=["q_proj"]).to_dict()
    return json.loads(json.dumps(values, default=list))


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_is_not_as_usual(field, defaults, tmp_path):
    usual = read_settings(with_config(tmp_path, defaults))
    assert usual == LoraConfig(rank=2, alpha=8.0, dropout=0.0, targets=(PATH,))
    value = OTHER[field]
    assert defaults.get(field) != value
    with_config(tmp_path, defaults | {field: value})
    if field in TAKEN:
        wanted = dataclasses.replace(usual, **TAKEN[field])
        assert read_settings(tmp_path) == wanted != usual
    elif field in TOLD | SAYS_NOTHING:
        assert read_settings(tmp_path) == usual
    else:
        with pytest.raises(ValueError) as caught:
            read_settings(tmp_path)
        message = str(caught.value)
        assert message.startswith(f"adapter {tmp_path}: {field} is {value!r:.80}, ")
        assert "\n" not in message


# All of PEFT's but CorDA and LoRA-GA, which need data, and LoftQ, which needs a GPU.
INITS = [True, False, "gaussian", "eva", "orthogonal", "mica"]
INITS += ["pissa", "pissa_niter_2", "olora"]


@pytest.mark.filterwarnings("ignore:.*eva")
@pytest.mark.parametrize("init", INITS)
def test_only_what_changes_the_base_is_refused(init, defaults, tmp_path):
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(16, 16)
    before = layer.weight.detach().clone()
    config = peft.LoraConfig(
        r=2,
        target_modules=["0"],
        init_lora_weights=init,
    )
    tuned = peft.get_peft_model(torch.nn.Sequential(layer), config)
    kept = torch.equal(tuned.base_model.model[0].base_layer.weight, before)
    with_config(tmp_path, defaults | {"init_lora_weights": init})
    if kept:
        assert read_settings(tmp_path).rank == 2
    else:
        with pytest.raises(ValueError, match=f"init_lora_weights is '{init}', exp"):
            read_settings(tmp_path)


@pytest.mark.parametrize(
    ("base", "name", "revision"),
    [
        ("some/base", "some/base", None),
        ("some/base@refs/pr/1", "some/base", "refs/pr/1"),
        ("/a/folder@home", "/a/folder@home", None),
    ],
)
def test_peft_finds_the_base(base, name, revision, tmp_path):
    save_adapter(tmp_path, ADAPTERS, LoraConfig(rank=2), base)
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert (read.base_model_name_or_path, read.revision) == (name, revision)
