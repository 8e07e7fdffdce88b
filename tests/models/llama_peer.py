"""Random Llamas: ours, and those of transformers with the same weights."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from ivon_jax.models import KVCache, Llama, LlamaConfig
from ivon_jax.models.stack import unstack_layers
from ivon_jax.models.weights import Tensors, fill

SMALL = LlamaConfig(
    vocab_size=1009,
    hidden_size=24,
    intermediate_size=40,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)


def relative(a, b):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return np.abs(a - b).max() / np.abs(b).max()


def random_model(config=SMALL, seed=0, **settings):
    """A model and parameters in which nothing is zero or one by initialisation."""
    model = Llama(config, **settings)
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(Llama(config).init, jax.random.key(0), tokens)["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes
    )
    return model, params


def random_tokens(batch, length, vocab=1009, seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(vocab, size=(batch, length)), jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "return_cache"))
def hidden_states(model, params, tokens, mask=None, past=None, return_cache=False):
    return model.apply(
        {"params": params},
        tokens,
        mask=mask,
        past=past,
        return_cache=return_cache,
    )


@functools.partial(jax.jit, static_argnames="model")
def unembed(model, params, hidden, token_ids=None):
    return model.apply({"params": params}, hidden, token_ids, method="unembed")


def logits(model, params, tokens, token_ids=None, mask=None):
    hidden = hidden_states(model, params, tokens, mask)
    return unembed(model, params, hidden, token_ids)


ROPES = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 4.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
}


@st.composite
def ropes(draw):
    kind = draw(st.sampled_from(sorted(ROPES)))
    rope = {"rope_type": kind, "rope_theta": draw(st.sampled_from([1e2, 1e4]))}
    if kind == "yarn":
        optional = {
            "attention_factor": st.sampled_from([0.5, 1.5]),
            "beta_fast": st.just(8.0),
            "beta_slow": st.just(0.5),
            "truncate": st.booleans(),
        }
        rope |= draw(st.fixed_dictionaries({}, optional=optional))
        if draw(st.booleans()):
            rope |= {"mscale": 0.7, "mscale_all_dim": 1.3}
    rope |= ROPES[kind]
    if draw(st.booleans()):  # then it is max_position_embeddings
        rope.pop("original_max_position_embeddings", None)
    return rope


@st.composite
def hf_configs(draw):
    kv_heads = draw(st.integers(1, 2))
    rope = draw(ropes())
    kinds = ["llama", "mistral", "ministral", "qwen2", "qwen3"]
    kind = draw(st.sampled_from(kinds))
    config = {
        "model_type": kind,
        "vocab_size": draw(st.integers(11, 40)),
        "hidden_size": draw(st.sampled_from([24, 48])),
        "intermediate_size": draw(st.integers(5, 40)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": kv_heads * draw(st.integers(1, 4)),
        "num_key_value_heads": kv_heads,
        "head_dim": draw(st.sampled_from([4, 6, 8])),
        "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-2])),
        "rope_parameters": rope,
        "tie_word_embeddings": draw(st.booleans()),
        # Shorter than the sequences, where only the dynamic kind cares.
        "max_position_embeddings": 6 if rope["rope_type"] == "dynamic" else 24,
    }
    if kind in ("llama", "qwen3"):
        config["attention_bias"] = draw(st.booleans())
    if kind == "llama":
        config["mlp_bias"] = draw(st.booleans())
    else:
        config["sliding_window"] = 3
    if kind in ("mistral", "ministral"):
        config["sliding_window"] = draw(st.sampled_from([1, 3]))
        if kind == "ministral":  # transformers cannot run one without a window
            kinds = st.sampled_from(["full_attention", "sliding_attention"])
            size = config["num_hidden_layers"]
            config["layer_types"] = draw(st.lists(kinds, min_size=size, max_size=size))
        elif draw(st.booleans()):
            config["sliding_window"] = None
    elif kind != "llama":
        config["use_sliding_window"] = draw(st.booleans())
        config["max_window_layers"] = draw(st.integers(0, 3))
    return config


def torch_model(config, seed=0):
    torch = pytest.importorskip("torch")
    import transformers

    settings = {k: v for k, v in config.items() if k != "model_type"}
    hf_config = transformers.AutoConfig.for_model(config["model_type"], **settings)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(hf_config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def from_torch(model, scan_layers=True):
    """Our model with a torch model's weights, through both public mappings."""
    hf_config = json.loads(model.config.to_json_string(use_diff=False))
    config = LlamaConfig.from_hf(hf_config)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    shapes = {name: value.shape for name, value in weights.items()}
    params = fill(config, Tensors(shapes, weights.__getitem__), jnp.float32)
    params = params if scan_layers else unstack_layers(params)
    return Llama(config, scan_layers=scan_layers), params


def torch_logits(model, tokens, mask):
    import torch

    mask = torch.tensor(np.asarray(mask))
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(np.asarray(tokens)).long(),
            attention_mask=mask.long(),
            position_ids=positions,
        )
    return out.logits.float().numpy()


def no_past():
    empty = jnp.zeros((3, 1, 0, 2, 8))
    return KVCache(empty, empty)
