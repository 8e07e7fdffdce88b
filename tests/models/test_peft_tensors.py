"""Tensors of PEFT that are not read are named, with the adapter and the reason."""

import json

import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

from ivon_jax.models.peft_io import CONFIG, WEIGHTS, read_settings
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.problem import prepare

P = "base_model.model."
QUERY = P + "model.layers.0.self_attn.q_proj"
PAIR = {f"{QUERY}.lora_A.weight": (2, 32), f"{QUERY}.lora_B.weight": (32, 2)}
STATE_DICT = "as in a model's state_dict, which is not implemented; save it with PEFT's"
EMBEDDINGS = "of the embeddings or the output layer, for which neither adapters nor"

# What lies beside an adapter that can be read, and what is said of it.
BESIDE = [
    ("model.embed_tokens.weight", EMBEDDINGS),
    ("lm_head.weight", EMBEDDINGS),
    ("lm_head.lora_A.weight", EMBEDDINGS),
    ("lm_head.modules_to_save.weight", "of a model's state_dict, which is not impl"),
    ("model.embed_tokens.lora_embedding_A", "an adapter of embeddings, which is not"),
    ("model.embed_tokens.base_layer.weight", "of the base model, which is not impl"),
    ("model.embed_tokens.token_adapter.trainable_tokens_delta", "of trainable tokens"),
    ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "of DoRA, which is not"),
    ("model.layers.0.self_attn.q_proj.lora_B.bias", "of lora_bias, which is not"),
    ("model.layers.0.input_layernorm.weight", "not implemented, expected a linear"),
    ("model.norm.weight", "not implemented, expected a linear layer: q_proj, k_proj,"),
    ("model.layers.0.mlp.gate_up_proj.lora_A.weight", "not implemented, expected a"),
    ("model.layers.0.mlp.up_proj.lora_A.scale", f"expected {P}LAYER with one of .lora"),
    ("score.weight", "of a layer that is in no supported model"),
    ("transformer.h.0.attn.c_attn.lora_A.weight", "of a layer that is in no"),
    ("model.layers.0.mlp.up_proj.lora_A.default.weight",
     f"has the adapter's name, 'default', within its own, {STATE_DICT}"),
    ("model.layers.0.mlp.up_proj.lora_B.a.b.weight", "the adapter's name, 'a.b', with"),
]  # fmt: skip


def adapter(folder, shapes):
    values = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    (folder / CONFIG).write_text(json.dumps(values))
    tensors = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / WEIGHTS)
    return folder


def message(folder):
    with pytest.raises(ValueError, match="^adapter ") as caught:
        read_settings(folder)
    text = str(caught.value)
    assert text.startswith(f"adapter {folder}: ") and "\n" not in text
    return text


@pytest.mark.parametrize(("name", "reason"), BESIDE)
def test_a_tensor_that_is_not_implemented(name, reason, tmp_path):
    assert read_settings(adapter(tmp_path, PAIR)).rank == 2
    text = message(adapter(tmp_path, PAIR | {P + name: (2, 2)}))
    assert f"tensor {P + name} " in text and reason in text


@pytest.mark.parametrize(
    ("shapes", "reason"),
    [
        ({}, f"{WEIGHTS} has no tensor that ends in .lora_A.weight"),
        ({P + "classifier.weight": (2, 2)}, "no tensor that ends in .lora_A.weight"),
        (PAIR | {f"{QUERY}.bias": (32,)}, "q_proj has an adapter and tensors of"),
        (
            {name.removeprefix(P): shape for name, shape in PAIR.items()},
            f"expected {P}LAYER with one of .lora_A.weight",
        ),
    ],
)  # fmt: skip
def test_no_whole_adapter(shapes, reason, tmp_path):
    assert reason in message(adapter(tmp_path, shapes))


def test_an_adapter_of_another_architecture(tmp_path):
    """Its layers are named as the adapter's, not as of options that nobody gave."""
    layer = P + "deberta.encoder.layer.0.attention.self.query_proj"
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapter(
        folder, {f"{layer}.lora_A.weight": (2, 32), f"{layer}.lora_B.weight": (32, 2)}
    )
    model, data = tiny.write_task(tmp_path, layers=1)
    config = TrainConfig(model, data=data, lora=read_settings(folder), adapter=folder)
    with pytest.raises(ValueError, match=f"^adapter {folder} for model {model}: ") as e:
        prepare(config)
    assert "'layers/attention/self/query_proj' matches no linear layer" in str(e.value)
