"""The encoder equals transformers' torch class, and itself by other routes."""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deberta_peer import (
    LIKE_V3,
    from_torch,
    hf_configs,
    inputs,
    outputs,
    torch_model,
    torch_outputs,
    without_embedding,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_peer import relative
from safetensors.numpy import load_file, save_file

from ivon_jax.lora import Lora, LoraConfig, init_adapters
from ivon_jax.models import Deberta, DebertaConfig, load
from ivon_jax.models.deberta_attention import relative_positions
from ivon_jax.models.peft_io import WEIGHTS, read_settings, save_adapter
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.problem import adapted, initial_values

# Of peft 0.21 with transformers 5.14.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`", "ignore:Could not find a config file"
)


@given(
    scan_layers=st.booleans(),
    config=hf_configs(),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=16, deadline=None)
def test_equals_transformers(scan_layers, config, seed, data):
    theirs = torch_model(config, seed)
    model, params = from_torch(theirs, scan_layers)
    tokens, types, mask = inputs(data)
    hidden, logits = torch_outputs(theirs, tokens, types, mask)
    ids, kinds = without_embedding(tokens, types, mask)
    got_hidden, got_logits = outputs(model, params, ids, kinds, mask)
    assert relative(np.asarray(got_hidden)[mask], hidden[mask]) <= 1e-4
    # With padding on the left the head reads a padding token: that too is alike.
    assert relative(got_logits, logits) <= 1e-4


def test_padding_may_go_beyond_the_last_position():
    config = LIKE_V3 | {"position_biased_input": True, "embedding_size": 10}
    base, params = from_torch(torch_model(config | {"max_position_embeddings": 6}))
    lora = LoraConfig(rank=2, dropout=0.0, targets=("embed_proj",))
    model, tokens = Lora(base, lora), jnp.arange(12).reshape(2, 6) + 1
    mask = jnp.arange(6)[None] < jnp.array([[6], [3]])
    adapters = init_adapters(model, jax.random.key(0), tokens)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(adapters, tokens, mask):
        out = model.apply({"params": params, "lora": adapters}, tokens, mask=mask)
        return jnp.sum(out), out

    (_, wanted), grads = loss(adapters, tokens, mask)
    wide = (jnp.pad(part, ((0, 0), (0, 5))) for part in (tokens, mask))
    (_, got), padded = loss(adapters, *wide)
    assert relative(got, wanted) <= 1e-5
    for a, b in zip(jax.tree.leaves(padded), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", "layers/output/dense"])
@given(config=hf_configs(), data=st.data())
@settings(max_examples=3, deadline=None)
def test_gradients_of_adapters_and_head_equal_those_of_peft(targets, config, data):
    peft = pytest.importorskip("peft")
    import torch

    theirs = torch_model(config)
    base, params = from_torch(theirs)
    head = ("pooler/dense", "classifier")
    lora = LoraConfig(
        rank=2,
        dropout=0.0,
        targets=(targets,),
        modules_to_save=head,
        # PEFT's name of this layer is the end of another's, attention.output.dense.
        rank_pattern=(("layers/output/dense", 3),),
        alpha_pattern=(("layers/output/dense", 5.0),),
    )
    model = Lora(base, lora)
    tokens, types, mask = inputs(data, rows=2, length=7)
    shapes = jax.eval_shape(
        lambda key: init_adapters(model, key, jnp.asarray(tokens)), jax.random.key(0)
    )
    rng = np.random.default_rng(3)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes
    )
    weight = rng.normal(size=(2, config["num_labels"])).astype(np.float32)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(adapters):
        variables = {"params": params, "lora": adapters}
        ids, kinds = map(jnp.asarray, without_embedding(tokens, types, mask))
        out = model.apply(variables, ids, mask=jnp.asarray(mask), types=kinds)
        return jnp.sum(out * weight), out

    (_, logits), ours = loss(adapters)
    with tempfile.TemporaryDirectory() as place:
        save_adapter(Path(place), adapters, lora, "base")
        tuned = peft.PeftModel.from_pretrained(theirs, place, is_trainable=True).eval()
        save_adapter(Path(place), ours, lora, "base")
        ours = load_file(Path(place) / WEIGHTS)
    out = tuned(
        input_ids=torch.tensor(tokens).long(),
        token_type_ids=torch.tensor(types).long(),
        attention_mask=torch.tensor(mask).long(),
    ).logits
    assert relative(logits, out.detach().numpy()) <= 1e-4
    (out * torch.tensor(weight)).sum().backward()
    grads = {
        name.replace(".default", "").replace(".modules_to_save", ""): p.grad.numpy()
        for name, p in tuned.named_parameters()
        if p.grad is not None
    }
    assert grads.keys() == ours.keys()
    scale = max(np.abs(grad).max() for grad in grads.values())
    for name, grad in grads.items():
        assert np.abs(ours[name] - grad).max() <= 1e-3 * scale


