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


def gguf_with(path, add, architecture="llama"):
    """A GGUF file with a few fields or tensors more."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_context_length(128)
    writer.add_tensor("token_embd.weight", np.ones((50, 32), np.float32))
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


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
    assert text in message(gguf_with(tmp_path / "m.gguf", add))


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
    gguf_with(path, lambda w: None)
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

        return read_gguf(gguf_with(tmp_path / "m.gguf", add, architecture))[0]

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


def half(low, high):
    """A 16-bit float, by the definition of its bits."""
    sign, exponent = (-1) ** (high >> 7), high >> 2 & 31
    fraction = (high & 3) << 8 | low
    if exponent == 31:
        return sign * (float("nan") if fraction else float("inf"))
    if exponent == 0:
        return sign * fraction * 2.0**-24
    return sign * (1024 + fraction) * 2.0 ** (exponent - 25)


def brain(low, high):
    """A bfloat16: the upper half of a 32-bit float."""
    sign, exponent = (-1) ** (high >> 7), (high & 127) << 1 | low >> 7
    fraction = low & 127
    if exponent == 255:
        return sign * (float("nan") if fraction else float("inf"))
    if exponent == 0:
        return sign * fraction * 2.0**-133
    return sign * (128 + fraction) * 2.0 ** (exponent - 134)


def signed(byte):
    return byte - 256 if byte > 127 else byte


def q8_0(block):
    """A scale, and 32 signed bytes."""
    return [half(*block[:2]) * signed(q) for q in block[2:]]


def nibbles(data):
    """The lower halves of all bytes, then the upper ones."""
    return [q & 15 for q in data] + [q >> 4 for q in data]


def q4_0(block):
    """A scale, and 32 numbers from -8 to 7."""
    return [half(*block[:2]) * (q - 8) for q in nibbles(block[2:])]


def q4_1(block):
    """A scale, an offset, and 32 numbers from 0 to 15."""
    scale, offset = half(*block[:2]), half(*block[2:4])
    return [scale * q + offset for q in nibbles(block[4:])]


def sub_scales(packed):
    """Eight pairs of 6 bits, (scale, offset), out of 12 bytes.

    The first four pairs fill the lower bits of bytes 0 to 3 and 4 to 7. Of the others
    the lower bits share bytes 8 to 11, and the two upper ones top those of the first.
    """
    first, second, last = packed[:4], packed[4:8], packed[8:]
    return [(a & 63, b & 63) for a, b in zip(first, second, strict=True)] + [
        (c & 15 | a >> 6 << 4, c >> 4 | b >> 6 << 4)
        for a, b, c in zip(first, second, last, strict=True)
    ]


def of_eight(block, numbers):
    """256 numbers in eight parts of 32, each with its own scale and offset."""
    scale, offset = half(*block[:2]), half(*block[2:4])
    return [
        scale * s * q - offset * m
        for (s, m), part in zip(sub_scales(block[4:16]), numbers, strict=True)
        for q in part
    ]


def q4_k(block):
    """Of each 32 bytes the lower halves are one part, the upper halves the next."""
    whole = [nibbles(block[i : i + 32]) for i in range(16, 144, 32)]
    return of_eight(block, [p for both in whole for p in (both[:32], both[32:])])


def q5_k(block):
    """As Q4_K, with the fifth bit of part i as bit i of the 32 bytes before."""
    fifth, parts = block[16:48], []
    for i in range(8):
        data = block[48 + i // 2 * 32 :][:32]
        lower = [q >> 4 if i % 2 else q & 15 for q in data]
        parts.append([q | (b >> i & 1) << 4 for q, b in zip(lower, fifth, strict=True)])
    return of_eight(block, parts)


def q6_k(block):
    """Two halves of four parts: 4 bits in the first 128 bytes, 2 in the next 64.

    Each 16 numbers, from -32 to 31, have a signed byte as scale; a scale of all ends
    the block.
    """
    lower, upper, scales, scale = (
        block[:128],
        block[128:192],
        block[192:208],
        block[208:],
    )
    out = []
    for i in range(256):
        side, part, j = i // 128, i // 32 % 4, i % 32
        four = lower[64 * side + 32 * (part % 2) + j] >> 4 * (part // 2) & 15
        two = upper[32 * side + j] >> 2 * part & 3
        number = (two << 4 | four) - 32
        out.append(half(*scale) * signed(scales[i // 16]) * number)
    return out


# By kind: bytes of a block, where its 16-bit scales are, and what it stands for.
KINDS = {
    "F16": (2, (), lambda block: [half(*block)]),
    "BF16": (2, (), lambda block: [brain(*block)]),
    "Q8_0": (34, (0,), q8_0),
    "Q4_0": (18, (0,), q4_0),
    "Q4_1": (20, (0, 2), q4_1),
    "Q4_K": (144, (0, 2), q4_k),
    "Q5_K": (176, (0, 2), q5_k),
    "Q6_K": (210, (208,), q6_k),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tensor_is_what_its_bits_say(kind, tmp_path):
    from gguf import GGMLQuantizationType

    size, scales, decode = KINDS[kind]
    if size == 2:  # every number there is
        raw = np.arange(2**16, dtype="<u2").view(np.uint8).reshape(256, 512)
    else:
        raw = np.random.default_rng(0).integers(256, size=(6, 4, size), dtype=np.uint8)
        for at in scales:
            raw[..., at + 1] &= 0xBF  # a finite one
        raw = raw.reshape(6, -1)

    def add(writer):
        writer.add_tensor("output.weight", raw, raw_dtype=GGMLQuantizationType[kind])

    _, tensors = read_gguf(gguf_with(tmp_path / "m.gguf", add))
    blocks = raw.reshape(-1, size).tolist()
    wanted = np.array([x for block in blocks for x in decode(block)], np.float32)
    found = tensors.read("lm_head.weight")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted.reshape(len(raw), -1))
