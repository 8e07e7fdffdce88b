"""Reading pretrained weights from HF folders, and what is wrong with them."""

import fnmatch
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny

from ivon_jax.errors import one_line
from ivon_jax.models import LlamaConfig, load

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def leaf(params, name):
    """The array that a tensor named by HF should have become, as torch stores it."""
    *modules, _ = name.removeprefix("model.").split(".")
    layer = int(modules.pop(1)) if modules[0] == "layers" else None
    node = params
    for module in modules:
        node = node[module]
    (value,) = (node[k] for k in node if k != "bias")
    value = value if layer is None else value[layer]
    return np.asarray(value.T if "kernel" in node else value)


def assert_loaded(path, expected):
    params = load(str(path), tokenizer=False).params
    for name, tensor in expected.items():
        np.testing.assert_array_equal(leaf(params, name), tensor, err_msg=name)
    count = sum(tensor.size for tensor in expected.values())
    assert sum(value.size for value in jax.tree.leaves(params)) == count


def message(path):
    """The error that loading gives, which must be one line and name the file."""
    with pytest.raises(ValueError) as caught:
        load(str(path), tokenizer=False)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text


def test_folder_holds_the_same_weights(tmp_path):
    weights = tiny.tensors()
    assert_loaded(tiny.write_folder(tmp_path / "m", weights), weights)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_sixteen_bit_tensors_convert_exactly(tmp_path, kind):
    weights = {k: v.astype(jnp.dtype(kind)) for k, v in tiny.tensors().items()}
    expected = {k: v.astype(np.float32) for k, v in weights.items()}
    folder = tiny.write_folder(tmp_path / "m", weights)
    assert_loaded(folder, expected)
    params = load(str(folder), dtype=jnp.bfloat16, tokenizer=False).params
    assert {value.dtype for value in jax.tree.leaves(params)} == {jnp.bfloat16.dtype}


@pytest.mark.parametrize("tied", [True, False])
def test_what_transformers_saves_in_shards(tmp_path, tied):
    torch = pytest.importorskip("torch")
    import transformers

    settings = {k: v for k, v in tiny.CONFIG.items() if k != "model_type"}
    config = transformers.LlamaConfig(**settings | {"tie_word_embeddings": tied})
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    if tied:
        del weights["lm_head.weight"]
    assert_loaded(tmp_path, weights)


def test_harmless_extras_are_left_out(tmp_path):
    weights = tiny.tensors()
    extras = {
        "lm_head.weight": weights["model.embed_tokens.weight"],
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
    }
    assert_loaded(tiny.write_folder(tmp_path / "m", weights | extras), weights)


def test_a_tied_model_with_an_output_of_its_own(tmp_path):
    weights = tiny.tensors()
    other = weights["model.embed_tokens.weight"].copy()
    other[-1, -1] += 1
    for extra in (other, other[:-1]):
        folder = tiny.write_folder(tmp_path / "m", weights | {"lm_head.weight": extra})
        assert "lm_head.weight is not model.embed_tokens.weight" in message(folder)


def test_wrong_tensors_are_listed(tmp_path):
    weights = tiny.tensors()
    weights["model.norm.weight"] = np.ones(31, np.float32)
    weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    del weights[Q_PROJ]
    text = message(tiny.write_folder(tmp_path / "m", weights))
    assert f"missing: {Q_PROJ}" in text
    assert "unexpected: model.layers.0.self_attn.q_norm.weight" in text
    assert "misshaped: model.norm.weight is (31,), expected (32,)" in text


def test_long_lists_are_cut(tmp_path):
    text = message(
        tiny.write_folder(
            tmp_path / "m", {"a": np.ones(1, np.float32)} | tiny.tensors(layers=1)
        )
    )
    assert "and 5 more" in text  # nine tensors of a layer, four of them shown


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_tensors_are_named(tmp_path, value):
    weights = tiny.tensors()
    weights[Q_PROJ][3, 4] = value
    text = message(tiny.write_folder(tmp_path / "m", weights))
    assert f"tensor {Q_PROJ} has NaN or infinite values" in text