@given(config=hf_configs(), data=st.data())
@settings(max_examples=2, deadline=None)
def test_an_adapter_whose_pooler_peft_did_not_save(config, data):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    theirs = torch_model(config)
    base, params = from_torch(theirs)
    # Its name is the end of another's, attention.output.dense: PEFT adapts both.
    settings = peft.LoraConfig(
        r=2, target_modules=["output.dense"], task_type="SEQ_CLS"
    )
    tuned = peft.get_peft_model(theirs, settings).eval()
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    tokens, types, mask = inputs(data, rows=2, length=7)
    with tempfile.TemporaryDirectory() as place:
        tuned.save_pretrained(place)
        lora = read_settings(Path(place))
        assert lora.modules_to_save == ("classifier",)
        model = Lora(base, adapted(lora, base.config))
        shapes = jax.eval_shape(
            lambda key: init_adapters(model, key, jnp.asarray(tokens)),
            jax.random.key(0),
        )
        run = TrainConfig("base", adapter=Path(place), lora=lora)
        start = initial_values(run, params, shapes)
        headless = {k: v for k, v in params.items() if k != "pooler"}
        message = "neither it nor model base has pooler/dense"
        with pytest.raises(ValueError, match=message):
            initial_values(run, headless, shapes)
    ids, real, kinds = map(jnp.asarray, (tokens, mask, types))
    variables = {"params": headless, "lora": start}
    logits = jax.jit(model.apply)(variables, ids, mask=real, types=kinds)
    assert relative(logits, torch_outputs(tuned, tokens, types, mask)[1]) <= 1e-4


def test_a_file_with_the_buffer_that_older_transformers_saved(tmp_path):
    theirs = torch_model(LIKE_V3)
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    extra = {"deberta.embeddings.position_ids": np.arange(16)[None]}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(LIKE_V3))
    loaded = load(str(tmp_path), tokenizer=False)
    _, wanted = from_torch(theirs)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, wanted)
    extra = {"deberta.embeddings.word_embeddings.weight": np.ones((40, 24), int)}
    save_file(tensors | extra, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="word_embeddings.weight' is I64, expected"):
        load(str(tmp_path), tokenizer=False)


@given(config=hf_configs())
@settings(max_examples=50, deadline=None)
def test_transformers_reads_our_configs_as_we_do(config):
    transformers = pytest.importorskip("transformers")
    ours = DebertaConfig.from_hf(config)
    written = ours.to_hf()
    assert DebertaConfig.from_hf(written) == ours
    assert hasattr(transformers, written.pop("architectures")[0])
    theirs = transformers.AutoConfig.for_model(**written)
    read = json.loads(theirs.to_json_string(use_diff=False))
    assert DebertaConfig.from_hf(read) == ours
    assert theirs.num_labels == config["num_labels"]


@pytest.mark.parametrize(
    ("field", "value"),
    {
        "attention_head_size": 8,
        "conv_act": "mish",
        "conv_groups": 5,
        "conv_kernel_size": 2,
        "hidden_act": "quick_gelu",
        "hidden_dropout_prob": 1.0,
        "hidden_size": 2**25,
        "id2label": ["a"],
        "layer_norm_eps": 0,
        "model_type": "deberta",
        "norm_rel_ebd": 1,
        "num_attention_heads": 5,
        "num_hidden_layers": "2",
        "pooler_hidden_size": 12,
        "pos_att_type": "p2p",
        "position_buckets": 30,
        "problem_type": "multi_label_classification",
        "quantization_config": {},
        "relative_attention": 1,
        "vocab_size": None,
    }.items(),
)
def test_what_is_not_implemented_is_named(field, value):
    with pytest.raises(ValueError, match=f"config field {field} is ") as caught:
        DebertaConfig.from_hf(LIKE_V3 | {field: value})
    assert "\n" not in str(caught.value)


