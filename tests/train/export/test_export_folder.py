"""What a base's folder holds beside its weights goes along into the merged model."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_models

from ivon_jax.lora import LoraConfig
from ivon_jax.models import families, load
from ivon_jax.models.peft_io import RUN
from ivon_jax.models.safetensors_io import read_config
from ivon_jax.models.save import save
from ivon_jax.posterior import Posterior
from ivon_jax.train import export
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.runs import run

# As of an instruction-tuned model that may end in several ways.
ENDS = [2, 7, 9]
FIELDS = {
    "architectures": ["LlamaForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling.Own"},
    "bos_token_id": 1,
    "eos_token_id": ENDS,
    "initializer_range": 0.041666666666666664,
    "pad_token_id": None,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.44.0",
}
GENERATION = {"do_sample": True, "temperature": 0.6, "eos_token_id": ENDS}
KEPT = {
    "generation_config.json": json.dumps(GENERATION),
    "chat_template.jinja": "{{ messages }}",
    "special_tokens_map.json": json.dumps({"eos_token": "</s>"}),
    "added_tokens.json": "{}",
    "tokenizer.model": "pieces",
    "tekken.json": "{}",
    "LICENSE.txt": "terms",
    "NOTICE": "made by",
    "USE_POLICY.md": "what for",
}
# Weights in other files, what would change the weights when loaded, and what tells of
# another model.
LEFT = {
    "pytorch_model.bin": "",
    "model.safetensors.index.json": "{}",
    "pytorch_model.bin.index.json": "{}",
    "adapter_config.json": "{}",
    "adapter_model.safetensors": "",
    "README.md": "the base",
    "optimizer.pt": "",
    ".gitattributes": "",
    "modeling.py": "",
}


@pytest.fixture
def exported(tmp_path):
    """A base's folder, and the model merged from it."""
    model, data = tiny.write_task(tmp_path, layers=1)
    base = tmp_path / "model"
    assert str(base) == str(model)
    values = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(values | FIELDS))
    for name, text in (KEPT | LEFT).items():
        (base / name).write_text(text)
    (base / "original").mkdir()
    (base / "original" / "params.json").write_text("{}")
    lora = LoraConfig(rank=2, targets=("layers/self_attn/q_proj",))
    config = TrainConfig(str(model), data=data, lora=lora)
    fingerprint = load(str(model), tokenizer=False).fingerprint
    directory = tmp_path / "run"
    directory.mkdir()
    run.write_config(directory, config, model=str(model), model_fingerprint=fingerprint)
    kernel = {"a": jnp.ones((1, 32, 2)), "b": jnp.ones((1, 2, 32))}
    mean = {"layers": {"self_attn": {"q_proj": kernel}}}
    Posterior.point(mean).save(directory / run.POSTERIOR)
    export.export_hf(directory, tmp_path / "out")
    return base, tmp_path / "out"


def test_files_beside_the_weights_go_along(exported):
    base, out = exported
    written = {path.name for path in out.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"}
    new = {"config.json", "model.safetensors", RUN, "README.md"}
    assert written == set(KEPT) | tokenizer | new
    for name in set(KEPT) | tokenizer:
        assert (out / name).read_bytes() == (base / name).read_bytes(), name


def test_fields_of_the_base_are_kept(exported):
    base, out = exported
    ours, theirs = (
        json.loads((folder / "config.json").read_text()) for folder in (out, base)
    )
    del theirs["auto_map"]  # the code is transformers' own
    assert ours == theirs | {"dtype": "float32", "torch_dtype": "float32"}
    assert read_config(out) == read_config(base)


def test_transformers_ends_where_the_base_does(exported):
    pytest.importorskip("torch")
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(exported[1])
    assert model.generation_config.eos_token_id == ENDS
    assert model.config.eos_token_id == ENDS
    assert model.generation_config.temperature == 0.6


ENCODER = {
    "model_type": "deberta-v2",
    "architectures": ["DebertaV2ForMaskedLM"],
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "relative_attention": True,
    "position_buckets": 8,
    "pos_att_type": "p2c|c2p",
    "summary_type": "first",
    "num_labels": 5,
    "problem_type": "regression",
    "finetuning_task": "sts-b",
}


def test_an_encoder_has_the_labels_of_its_new_head(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps(ENCODER))
    (base / "tokenizer.json").write_text("{}")
    config = families.with_outputs(read_config(base), 3)
    model = families.family_of(config).module(config)
    params = model.init(jax.random.key(0), jnp.ones((1, 4), jnp.int32))["params"]
    stacked = jax.tree.map(np.asarray, params)
    save(tmp_path / "out", config, stacked, None, base)
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert read_config(tmp_path / "out") == config
    assert values["architectures"] == ["DebertaV2ForSequenceClassification"]
    assert list(values["id2label"]) == ["0", "1", "2"]
    assert values["summary_type"] == "first"
    assert not values.keys() & {"num_labels", "problem_type", "finetuning_task"}
    again = load(str(tmp_path / "out"), tokenizer=False)
    assert again.model.config == config


def test_a_gguf_file_has_no_folder_of_its_own(tmp_path):
    path = tiny_models.write_gguf(tmp_path / "m.gguf", tiny_models.tensors())
    assert load(str(path), tokenizer=False).folder is None
