"""Averages over posterior samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ivon_jax import Posterior
from ivon_jax.ensemble import average, ensemble_log_probs, pool

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(9, 4)), jnp.float32)
POSTERIOR = Posterior(
    {"w": jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), "b": jnp.ones(3)},
    {"w": jnp.asarray(RNG.uniform(1, 5, (4, 3)), jnp.float32)},
    {},
)


def logits_fn(params):
    return jnp.tanh(X @ params["w"]) * params["b"][None]


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 5, 7, 100])
def test_every_chunk_size_equals_a_loop(chunk_size):
    """7 samples: chunks of 2, 3 and 5 leave a rest."""
    actual = ensemble_log_probs(logits_fn, POSTERIOR, KEY, 7, chunk_size)
    assert actual.shape == (7, 9, 3)
    for index in range(7):
        logits = np.asarray(logits_fn(POSTERIOR.draw(KEY, index)), float)
        expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        np.testing.assert_allclose(actual[index], expected, rtol=1e-4, atol=1e-5)


def test_samples_are_those_of_the_posterior_whatever_their_number():
    few = ensemble_log_probs(logits_fn, POSTERIOR, KEY, 2)
    many = ensemble_log_probs(logits_fn, POSTERIOR, KEY, 6)
    np.testing.assert_allclose(few, many[:2], rtol=1e-6)
    assert not np.allclose(many[0], many[1])


def test_under_jit():
    eager = ensemble_log_probs(logits_fn, POSTERIOR, KEY, 4, 2)
    jitted = jax.jit(lambda key, p: ensemble_log_probs(logits_fn, p, key, 4, 2))
    np.testing.assert_allclose(jitted(KEY, POSTERIOR), eager, rtol=1e-5, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    logits=arrays(
        np.float32, (5, 4, 3), elements=st.floats(-30, 30, width=32)
    )
)  # fmt: skip
def test_average_is_the_log_of_the_mean_probability(logits):
    wide = logits.astype(float)
    probabilities = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    log_probs = jax.nn.log_softmax(jnp.asarray(logits))
    np.testing.assert_allclose(
        average(log_probs), np.log(probabilities.mean(0)), rtol=1e-5, atol=1e-5
    )


def test_average_does_not_underflow():
    """exp(-1000) is 0 in any float, its logarithm is not."""
    logits = jnp.array([[[0.0, -1000.0]], [[0.0, -1002.0]]])
    out = average(jax.nn.log_softmax(logits))
    expected = -1000 + np.log((1 + np.exp(-2.0)) / 2)
    np.testing.assert_allclose(out, [[0.0, expected]], rtol=1e-6)


def test_pooling_is_averaging_in_float64():
    log_probs = np.asarray(ensemble_log_probs(logits_fn, POSTERIOR, KEY, 5))
    for values in (log_probs, log_probs[..., 0]):
        wide = np.log(np.exp(values.astype(np.float64)).mean(0))
        np.testing.assert_allclose(pool(values), wide, rtol=1e-12, atol=1e-15)


def test_average_of_certain_and_impossible():
    log_probs = jnp.array([[[0.0, -jnp.inf]], [[0.0, -jnp.inf]]])
    np.testing.assert_array_equal(average(log_probs), [[0.0, -np.inf]])


def test_average_of_one_sample_is_itself():
    log_probs = ensemble_log_probs(logits_fn, POSTERIOR, KEY, 1)
    np.testing.assert_allclose(average(log_probs), log_probs[0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_16_bit_logits_become_float32(dtype):
    logits = jnp.array([[0.0, -300.0]], dtype)
    out = ensemble_log_probs(lambda _: logits, Posterior.point({}), KEY, 2)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out[0], [[0.0, -300.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("samples", "chunk_size", "message"),
    [(0, None, "samples: 0 is not >= 1"), (2, 0, "chunk_size: 0 is not >= 1")],
)
def test_wrong_sizes(samples, chunk_size, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        ensemble_log_probs(logits_fn, POSTERIOR, KEY, samples, chunk_size)