@given(
    buckets=st.integers(2, 60), extra=st.integers(1, 300), length=st.integers(1, 400)
)
@settings(max_examples=25, deadline=None)
def test_buckets_are_odd_and_grow(buckets, extra, length):
    largest = buckets // 2 + 1 + extra
    distance = relative_positions(length, buckets, largest)
    np.testing.assert_array_equal(distance[:-1], -distance[-2::-1])
    row = distance[length - 1 :: -1]  # distances 0, 1, 2, ...
    near = min(buckets // 2 + 1, length)
    np.testing.assert_array_equal(row[:near], np.arange(near))
    assert (np.diff(row) >= 0).all()
    assert row[min(length, largest) - 1] < buckets


@pytest.mark.parametrize("remat", ["full", "names", "offload"])
def test_remat_changes_no_gradient(remat):
    config = DebertaConfig.from_hf(LIKE_V3 | {"conv_kernel_size": 3})
    tokens = jnp.arange(10).reshape(2, 5)
    params = jax.jit(Deberta(config).init)(jax.random.key(0), tokens)

    def gradient(remat):
        model = Deberta(config, remat=remat)
        loss = lambda p: jnp.square(model.apply(p, tokens)).sum()  # noqa: E731
        return jax.tree.leaves(jax.jit(jax.grad(loss))(params))

    for a, b in zip(gradient("none"), gradient(remat), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-7)


def test_bfloat16_errs_no_more_than_torch_does():
    torch = pytest.importorskip("torch")
    theirs = torch_model(LIKE_V3 | {"num_labels": 3})
    theirs.to(torch.bfloat16).float()  # weights that both precisions can hold
    model, params = from_torch(theirs)
    rng = np.random.default_rng(0)
    tokens = rng.integers(40, size=(4, 16)).astype(np.int32)
    types, mask = np.zeros_like(tokens), np.ones(tokens.shape, bool)
    exact, _ = torch_outputs(theirs, tokens, types, mask)
    rounded, _ = torch_outputs(theirs.to(torch.bfloat16), tokens, types, mask)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    model = Deberta(model.config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    hidden, logits = outputs(model, half, tokens)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    assert relative(hidden, exact) <= 2 * relative(rounded, exact)


def test_without_mask_and_types_equals_all_real_and_of_the_first_text():
    config = DebertaConfig.from_hf(
        LIKE_V3 | {"conv_kernel_size": 3, "type_vocab_size": 2}
    )
    tokens = jnp.arange(10).reshape(2, 5)
    model, zeros, ones = Deberta(config), jnp.zeros_like(tokens), jnp.ones((2, 5), bool)
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    expected = outputs(model, params, tokens, zeros, ones)
    for got, wanted in zip(outputs(model, params, tokens), expected, strict=True):
        assert relative(got, wanted) <= 1e-5


def test_dropout_acts_with_a_key_only():
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    config = DebertaConfig.from_hf(LIKE_V3)
    tokens = jnp.arange(10).reshape(2, 5)
    params = jax.jit(Deberta(config).init)(jax.random.key(0), tokens)

    def compute(seed, **changes):
        model = Deberta(dataclasses.replace(config, **changes))
        keys = {} if seed is None else {"dropout": jax.random.key(seed)}
        hidden = model.apply(params, tokens, rngs=keys, method="hidden_states")
        return np.asarray(hidden)

    still = compute(None)
    assert relative(compute(0, **dict.fromkeys(rates, 0.0)), still) <= 1e-6
    for rate in rates:
        others = dict.fromkeys(set(rates) - {rate}, 0.0)
        assert relative(compute(0, **others), still) > 0.01
        assert relative(compute(0, **others), compute(1, **others)) > 0.01