def test_overflow_of_the_wanted_type_is_named(tmp_path):
    weights = tiny.tensors()
    weights[Q_PROJ][3, 4] = 1e6
    folder = tiny.write_folder(tmp_path / "m", weights)
    with pytest.raises(ValueError, match=r"infinite values \(as float16\)"):
        load(str(folder), dtype=jnp.float16, tokenizer=False)


def test_other_dtypes_are_an_error(tmp_path):
    weights = tiny.tensors() | {"model.norm.weight": np.ones(32, np.int32)}
    text = message(tiny.write_folder(tmp_path / "m", weights))
    assert "model.safetensors: tensor 'model.norm.weight' is I32" in text


def sharded(tmp_path):
    from safetensors.numpy import save_file

    weights = tiny.tensors()
    folder = tiny.write_folder(tmp_path / "m", weights)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    where = {}
    for i, part in enumerate((names[:9], names[9:])):
        save_file({name: weights[name] for name in part}, folder / f"{i}.safetensors")
        where |= dict.fromkeys(part, f"{i}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return folder, index, where


def test_shards(tmp_path):
    assert_loaded(sharded(tmp_path)[0], tiny.tensors())


def test_a_missing_shard_is_named(tmp_path):
    folder, _, _ = sharded(tmp_path)
    (folder / "1.safetensors").unlink()
    assert "its file '1.safetensors' is missing" in message(folder)


def test_a_swapped_shard_is_named(tmp_path):
    folder, _, _ = sharded(tmp_path)
    content = (folder / "0.safetensors").read_bytes()
    (folder / "1.safetensors").write_bytes(content)
    assert "1.safetensors: tensor" in message(folder)


def test_shards_elsewhere_are_refused(tmp_path):
    folder, index, where = sharded(tmp_path)
    index.write_text(json.dumps({"weight_map": where | {"x": "../0.safetensors"}}))
    assert "is not a file name" in message(folder)


def test_missing_files_are_named(tmp_path):
    assert "config.json: no such file" in message(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(tiny.CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    assert "model.safetensors and" in message(tmp_path)
    assert "pickles (pytorch_model.bin) are never read" in message(tmp_path)
    assert "No such file" in message(tmp_path / "absent.gguf")


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "none of tokenizer.json, tokenizer.model, .* found"),
        # Of this alone transformers makes a tokenizer without a word.
        (
            {"tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}'},
            "none of tokenizer.json, tokenizer.model, .* found",
        ),
        (
            {
                "tokenizer_config.json": '{"tokenizer_class": "LlamaTokenizer"}',
                "vocab.json": "{}",
            },
            "its vocabulary is empty",
        ),
        ({"tokenizer.json": "{}"}, "KeyError: "),
    ],
)
def test_a_folder_without_a_tokenizer_says_why(files, reason, tmp_path):
    tiny.write_folder(tmp_path, tiny.tensors())
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(
        ValueError, match=f"^{tmp_path}: its tokenizer.*: {reason}"
    ) as e:
        load(str(tmp_path))
    text = str(e.value)
    assert "\n" not in text and not text.rstrip().endswith((":", "from one of"))


def test_a_librarys_text_is_told_whole(tmp_path, monkeypatch):
    import transformers

    def fail(*args, **kwargs):
        raise ValueError(
            "it needs one of: \n(1) a file\n\n(2) a class, which is missing"
        )

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    tiny.write_folder(tmp_path, tiny.tensors())
    (tmp_path / "tokenizer.json").write_text("{}")
    whole = r"one of: \(1\) a file \(2\) a class, which is missing$"
    with pytest.raises(ValueError, match=whole):
        load(str(tmp_path))
    assert one_line(KeyError("a")) == "KeyError: 'a'"
    assert one_line(RuntimeError()) == "RuntimeError"
    assert one_line(ValueError("x " * 1000)).endswith(" ...")


def test_another_file_than_gguf_is_named_as_such(tmp_path):
    tiny.write_folder(tmp_path, tiny.tensors())
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="is a file, expected one that ends in .gguf"):
        load(str(path))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="expected smollm2-135m-instruct, a"):
        load("no-such-model")


