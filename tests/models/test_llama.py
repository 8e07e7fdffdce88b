"""The decoder equals transformers' torch classes, and itself by other routes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_peer import (
    SMALL,
    from_torch,
    hf_configs,
    hidden_states,
    logits,
    random_model,
    random_tokens,
    relative,
    torch_logits,
    torch_model,
    unembed,
)

from ivon_jax.models import KVCache, Llama, LlamaConfig
from ivon_jax.models.stack import policy_of, stack_layers, unstack_layers


@given(
    scan_layers=st.booleans(),
    config=hf_configs(),
    seed=st.integers(0, 99),
    data=st.data(),
)
@settings(max_examples=20, deadline=None)
def test_logits_equal_those_of_transformers(scan_layers, config, seed, data):
    theirs = torch_model(config, seed)
    model, params = from_torch(theirs, scan_layers)
    tokens = random_tokens(3, 9, config["vocab_size"], seed)
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=3))
    mask = np.arange(9) < np.array(lengths)[:, None]
    if data.draw(st.booleans(), label="left padding"):
        mask = mask[:, ::-1].copy()
    expected = torch_logits(theirs, tokens, mask)
    # Padding may be a token without an embedding.
    padded = jnp.where(mask, tokens, config["vocab_size"])
    got = np.asarray(logits(model, params, padded, mask=jnp.asarray(mask)))
    assert relative(got[mask], expected[mask]) <= 1e-4
    if mask.all():
        assert relative(logits(model, params, tokens), expected) <= 1e-4


@given(config=hf_configs())
@settings(max_examples=50, deadline=None)
def test_transformers_reads_our_configs_as_we_do(config):
    transformers = pytest.importorskip("transformers")
    ours = LlamaConfig.from_hf(config)
    written = ours.to_hf()
    name = written.pop("architectures")[0]
    assert hasattr(transformers, name)
    theirs = transformers.AutoConfig.for_model(**written)
    assert (
        LlamaConfig.from_hf(json.loads(theirs.to_json_string(use_diff=False))) == ours
    )


def test_a_config_of_no_class_is_not_written():
    config = dataclasses.replace(SMALL, qkv_bias=True, qk_norm=True)
    with pytest.raises(ValueError, match="no model_type of llama, mistral"):
        config.to_hf()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@given(config=hf_configs(), left=st.booleans())
@settings(max_examples=6, deadline=None)
def test_adapters_outputs_and_gradients_equal_those_of_peft(config, left):
    import tempfile
    from pathlib import Path

    peft = pytest.importorskip("peft")
    import torch
    from safetensors.numpy import load_file

    from ivon_jax.lora import Lora, LoraConfig, init_adapters
    from ivon_jax.models.peft_io import WEIGHTS, save_adapter

    theirs = torch_model(config)
    base, params = from_torch(theirs)
    lora = LoraConfig(rank=2, dropout=0.0, targets=("all-linear",))
    model = Lora(base, lora)
    tokens = random_tokens(2, 5, config["vocab_size"])
    mask = np.arange(5) < np.array([[5], [3]])
    mask = mask[:, ::-1].copy() if left else mask
    rng = np.random.default_rng(3)
    adapters = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32),
        init_adapters(model, jax.random.key(0), tokens),
    )
    shape = (*tokens.shape, config["vocab_size"])
    weight = (rng.normal(size=shape) * mask[..., None]).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(adapters):
        variables = {"params": params, "lora": adapters}
        padded = jnp.where(mask, tokens, config["vocab_size"])
        hidden = model.apply(variables, padded, mask=jnp.asarray(mask))
        out = base.apply({"params": params}, hidden, method="unembed")
        return jnp.sum(out * weight), out

    grads, logits = gradient(adapters)
    with tempfile.TemporaryDirectory() as place:
        save_adapter(Path(place), adapters, lora, "base")
        tuned = peft.PeftModel.from_pretrained(theirs, place, is_trainable=True)
        save_adapter(Path(place), grads, lora, "base")
        ours = load_file(Path(place) / WEIGHTS)
    attention = torch.tensor(mask)
    positions = (attention.long().cumsum(1) - 1).clamp(min=0)
    out = tuned(
        input_ids=torch.tensor(np.asarray(tokens)).long(),
        attention_mask=attention.long(),
        position_ids=positions,
    ).logits
    assert relative(logits[mask], out.detach().numpy()[mask]) <= 1e-4
    (out * torch.tensor(weight)).sum().backward()
    grads = {
        name.replace(".default", ""): parameter.grad.numpy()
        for name, parameter in tuned.named_parameters()
        if parameter.grad is not None
    }
    assert grads.keys() == ours.keys()
    scale = max(np.abs(grad).max() for grad in grads.values())
    for name, grad in grads.items():
        assert np.abs(ours[name] - grad).max() <= 1e-3 * scale


@pytest.mark.parametrize("scan_layers", [True, False])
def test_a_cached_prefix_keeps_to_the_window(scan_layers):
    windowed = (True, False, True)
    config = dataclasses.replace(SMALL, sliding_window=3, windowed_layers=windowed)
    model, params = random_model(config, scan_layers=scan_layers)
    params = params if scan_layers else unstack_layers(params)
    tokens = random_tokens(2, 9)
    full = hidden_states(model, params, tokens)
    _, cache = hidden_states(model, params, tokens[:, :4], return_cache=True)
    got = hidden_states(model, params, tokens[:, 4:], past=cache)
    assert relative(got, full[:, 4:]) <= 1e-5
    wide = dataclasses.replace(SMALL, sliding_window=9, windowed_layers=windowed)
    everything = hidden_states(Llama(SMALL), random_model()[1], tokens)
    assert (
        relative(hidden_states(Llama(wide), random_model()[1], tokens), everything)
        <= 1e-5
    )
    if scan_layers:
        assert relative(full, everything) > 1e-2


def test_without_mask_equals_a_mask_of_all_tokens():
    model, params = random_model()
    tokens = random_tokens(2, 7)
    full = hidden_states(model, params, tokens, mask=jnp.ones((2, 7), bool))
    assert relative(hidden_states(model, params, tokens), full) <= 1e-5


def test_scanned_equals_unscanned():
    model, params = random_model()
    flat = unstack_layers(params)
    tokens = random_tokens(2, 7)
    expected = hidden_states(model, params, tokens)
    got = hidden_states(Llama(SMALL, scan_layers=False), flat, tokens)
    assert relative(got, expected) <= 1e-5
    again = stack_layers(flat)
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, again, params)))


@pytest.mark.parametrize("scan_layers", [True, False])
def test_init_makes_the_tree_that_is_loaded(scan_layers):
    for tied in (True, False):
        config = dataclasses.replace(SMALL, tie_word_embeddings=tied)
        _, params = random_model(config)
        params = params if scan_layers else unstack_layers(params)
        model = Llama(config, scan_layers=scan_layers)
        made = jax.jit(model.init)(jax.random.key(0), random_tokens(1, 2))["params"]
        assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
        assert ("lm_head" in made) is not tied


@pytest.mark.parametrize(
    ("scan_layers", "remat"),
    [
        (True, "dots"),
        (True, "names"),
        (True, "offload"),
        (False, "offload"),
        (False, "full"),
    ],
)
def test_remat_changes_no_gradient(scan_layers, remat):
    _, params = random_model()
    params = params if scan_layers else unstack_layers(params)
    tokens = random_tokens(2, 5)

    def gradient(remat):
        model = Llama(SMALL, scan_layers=scan_layers, remat=remat)
        loss = lambda p: jnp.square(logits(model, p, tokens)).mean()  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    for a, b in zip(*map(jax.tree.leaves, map(gradient, ("none", remat))), strict=True):
        assert relative(b, a) <= 1e-5


def test_dots_keeps_no_result_of_an_adapter():
    x, kernel, b = jnp.ones((4, 64)), jnp.ones((64, 7)), jnp.ones((8, 9))

    def layer(x):
        return jnp.sum(jnp.sin(x @ kernel)) + jnp.sum(jnp.sin(x[:, :8] @ b))

    _, back = jax.vjp(jax.checkpoint(layer, policy=policy_of("dots")), x)
    kept = {leaf.shape for leaf in jax.tree.leaves(back)}
    assert (4, 7) in kept
    assert (4, 9) not in kept


@pytest.mark.parametrize("scan_layers", [True, False])
@pytest.mark.parametrize("cut", [1, 4, 6])
def test_cached_prefix_equals_the_full_forward(scan_layers, cut):
    model, params = random_model(scan_layers=scan_layers)
    params = params if scan_layers else unstack_layers(params)
    tokens = random_tokens(3, 7)
    full, full_cache = hidden_states(model, params, tokens, return_cache=True)
    first, cache = hidden_states(model, params, tokens[:, :cut], return_cache=True)
    second, cache = hidden_states(
        model, params, tokens[:, cut:], past=cache, return_cache=True
    )
    assert relative(jnp.concatenate([first, second], axis=1), full) <= 1e-5
    assert cache.keys.shape == (3, 3, 7, 2, 8)
    for got, expected in zip(cache, full_cache, strict=True):
        assert relative(got, expected) <= 1e-5


def test_prefix_of_batch_one_is_shared():
    model, params = random_model()
    prefix, rest = random_tokens(1, 3), random_tokens(4, 5, seed=2)
    _, cache = hidden_states(model, params, prefix, return_cache=True)
    whole = jnp.concatenate([jnp.broadcast_to(prefix, (4, 3)), rest], axis=1)
    mask = jnp.arange(5)[None] < jnp.array([5, 2, 4, 1])[:, None]
    full_mask = jnp.concatenate([jnp.ones((4, 3), bool), mask], axis=1)
    expected = hidden_states(model, params, whole, mask=full_mask)[:, 3:]
    got = hidden_states(model, params, rest, past=cache, mask=mask)
    assert relative(got[mask], expected[mask]) <= 1e-5


def test_a_padded_past_is_not_attended_to():
    model, params = random_model()
    tokens = random_tokens(2, 6)
    mask = jnp.arange(6)[None] >= jnp.array([0, 3])[:, None]
    full = hidden_states(model, params, tokens, mask=mask)
    _, cache = hidden_states(
        model, params, tokens[:, :4], mask=mask[:, :4], return_cache=True
    )
    got = hidden_states(model, params, tokens[:, 4:], past=cache, mask=mask)
    assert relative(got, full[:, 4:]) <= 1e-5


def test_a_mask_of_another_length_is_an_error():
    model, params = random_model()
    mask = jnp.ones((2, 5), bool)
    with pytest.raises(ValueError, match="mask covers 5 tokens, expected 6"):
        hidden_states(model, params, random_tokens(2, 6), mask=mask)


@pytest.mark.parametrize("tied", [True, False])
def test_unembedding_some_tokens_equals_their_rows(tied):
    model, params = random_model(dataclasses.replace(SMALL, tie_word_embeddings=tied))
    hidden = hidden_states(model, params, random_tokens(2, 4))
    ids = jnp.array([7, 1008, 0])
    every = unembed(model, params, hidden)
    some = unembed(model, params, hidden, ids)
    assert every.shape == (2, 4, 1009)
    assert relative(some, every[..., ids]) <= 1e-6
    kernel = params["embed_tokens"]["embedding"].T if tied else params["lm_head"]
    kernel = kernel if tied else kernel["kernel"]
    assert relative(every, jnp.einsum("bsd,dv->bsv", hidden, kernel)) <= 1e-6


def made_shapes(jaxpr):
    """Shapes of everything a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.tree.leaves(
            equation.params,
            is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr),
        ):
            inner = getattr(inner, "jaxpr", inner)
            if isinstance(inner, jax.extend.core.Jaxpr):
                yield from made_shapes(inner)


