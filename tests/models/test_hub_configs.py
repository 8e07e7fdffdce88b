"""Whole files as the hub has them are read as transformers reads them."""

import copy
import dataclasses
import itertools
import json

import pytest

from ivon_jax.models import families
from ivon_jax.models.known import CATALOG
from ivon_jax.models.rope_config import YarnRope
from ivon_jax.models.safetensors_io import read_config

LLAMA_31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
COMMON = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.0.dev0",
    "use_cache": True,
}
LLAMA_3 = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
MISTRAL = COMMON | {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}
QWEN_25 = COMMON | {
    "architectures": ["Qwen2ForCausalLM"],
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "use_mrope": False,
    "use_sliding_window": False,
}
QWEN_3 = COMMON | {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
DEBERTA_3 = {
    "model_type": "deberta-v2",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "layer_norm_eps": 1e-7,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "vocab_size": 128100,
}


def sizes(hidden, inner, layers, heads, kv_heads=None):
    return {
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    } | ({} if kv_heads is None else {"num_key_value_heads": kv_heads})


FILES = {
    "meta-llama/Llama-3.1-8B": LLAMA_3
    | sizes(4096, 14336, 32, 32, 8)
    | {"rope_scaling": LLAMA_31, "tie_word_embeddings": False},
    "meta-llama/Llama-3.2-1B": LLAMA_3
    | sizes(2048, 8192, 16, 32, 8)
    | {"head_dim": 64, "rope_scaling": LLAMA_31 | {"factor": 32.0}}
    | {"tie_word_embeddings": True},
    "mistralai/Mistral-7B-v0.1": MISTRAL
    | {"rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 32000},
    "mistralai/Mistral-7B-v0.3": MISTRAL
    | {"rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768},
    # Windows in three of four layers: transformers takes it for a ministral.
    "mistral with kinds of layers": MISTRAL
    | {"rope_theta": 100000000.0, "sliding_window": 32768, "vocab_size": 131072}
    | {"layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 8},
    "Qwen/Qwen2.5-0.5B": QWEN_25
    | sizes(896, 4864, 24, 14, 2)
    | {"max_position_embeddings": 32768, "max_window_layers": 24}
    | {"sliding_window": 32768, "tie_word_embeddings": True, "vocab_size": 151936},
    "Qwen/Qwen2.5-3B": QWEN_25
    | sizes(2048, 11008, 36, 16, 2)
    | {"max_position_embeddings": 32768, "max_window_layers": 36}
    | {"sliding_window": 32768, "tie_word_embeddings": True, "vocab_size": 151936},
    "Qwen/Qwen2.5-7B": QWEN_25
    | sizes(3584, 18944, 28, 28, 4)
    | {"max_position_embeddings": 131072, "max_window_layers": 28}
    | {"sliding_window": 131072, "tie_word_embeddings": False, "vocab_size": 152064},
    # As its card says for long texts.
    "qwen2.5 with yarn": QWEN_25
    | sizes(3584, 18944, 28, 28, 4)
    | {"max_position_embeddings": 32768, "max_window_layers": 28}
    | {"sliding_window": 131072, "tie_word_embeddings": False, "vocab_size": 152064}
    | {"rope_scaling": {"type": "yarn", "factor": 4.0}
       | {"original_max_position_embeddings": 32768}},
    "Qwen/Qwen3-0.6B": QWEN_3
    | sizes(1024, 3072, 28, 16)
    | {"max_window_layers": 28, "rope_scaling": None, "rope_theta": 1000000}
    | {"sliding_window": None, "tie_word_embeddings": True},
    # As transformers 5 writes it.
    "Qwen/Qwen3-8B": {k: v for k, v in QWEN_3.items() if k != "torch_dtype"}
    | sizes(4096, 12288, 36, 32)
    | {"dtype": "bfloat16", "layer_types": ["full_attention"] * 36}
    | {"max_window_layers": 36, "pad_token_id": None, "sliding_window": None}
    | {"rope_parameters": {"rope_theta": 1000000, "rope_type": "default"}}
    | {"tie_word_embeddings": False, "transformers_version": "5.0.0"},
    "qwen3 without a window to use": QWEN_3
    | sizes(1024, 3072, 28, 16)
    | {"max_window_layers": 2, "use_sliding_window": True, "sliding_window": None},
    "llama of a longer context": LLAMA_3
    | sizes(2048, 5632, 22, 32, 4)
    | {"original_max_position_embeddings": 2048, "tie_word_embeddings": False}
    | {"rope_scaling": {"type": "yarn", "factor": 16.0, "finetuned": True}},
    "microsoft/deberta-v3-xsmall": DEBERTA_3 | sizes(384, 1536, 12, 6),
    "microsoft/deberta-v3-base": DEBERTA_3 | sizes(768, 3072, 12, 12),
    "microsoft/deberta-v3-large": DEBERTA_3
    | sizes(1024, 4096, 24, 16)
    | {"summary_type": "first", "summary_use_proj": False},
    "deberta-v2 with a convolution": DEBERTA_3
    | sizes(1536, 6144, 24, 24)
    | {"attention_head_size": 64, "conv_act": "gelu", "conv_kernel_size": 3},
    "a finetuned deberta": DEBERTA_3
    | sizes(768, 3072, 12, 12)
    | {"architectures": ["DebertaV2ForSequenceClassification"], "legacy": True}
    | {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    | {"pooler_dropout": 0, "pooler_hidden_act": "gelu", "pooler_hidden_size": 768}
    | {"problem_type": "single_label_classification", "torch_dtype": "float32"},
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_hub(name, tmp_path):
    import transformers

    (tmp_path / "config.json").write_text(json.dumps(FILES[name]))
    ours = read_config(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    whole = json.loads(theirs.to_json_string(use_diff=False))
    assert families.read_config(whole) == ours
    if name in CATALOG:  # which has what counts for a plan
        catalogued = families.read_config(CATALOG[name])
        assert dataclasses.replace(ours, **_no_scaling(ours)) == catalogued


def _no_scaling(config):
    return {"rope_scaling": None} if hasattr(config, "rope_scaling") else {}


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
PLAIN = {"rope_type": "default", "rope_theta": 1e6}
ROPES = [None, {}, PLAIN, {"rope_theta": 5e5}, YARN, YARN | {"rope_theta": 3e5}]
ROPES += [LLAMA_31, {"type": "linear", "rope_type": "dynamic", "factor": 2.0}]
NAMES = {"0": "a", "1": "b", "2": "c"}
# Two fields for one thing, with what either may say.
SPELLINGS = [
    *[("rope_scaling", "rope_parameters", kind) for kind in ("llama", "qwen2")],
    ("rope_theta", "rope_parameters", "qwen3"),
    ("rope_theta", "rope_scaling", "mistral"),
    ("original_max_position_embeddings", "rope_parameters", "llama"),
    ("torch_dtype", "dtype", "qwen3"),
    ("use_sliding_window", "layer_types", "qwen2"),
    ("max_window_layers", "layer_types", "qwen3"),
    ("sliding_window", "layer_types", "ministral"),
    ("num_labels", "id2label", "deberta-v2"),
]
SAYINGS = {
    "rope_scaling": ROPES,
    "rope_parameters": ROPES,
    "rope_theta": [2e5],
    "original_max_position_embeddings": [4096],
    "torch_dtype": [None, "float16"],
    "dtype": [None, "bfloat16"],
    "use_sliding_window": [False, True],
    "max_window_layers": [0, 2, 9],
    "sliding_window": [None, 8],
    "layer_types": [
        None,
        ["full_attention"] * 4,
        ["sliding_attention"] * 2 + ["full_attention"] * 2,
    ],
    "num_labels": [2, 4],
    "id2label": [None, NAMES],
}
SMALL = {
    "vocab_size": 64,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
} | sizes(32, 64, 4, 4)


@pytest.mark.parametrize(("old", "new", "kind"), SPELLINGS)
def test_an_old_spelling_beside_a_new_one(old, new, kind):
    import transformers

    encoder = kind == "deberta-v2"
    plain = (DEBERTA_3 | sizes(32, 64, 2, 4)) if encoder else SMALL
    plain = plain | ({"use_sliding_window": True} if old == "max_window_layers" else {})
    absent, told, count = object(), set(), 0
    for said in itertools.product(*([absent, *SAYINGS[name]] for name in (old, new))):
        pair = {k: v for k, v in zip((old, new), said, strict=True) if v is not absent}
        config = plain | {"model_type": kind} | pair
        theirs = transformers.CONFIG_MAPPING[kind].from_dict(copy.deepcopy(config))
        whole = json.loads(theirs.to_json_string(use_diff=False))
        ours = families.read_config(config)
        assert ours == families.read_config(whole), pair
        told.add(ours)
        count += 1
    assert count == (1 + len(SAYINGS[old])) * (1 + len(SAYINGS[new]))
    assert len(told) > 1 or "dtype" in new


def test_yarn_added_to_a_file_of_transformers_5():
    plain = SMALL | {"model_type": "qwen3", "rope_parameters": PLAIN}
    config = families.read_config(plain | {"rope_scaling": YARN})
    assert config.rope_scaling == YarnRope(4.0, 32768.0)
    assert families.read_config(plain).rope_scaling is None


@pytest.mark.parametrize("kind", ["llama", "deberta-v2"])
def test_layers_of_different_shapes_are_refused(kind):
    config = SMALL | {"model_type": kind}
    assert families.read_config(config | {"per_layer_config": None})
    with pytest.raises(ValueError, match="per_layer_config is .*, expected none"):
        families.read_config(config | {"per_layer_config": {"1": {"mlp_bias": True}}})


def test_only_some_layers_of_a_mistral_have_a_window():
    config = families.read_config(FILES["mistral with kinds of layers"])
    assert config.windowed_layers == (False, True, True, True) * 8
    assert config.sliding_window == 32768
