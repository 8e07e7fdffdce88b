"""Random DeBERTas: ours, and those of transformers with the same weights."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ivon_jax.models import Deberta, DebertaConfig
from ivon_jax.models.stack import unstack_layers
from ivon_jax.models.weights import Tensors, fill

LIKE_V3 = {
    "model_type": "deberta-v2",
    "vocab_size": 40,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 16,
    "relative_attention": True,
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "position_biased_input": False,
}


@st.composite
def hf_configs(draw):
    largest = draw(st.sampled_from([-1, 7, 20]))
    act = st.sampled_from(["gelu", "gelu_new", "relu", "tanh"])
    return LIKE_V3 | {
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": draw(st.sampled_from([1, 2, 4])),
        "hidden_act": draw(act),
        "layer_norm_eps": draw(st.sampled_from([1e-7, 1e-2])),
        "relative_attention": draw(st.sampled_from([True, True, False])),
        "position_buckets": draw(st.sampled_from([-1, 2, 4, 6, 9])),
        "max_relative_positions": largest,
        "norm_rel_ebd": draw(st.sampled_from(["none", "layer_norm"])),
        "share_att_key": draw(st.booleans()),
        "pos_att_type": draw(
            st.sampled_from([None, "", "c2p", ["p2c"], ["c2p", "p2c"], "p2c|c2p"])
        ),
        "position_biased_input": draw(st.booleans()),
        "type_vocab_size": draw(st.sampled_from([0, 2])),
        "embedding_size": draw(st.sampled_from([24, 10])),
        "conv_kernel_size": draw(st.sampled_from([0, 1, 3, 5])),
        "conv_groups": draw(st.sampled_from([1, 3])),
        "conv_act": draw(act),
        "pooler_hidden_act": draw(act),
        "num_labels": draw(st.integers(1, 3)),
    }


def torch_model(config, seed=0):
    torch = pytest.importorskip("torch")
    import transformers

    values = {k: v for k, v in config.items() if k != "model_type"}
    hf_config = transformers.AutoConfig.for_model(config["model_type"], **values)
    torch.manual_seed(seed)
    auto = transformers.AutoModelForSequenceClassification
    model = auto.from_config(hf_config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def from_torch(model, scan_layers=True):
    """Our model with a torch model's weights, through both public mappings."""
    config = DebertaConfig.from_hf(
        json.loads(model.config.to_json_string(use_diff=False))
    )
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    shapes = {name: value.shape for name, value in weights.items()}
    params = fill(config, Tensors(shapes, weights.__getitem__), jnp.float32)
    params = params if scan_layers else unstack_layers(params)
    return Deberta(config, scan_layers=scan_layers), params


def inputs(data, vocab=40, rows=3, length=11):
    """Tokens, types and a mask of padding on either side; the first row has none."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    counts = data.draw(st.lists(st.integers(1, length), min_size=rows, max_size=rows))
    mask = np.arange(length) < np.array([length, *counts[1:]])[:, None]
    if data.draw(st.booleans(), label="left padding"):
        mask = mask[:, ::-1].copy()
    tokens = rng.integers(vocab, size=mask.shape).astype(np.int32)
    return tokens, rng.integers(2, size=mask.shape).astype(np.int32), mask


def without_embedding(tokens, types, mask, vocab=40):
    """The same where real, and at padding tokens and types that no table has."""
    return np.where(mask, tokens, np.int32(vocab)), np.where(mask, types, np.int32(2))


def torch_outputs(model, tokens, types, mask):
    import torch

    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens).long(),
            token_type_ids=torch.tensor(types).long(),
            attention_mask=torch.tensor(mask).long(),
            output_hidden_states=True,
        )
    return out.hidden_states[-1].float().numpy(), out.logits.float().numpy()


@functools.partial(jax.jit, static_argnames="model")
def outputs(model, params, tokens, types=None, mask=None):
    variables, extra = {"params": params}, {"types": types, "mask": mask}
    hidden = model.apply(variables, tokens, **extra, method="hidden_states")
    return hidden, model.apply(variables, tokens, **extra)
