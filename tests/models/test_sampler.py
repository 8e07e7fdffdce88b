"""Draws follow the model's probabilities, filtered as transformers filters them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax.models.sampler import Sampler

pick = jax.jit(Sampler.pick, static_argnums=0)
filtered = jax.jit(Sampler.filtered, static_argnums=0)


def logits(rows=4, vocab=300, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, vocab)) * scale).astype(np.float32)


def transformers_filtered(sampler, values):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as processors

    steps = [processors.TemperatureLogitsWarper(sampler.temperature)]
    if sampler.top_k:
        steps.append(processors.TopKLogitsWarper(sampler.top_k))
    if sampler.top_p < 1:
        steps.append(processors.TopPLogitsWarper(sampler.top_p))
    if sampler.min_p:
        steps.append(processors.MinPLogitsWarper(sampler.min_p))
    ids = torch.zeros((len(values), 1), dtype=torch.long)
    out = processors.LogitsProcessorList(steps)(ids, torch.tensor(values))
    return out.softmax(-1).numpy()


samplers = st.builds(
    Sampler,
    temperature=st.sampled_from([0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 1, 7, 100, 1000]),
    top_p=st.sampled_from([1.0, 0.1, 0.6, 0.95]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)


@given(sampler=samplers, seed=st.integers(0, 999), scale=st.sampled_from([0.5, 5.0]))
@settings(deadline=None)
def test_filters_keep_what_those_of_transformers_keep(sampler, seed, scale):
    values = logits(seed=seed, scale=scale)
    expected = transformers_filtered(sampler, values)
    got = np.asarray(jax.nn.softmax(filtered(sampler, values), axis=-1))
    np.testing.assert_array_equal(got > 0, expected > 0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(
    "sampler",
    [Sampler(), Sampler(0.7, top_k=40, top_p=0.9), Sampler(1.3, min_p=0.05)],
)
@pytest.mark.parametrize("vocab", [3, 256, 700])
def test_frequencies_are_the_probabilities(sampler, vocab):
    count = 2**17
    values = logits(1, vocab, scale=1.5)
    keys = jax.random.split(jax.random.key(3), count)
    tokens, _ = pick(sampler, jnp.broadcast_to(values, (1024, vocab)), keys[:1024])
    draw = jax.jit(
        lambda keys: jax.lax.map(
            lambda part: sampler.pick(jnp.broadcast_to(values, (1024, vocab)), part)[0],
            keys.reshape(-1, 1024),
        )
    )
    drawn = np.asarray(draw(keys)).ravel()
    np.testing.assert_array_equal(drawn[:1024], tokens)
    probs = np.asarray(jax.nn.softmax(filtered(sampler, values)[0]), np.float64)
    counts = np.bincount(drawn, minlength=vocab)
    assert counts[probs == 0].sum() == 0
    # Rare tokens are counted together, for the chi-squared distribution to hold.
    common = probs * count >= 10
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probs[common], probs[~common].sum()) * count
    used = expected > 0
    distance = ((observed - expected)[used] ** 2 / expected[used]).sum()
    freedom = used.sum() - 1
    assert distance < freedom + 6 * np.sqrt(2 * freedom) + 20


@given(sampler=samplers, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=10)
def test_log_probabilities_are_the_models_own(sampler, seed):
    values = logits(seed=seed)
    tokens, found = pick(sampler, values, jax.random.split(jax.random.key(seed), 4))
    probs = np.exp(values.astype(np.float64))
    expected = np.log(probs / probs.sum(1, keepdims=True))
    np.testing.assert_allclose(found, expected[np.arange(4), tokens], rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1e-6])
def test_at_temperature_zero_the_most_likely_token_is_taken(temperature):
    values = logits(64, 5000)
    keys = jax.random.split(jax.random.key(0), 64)
    tokens, _ = pick(Sampler(temperature), values, keys)
    np.testing.assert_array_equal(tokens, values.argmax(1))


def test_a_row_draws_the_same_in_any_company():
    values, keys = logits(16), jax.random.split(jax.random.key(0), 16)
    tokens, log_probs = pick(Sampler(), values, keys)
    for rows in (slice(0, 1), slice(3, 11)):
        some, some_log_probs = pick(Sampler(), values[rows], keys[rows])
        np.testing.assert_array_equal(some, tokens[rows])
        np.testing.assert_allclose(some_log_probs, log_probs[rows], rtol=1e-6)


def test_huge_and_infinite_logits_are_drawn_from():
    values = np.full((2, 600), -np.inf, np.float32)
    values[0, [4, 599]] = 3e38, -3e38
    values[1, 599] = -3e38
    keys = jax.random.split(jax.random.key(0), 2)
    for sampler in (Sampler(), Sampler(top_p=0.5), Sampler(0.5, top_k=3, min_p=0.1)):
        assert pick(sampler, values, keys)[0].tolist() == [4, 599]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("temperature", -1.0, "0, or a number >= 1e-6"),
        ("temperature", float("nan"), "0, or a number >= 1e-6"),
        ("temperature", float("inf"), "0, or a number >= 1e-6"),
        ("temperature", 1e-9, "0, or a number >= 1e-6"),
        ("top_k", -1, ">= 0"),
        ("top_p", 0.0, "in (0, 1]"),
        ("top_p", 1.5, "in (0, 1]"),
        ("min_p", -0.1, "in [0, 1]"),
    ],
)
def test_settings_out_of_range_are_refused(name, value, wanted):
    with pytest.raises(ValueError) as error:
        Sampler(**{name: value})
    assert str(error.value) == f"{name}: {value} is not {wanted}"


def test_one_program_serves_all_keys():
    traced = jax.jit(functools.partial(Sampler.pick, Sampler(0.5)))
    for seed in range(3):
        traced(logits(seed=seed), jax.random.split(jax.random.key(seed), 4))
    assert traced._cache_size() == 1
