"""Decoding equals transformers' `generate`, and whole forward passes on its outputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoding import NONE, begin, fresh, go_on, outputs, read, start
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from llama_peer import (
    SMALL,
    from_torch,
    hf_configs,
    random_model,
    random_tokens,
    torch_model,
)

from ivon_jax.lora import Lora, LoraConfig, init_adapters
from ivon_jax.models.decode import State, arrange, decode, place, resize
from ivon_jax.models.kv_cache import Past, Slots
from ivon_jax.models.packed import Packed
from ivon_jax.models.quantized import is_quantized, quantize
from ivon_jax.models.sampler import Sampler

VARIANTS = {
    "plain": SMALL,
    "windowed": dataclasses.replace(
        SMALL, sliding_window=3, windowed_layers=(True, False, True)
    ),
    "biased and normalised": dataclasses.replace(
        SMALL, qkv_bias=True, o_bias=True, qk_norm=True, tie_word_embeddings=True
    ),
}


def padded(tokens, lengths):
    """Prompts whose padding is arbitrary tokens."""
    noise = random_tokens(*tokens.shape, seed=99)
    mask = np.arange(tokens.shape[1])[None] < np.array(lengths)[:, None]
    return jnp.where(mask, tokens, noise), jnp.asarray(lengths, jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def token_log_probs(model, variables, ids):
    """Log-probability of each token but the first by one pass without any cache."""
    base = getattr(model, "base", model)
    params = {"params": variables["params"]}
    hidden = model.apply(variables, ids[None])[0, :-1]
    logs = jax.nn.log_softmax(base.apply(params, hidden, method="unembed"))
    return jnp.take_along_axis(logs, ids[1:, None], axis=1)[:, 0]


def whole_log_prob(model, variables, prompt, output):
    ids = jnp.asarray([*prompt, *output, *[0] * (20 - len(prompt) - len(output))])
    logs = np.asarray(token_log_probs(model, variables, ids))
    return logs[len(prompt) - 1 :][: len(output)].sum()


@given(config=hf_configs(), seed=st.integers(0, 99), data=st.data())
@settings(max_examples=5, deadline=None)
def test_greedy_tokens_equal_those_of_transformers(config, seed, data):
    assume(config["rope_parameters"]["rope_type"] != "dynamic")  # see below
    theirs = torch_model(config, seed)
    import torch

    model, params = from_torch(theirs)
    tokens = random_tokens(2, 6, config["vocab_size"], seed)
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=2))
    stop = data.draw(st.integers(0, config["vocab_size"] - 1))
    variables = {"params": params}
    prompts = read(model, variables, *padded(tokens, lengths))
    rows = go_on(
        model,
        variables,
        prompts,
        begin(prompts, 4),
        sampler=Sampler(temperature=0.0),
        stops=jnp.array([stop]),
        limit=10,
    )
    got = outputs(rows)
    assert got[0] == got[1] and got[2] == got[3]
    for prompt, length, mine in zip(tokens, lengths, got[::2], strict=True):
        ids = torch.tensor(np.asarray(prompt)[None, :length]).long()
        found = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            use_cache=False,  # whose windows of one token are wrong
            max_new_tokens=10,
            eos_token_id=stop,
            pad_token_id=0,
        )
        assert found[0, length:].tolist() == mine


@pytest.mark.parametrize(
    ("name", "adapted"),
    [("plain", False), ("windowed", True), ("biased and normalised", True)],
)
@given(lengths=st.lists(st.integers(1, 8), min_size=2, max_size=2))
@settings(max_examples=4, deadline=None)
def test_log_probs_equal_those_of_a_whole_forward_pass(name, adapted, lengths):
    model, params = random_model(VARIANTS[name])
    variables = {"params": params}
    if adapted:
        model = Lora(model, LoraConfig(rank=2, targets=("all-linear",)))
        shapes = init_adapters(model, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
        rng = np.random.default_rng(5)
        variables["lora"] = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes
        )
    tokens = random_tokens(2, 8)
    prompts = read(model, variables, *padded(tokens, lengths))
    rows = go_on(
        model, variables, prompts, begin(prompts, 4), Sampler(2.0), NONE, limit=9
    )
    for row, output in enumerate(outputs(rows)):
        assert len(output) == 9
        prompt = np.asarray(tokens)[row // 2, : lengths[row // 2]]
        expected = whole_log_prob(model, variables, prompt, output)
        np.testing.assert_allclose(rows.outputs.log_probs[row], expected, rtol=1e-4)


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_quantised_base_decodes_as_it_reads(quantization):
    pytest.importorskip("qwix")
    config = dataclasses.replace(SMALL, hidden_size=64, intermediate_size=64)
    config = dataclasses.replace(config, head_dim=16)
    model, params = random_model(config)

    def leaf(path, value):
        name = "/".join(part.key for part in path)
        if not is_quantized(name):
            return value
        return jax.vmap(functools.partial(quantize, quantization=quantization))(value)

    variables = {"params": jax.tree_util.tree_map_with_path(leaf, params)}
    tokens, lengths = random_tokens(1, 5), jnp.array([5])
    prompts = read(model, variables, tokens, lengths)
    rows = go_on(
        model, variables, prompts, begin(prompts, 2), Sampler(2.0), NONE, limit=6
    )
    for row, output in enumerate(outputs(rows)):
        expected = whole_log_prob(model, variables, tokens[0].tolist(), output)
        np.testing.assert_allclose(rows.outputs.log_probs[row], expected, rtol=1e-4)


@pytest.fixture(scope="module")
def small():
    model, params = random_model()
    return model, {"params": params}


@pytest.fixture(scope="module")
def three(small):
    tokens, lengths = random_tokens(3, 7), jnp.array([7, 2, 4])
    return read(*small, tokens, lengths)


def test_dynamic_rope_is_not_stretched_within_the_context():
    """Where keys of one call would be rotated otherwise than those of another."""
    from ivon_jax.models.rope_config import DynamicRope

    stretched = dataclasses.replace(SMALL, rope_scaling=DynamicRope(4.0))
    tokens, lengths = random_tokens(1, 4), jnp.array([4])
    found = []
    for config in (SMALL, stretched):
        model, params = random_model(config)
        variables = {"params": params}
        prompts = read(model, variables, tokens, lengths)
        rows = go_on(
            model, variables, prompts, begin(prompts, 2), Sampler(), NONE, limit=8
        )
        found.append(outputs(rows))
    assert found[0] == found[1]


def test_outputs_do_not_depend_on_their_company(small, three):
    keys = jax.random.split(jax.random.key(7), 6)
    together = go_on(
        *small, three, begin(three, 6, keys=keys), Sampler(), NONE, limit=12
    )
    everyone = jnp.arange(6)
    for output in (0, 3, 5):
        group = jnp.array([output // 2])
        alone, _ = arrange(three, together, group, everyone[:1], everyone[:1])
        one = begin(alone, 1, keys=keys[output : output + 1])
        one = go_on(*small, alone, one, Sampler(), NONE, limit=12)
        assert outputs(one)[0] == outputs(together)[output]
        np.testing.assert_allclose(
            one.outputs.log_probs[0], together.outputs.log_probs[output], rtol=1e-5
        )


def test_outputs_that_start_later_and_in_other_buffers_make_the_same(small, three):
    """As the schedule does: stop after a few steps, grow, refill, compact."""
    keys = jax.random.split(jax.random.key(7), 6)
    expected = outputs(
        go_on(*small, three, begin(three, 6, keys=keys), Sampler(), NONE, limit=12)
    )
    early, own = jnp.array([True, False, True, False, True, True]), jnp.arange(6)
    state = start(fresh(three, 6, 6, 4), three, early, own, keys)
    state = go_on(*small, three, state, Sampler(), NONE, limit=12)
    assert state.outputs.counts.tolist() == [4, 0, 4, 0, 4, 4]  # full
    state = start(resize(state, 8), three, ~early, own, keys)
    state = go_on(*small, three, state, Sampler(), NONE, limit=12, steps=3)
    assert state.outputs.counts.tolist() == [7, 3, 7, 3, 7, 7]
    index = jnp.array([5, 1, 3])
    prompts, state = arrange(three, state, index // 2, state.outputs.row[index], index)
    state = go_on(*small, prompts, resize(state, 16), Sampler(), NONE, limit=12)
    assert outputs(state) == [expected[5], expected[1], expected[3]]


def test_a_prompt_takes_the_place_of_another(small, three):
    keys = jax.random.split(jax.random.key(7), 3)
    state = go_on(
        *small, three, begin(three, 3, 8, keys=keys), Sampler(), NONE, limit=6
    )
    one = read(*small, random_tokens(1, 5, seed=8), jnp.array([5]))
    prompts = place(three, one, 1)
    state = start(state, prompts, jnp.array([False, True, False]), jnp.arange(3), keys)
    state = go_on(*small, prompts, state, Sampler(), NONE, limit=6)
    alone = go_on(
        *small, one, begin(one, 1, 8, keys=keys[1:2]), Sampler(), NONE, limit=6
    )
    assert outputs(state)[1] == outputs(alone)[0]


def test_outputs_stop_at_their_own_tokens(small, three):
    free = go_on(*small, three, begin(three, 6), Sampler(), NONE, limit=12)
    first, *_ = outputs(free)
    for stops in ([first[0]], [first[4], first[2]], [1008]):
        state = go_on(
            *small, three, begin(three, 6), Sampler(), jnp.array(stops), limit=12
        )
        for whole, cut in zip(outputs(free), outputs(state), strict=True):
            ends = [i + 1 for i, token in enumerate(whole) if token in stops]
            assert cut == whole[: ends[0] if ends else 12]
        assert not state.outputs.live.any()


@pytest.mark.parametrize("limit", [1, 5])
def test_outputs_end_at_the_limit(small, three, limit):
    state = go_on(*small, three, begin(three, 6), Sampler(), NONE, limit=limit)
    assert state.outputs.counts.tolist() == [limit] * 6
    assert not state.outputs.live.any()


def test_decoding_returns_when_enough_outputs_have_ended(small, three):
    free = go_on(*small, three, begin(three, 3), Sampler(), NONE, limit=12)
    stop = outputs(free)[1][3]
    state = go_on(
        *small, three, begin(three, 3), Sampler(), jnp.array([stop]), limit=12, ended=1
    )
    assert state.outputs.live.sum() == 2 and state.outputs.counts[1] == 4


def test_rows_without_outputs_are_not_written_to(small, three):
    state = begin(three, 3)
    live = state.outputs._replace(live=jnp.array([True, False, True]))
    after = go_on(*small, three, state._replace(outputs=live), Sampler(), NONE, limit=6)
    assert after.outputs.counts.tolist() == [6, 0, 6]
    assert not after.outputs.tokens[1].any() and not after.cache.keys[:, 1].any()


def test_one_program_serves_all_lengths_and_limits(small):
    traces = []

    @jax.jit
    def counted(prompts, rows, limit):
        traces.append(limit)
        return decode(*small, prompts, rows, Sampler(), NONE, limit)

    for lengths in ([1, 2], [5, 3], [6, 6]):
        prompts = read(*small, random_tokens(2, 6), jnp.array(lengths))
        rows = begin(prompts, 4, seed=lengths[0])
        counted(prompts, rows, sum(lengths))
    assert len(traces) == 1


def test_a_past_excludes_what_it_holds_itself(small):
    empty = Slots(*(jnp.zeros((3, 1, 2, 4, 8)) for _ in range(2)))
    past = Past(empty, jnp.array([2]), empty, jnp.array([0]))
    model, variables = small
    for inputs in (
        {"mask": jnp.ones((1, 1), bool)},
        {"packed": Packed.of(np.ones((1, 1), int), 1, 1)},
    ):
        with pytest.raises(ValueError, match="a Past excludes mask, packed"):
            model.apply(variables, jnp.zeros((1, 1), jnp.int32), past=past, **inputs)
    with pytest.raises(ValueError, match="and more tokens"):
        model.apply(variables, jnp.zeros((1, 2), jnp.int32), past=past)


def test_the_state_is_a_pytree(three):
    state = fresh(three, 6, 12, 8)
    assert isinstance(jax.tree.map(lambda x: x, state), State)
    assert state.cache.keys.shape == (3, 6, 2, 8, 8)
    assert state.outputs.tokens.shape == (12, 8)


def test_buffers_are_written_in_place(small, three):
    """A copy of all keys or values in every step would cost more than the step."""
    state = begin(three, 6, capacity=64)
    shape = ",".join(map(str, state.cache.keys.shape))

    def copies(donated):
        program = jax.jit(
            decode, static_argnames=("model", "sampler"), donate_argnames=donated
        )
        lowered = program.lower(*small, three, state, Sampler(), NONE, limit=60)
        lines = lowered.compile().as_text().splitlines()
        return [line for line in lines if f"f32[{shape}]" in line and " copy(" in line]

    assert copies(()) and not copies(("state",))
