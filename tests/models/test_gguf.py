"""Reading GGUF files: weights of every kind, settings, and what is not implemented."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
from gguf import RopeScalingType
from test_weights import leaf, message

from ivon_jax.models import load
from ivon_jax.models.gguf_io import ARCHITECTURES, read_gguf
from ivon_jax.models.pretrained import is_gguf, load_config


def test_gguf_holds_the_dequantised_weights(tmp_path):
    from gguf import GGMLQuantizationType as Kind
    from gguf.quants import dequantize, quantize

    weights = tiny.tensors() | {
        "lm_head.weight": np.ones((50, 32), np.float32),
        "model.layers.0.self_attn.q_proj.bias": np.arange(32, dtype=np.float32),
    }
    weights |= {
        f"model.layers.{i}.self_attn.{p}_proj.bias": np.arange(n, dtype=np.float32)
        for i in (0, 1)
        for p, n in {"q": 32, "k": 16, "v": 16, "o": 32}.items()
    }
    kinds = dict.fromkeys(weights, Kind.F32)
    choice = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1]
    matrices = [name for name, tensor in weights.items() if tensor.ndim == 2]
    kinds |= {name: choice[i % len(choice)] for i, name in enumerate(matrices)}
    path = tiny.write_gguf(tmp_path / "m.gguf", weights, kinds)
    assert set(kinds.values()) == set(choice)
    params = load(str(path), tokenizer=False).params
    for name, tensor in weights.items():
        if name.endswith("bias"):
            _, _, i, _, projection, _ = name.split(".")
            got = params["layers"]["self_attn"][projection]["bias"][int(i)]
        else:
            got = leaf(params, name)
        expected = dequantize(quantize(tensor, kinds[name]), kinds[name])
        np.testing.assert_array_equal(np.asarray(got), expected, err_msg=name)


def test_gguf_and_folder_are_the_same_model(tmp_path):
    weights = tiny.tensors()
    one = load(str(tiny.write_gguf(tmp_path / "m.gguf", weights)), tokenizer=False)
    two = load(str(tiny.write_folder(tmp_path / "m", weights)), tokenizer=False)
    same = jax.tree.map(np.array_equal, one.params, two.params)
    assert all(jax.tree.leaves(same))
    settings = vars(two.model.config) | {"rms_norm_eps": np.float32(1e-5)}
    assert vars(one.model.config) == settings


@pytest.mark.parametrize("name", ["m.gguf", "m.GGUF", "m.Gguf"])
@pytest.mark.parametrize("parts", [0, 1])  # 0: of llama-gguf-split --merge
def test_a_file_joined_from_parts(parts, name, tmp_path):
    def add(writer):
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", 19)

    path = tiny.write_gguf(tmp_path / name, tiny.tensors(), add=add)
    assert is_gguf(str(path))
    assert load_config(str(path)).num_hidden_layers == 2
    assert load(str(path), tokenizer=False).params["norm"]["scale"].shape == (32,)


@pytest.mark.parametrize(
    ("add", "text"),
    [
        (lambda w: w.add_sliding_window(4), "llama.attention.sliding_window is 4"),
        (lambda w: w.add_uint16("split.count", 2), "split.count is 2, expected 0 or 1"),
        (lambda w: w.add_expert_count(8), "llama.expert_count is 8, expected 0"),
        (lambda w: w.add_rope_dimension_count(4), "rope.dimension_count is 4"),
        (lambda w: w.add_head_count_kv([4, 2]), "num_key_value_heads is 'array of 2'"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.full(4, 2, np.float32)),
         "rope_freqs.weight does not stretch"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.full(4, np.nan, np.float32)),
         "rope_freqs.weight does not stretch"),
        (lambda w: w.add_rope_scaling_type(RopeScalingType.LONGROPE), "'longrope'"),
        (lambda w: w.add_rope_scaling_type(RopeScalingType.LINEAR), "factor is None"),
        (lambda w: w.add_rope_scaling_factor(2.0), "rope.scaling.factor is 2.0"),
        (lambda w: w.add_tensor("blk.0.ffn_gate_inp.weight", np.ones(4, np.float32)),
         "unexpected: model.layers.0.ffn_gate_inp.weight"),
    ],
)  # fmt: skip
def test_gguf_files_that_are_not_implemented(tmp_path, add, text):
    assert text in message(tiny.gguf_with(tmp_path / "m.gguf", add))


THETA = 500000.0
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


def stretching(rope):
    """Adds to a GGUF file what llama.cpp's converter writes for HF's rope settings."""

    def add(writer):
        if rope["rope_type"] == "llama3":
            # From transformers' own frequencies, not from ours.
            import torch
            from transformers import LlamaConfig as HF
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            settings = rope | {"rope_theta": THETA}
            config = HF(head_dim=8, rope_parameters=settings)
            scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
            plain = THETA ** -(torch.arange(0, 8, 2) / 8)
            factors = (plain / scaled).numpy().astype(np.float32)
            writer.add_tensor("rope_freqs.weight", factors)
            return
        writer.add_rope_scaling_type(RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            length = rope["original_max_position_embeddings"]
            writer.add_rope_scaling_orig_ctx_len(length)

    return add


@pytest.mark.parametrize("name", ROPES)
def test_stretched_gguf_computes_what_transformers_does(name, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    weights = {k: v / 4 for k, v in tiny.tensors().items()}
    tiny.write_folder(
        tmp_path / "hf", weights, rope_scaling=ROPES[name], rope_theta=THETA
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokens = np.arange(100)[None] % 50
    with torch.no_grad():
        wanted = theirs(torch.tensor(tokens)).logits.numpy()
    add = stretching(ROPES[name])
    path = tiny.write_gguf(tmp_path / "m.gguf", weights, None, add, THETA)
    loaded = load(str(path), tokenizer=False)

    @jax.jit
    def logits(variables):
        hidden = loaded.model.apply(variables, jnp.asarray(tokens))
        return loaded.model.apply(variables, hidden, method="unembed")

    found = logits({"params": loaded.params})
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    plain = loaded.model.clone(
        config=dataclasses.replace(loaded.model.config, rope_scaling=None)
    )
    other = plain.apply({"params": loaded.params}, jnp.asarray(tokens))
    same = loaded.model.apply({"params": loaded.params}, jnp.asarray(tokens))
    assert np.abs(other - same).max() > 1e-3


def test_gguf_of_another_architecture(tmp_path):
    path = tmp_path / "m.gguf"
    tiny.gguf_with(path, lambda w: None)
    path.write_bytes(path.read_bytes().replace(b"llama", b"gemma", 1))
    assert "general.architecture is 'gemma', expected llama or qwen2" in message(path)


def settings():
    """Every field of a GGUF header that belongs to an architecture, without it."""
    from gguf.constants import Keys

    found, groups = set(), [Keys]
    while groups:
        for name, value in vars(groups.pop()).items():
            if isinstance(value, type) and not name.startswith("_"):
                groups.append(value)
            elif isinstance(value, str) and value.startswith("{arch}."):
                found.add(value.removeprefix("{arch}."))
    return found


HONOURED = {
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
}
YARN = {
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
}
# Says how the model was trained, nothing about what it computes.
IDLE = {"rope.scaling.finetuned"}


@pytest.mark.parametrize("rope", ["none", "yarn"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_setting_is_honoured_or_refused(architecture, rope, tmp_path):
    def read(changed=None):
        def add(writer):
            writer.add_head_count(32)
            writer.add_key_length(8)
            writer.add_rope_scaling_type(RopeScalingType(rope))
            if rope == "yarn":
                writer.add_rope_scaling_factor(2.0)
                writer.add_rope_scaling_orig_ctx_len(64)
            if changed:
                writer.add_uint32(f"{architecture}.{changed}", 16)

        return read_gguf(tiny.gguf_with(tmp_path / "m.gguf", add, architecture))[0]

    plain, changing, idle = read(), set(), set()
    assert (plain.qkv_bias, plain.qk_norm) == (
        architecture == "qwen2",
        architecture == "qwen3",
    )
    for name in settings():
        try:
            (idle if read(name) == plain else changing).add(name)
        except ValueError as error:
            named = {"rope.scaling.type": "rope_type"}
            assert f"{named.get(name, f'{architecture}.{name}')} is 16," in str(error)
    assert changing == HONOURED | (YARN if rope == "yarn" else set())
    assert idle == IDLE
    assert "attention.sliding_window" in settings()