@pytest.mark.parametrize("tied", [True, False])
def test_answers_never_cost_the_whole_vocabulary(tied):
    model, params = random_model(dataclasses.replace(SMALL, tie_word_embeddings=tied))
    tokens, ids = random_tokens(2, 4), jnp.array([7, 9])

    def has_vocabulary(*token_ids):
        def loss(hidden_and_below):
            return logits(model, hidden_and_below, tokens, *token_ids)

        jaxpr = jax.make_jaxpr(loss)(params).jaxpr
        return any(1009 in shape for shape in made_shapes(jaxpr))

    assert has_vocabulary()  # the search does find it
    assert not has_vocabulary(ids)


def test_bfloat16_errs_no_more_than_torch_does():
    torch = pytest.importorskip("torch")
    config = dataclasses.asdict(SMALL) | {"model_type": "llama"}
    for name in ("qkv_bias", "o_bias", "rope_scaling"):
        del config[name]
    theirs = torch_model(config)
    theirs.to(torch.bfloat16).float()  # weights that both precisions can hold
    model, params = from_torch(theirs)
    tokens, mask = random_tokens(4, 16), np.ones((4, 16), bool)
    exact = torch_logits(theirs, tokens, mask)
    their_error = relative(torch_logits(theirs.to(torch.bfloat16), tokens, mask), exact)
    half = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params)
    model = Llama(model.config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    hidden = hidden_states(model, half, tokens)
    assert hidden.dtype == jnp.bfloat16
    got = unembed(model, half, hidden)
    assert got.dtype == jnp.float32
    assert relative(got, exact) <= 2 * their_error


def test_gradients_flow_past_padding_without_nan():
    model, params = random_model()
    mask = jnp.arange(5)[None] >= jnp.array([4, 0])[:, None]

    def loss(p):
        hidden = hidden_states(model, p, random_tokens(2, 5), mask=mask)
        return jnp.square(hidden[:, -1]).sum()

    leaves = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in leaves)


def test_the_last_hidden_state_ignores_what_stands_at_padding():
    model, params = random_model()
    tokens = random_tokens(1, 6)
    mask = jnp.arange(6)[None] >= 2
    other = tokens.at[:, :2].set(random_tokens(1, 2, seed=5))
    a, b = (hidden_states(model, params, t, mask=mask)[:, 2:] for t in (tokens, other))
    assert jnp.array_equal(a, b)
    alone = hidden_states(model, params, tokens[:, 2:])
    assert relative(a, alone) <= 1e-5


def test_cache_is_a_pair_of_keys_and_values():
    model, params = random_model()
    _, cache = hidden_states(model, params, random_tokens(2, 3), return_cache=True)
    assert isinstance(cache, KVCache)
    assert cache.keys.shape == cache.values.shape == (3, 2, 3, 2, 8)