@pytest.mark.parametrize("revision", [None, "main", "refs/pr/1"])
def test_a_hub_id_loads_what_the_hub_sends(revision, tmp_path, monkeypatch):
    tensors = tiny.tensors(2)
    tiny.write_folder(tmp_path, tensors)
    asked = []

    def snapshot_download(name, revision, allow_patterns):
        asked.append((name, revision))
        wanted = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.model"]
        wanted += ["generation_config.json", "LICENSE.txt", "USE_POLICY.md"]
        for file in (*wanted, "pytorch_model.bin", "model.gguf", "consolidated.00.pth"):
            sent = any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns)
            assert sent == (file in wanted)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    name = "some.one/a-model_1"
    assert_loaded(name if revision is None else f"{name}@{revision}", tensors)
    assert asked == [(name, revision)]


def test_the_hub_out_of_reach_is_one_line():
    with pytest.raises(ValueError, match=r"^model nobody/nothing: .*$"):
        load("nobody/nothing")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"model_type": "gemma"}, "model_type is 'gemma', expected llama or"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', expected silu"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"is_causal": False}, "is_causal is False, expected true"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1, expected 0.0"),
        ({"model_type": "mistral", "layer_types": ["x"]}, "layer_types"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"layer_types": 3}, "layer_types"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
        ({"rope_scaling": {"type": "linear", "beta": 2.0}}, "rope_scaling is ['beta']"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is None"),
        (
            {"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "head_dim is 2, expected more than 2",
        ),
        (
            {
                "rope_theta": 1.0,
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 2.0,
                    "original_max_position_embeddings": 8,
                },
            },
            "rope_theta is 1.0",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 2.0,
                    "low_freq_factor": 4.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8,
                }
            },
            "rope_scaling.high_freq_factor is 4.0, expected more than",
        ),
        (
            {"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["x"]},
            "layer_types",
        ),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor is None"),
        ({"rope_parameters": {"full_attention": {}}}, "rope_scaling is"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"hidden_size": "32"}, "hidden_size is '32', expected an integer"),
        ({"vocab_size": 10**30}, "vocab_size"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, expected a divisor"),
        ({"head_dim": 7}, "head_dim is 7, expected an even number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1, expected true or"),
        ({"intermediate_size": None}, "intermediate_size is None, expected an integer"),
    ],
)
def test_configs_that_are_not_implemented(changes, text):
    with pytest.raises(ValueError) as caught:
        LlamaConfig.from_hf(tiny.CONFIG | changes)
    assert text in str(caught.value)


def test_rope_settings_old_and_new_agree():
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1,
        "high_freq_factor": 4,
        "original_max_position_embeddings": 64,
    }
    old = tiny.CONFIG | {"rope_theta": 500000, "rope_scaling": scaling}
    new = tiny.CONFIG | {"rope_parameters": scaling | {"rope_theta": 500000.0}}
    del new["rope_theta"]
    assert LlamaConfig.from_hf(old) == LlamaConfig.from_hf(new)
    assert LlamaConfig.from_hf(old).rope_theta == 500000.0


def test_fingerprints_tell_weights_apart(tmp_path):
    weights = tiny.tensors()
    other = weights | {"model.norm.weight": np.full(32, 2, np.float32)}
    folders = [
        tiny.write_folder(tmp_path / name, content)
        for name, content in {"a": weights, "b": weights, "c": other}.items()
    ]
    a, b, c = (load(str(f), tokenizer=False).fingerprint for f in folders)
    assert a == b != c
