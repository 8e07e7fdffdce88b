"""Flipout's noise, against its closed-form moments and against samples of A."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax.lora import Lora, LoraConfig
from ivon_jax.train.methods.flipout import Flipout

KEY = jax.random.key(5)
DRAWS = 20_000
RANK, INPUTS, OUTPUTS = 3, 40, 2  # two words of 32 signs
CONFIG = LoraConfig(rank=RANK, alpha=6.0, dropout=0.0, targets=("all-linear",))
SCALE = CONFIG.scale_at(())
FROZEN = {"params": {"kernel": jnp.zeros((INPUTS, OUTPUTS))}}
X = jax.random.normal(jax.random.key(1), (2, INPUTS))


def model_of(config=CONFIG, branch=None) -> Lora:
    base = nn.Dense(OUTPUTS, use_bias=False, name="out")
    return Lora(base, config, branch or Flipout(0.5))


@pytest.fixture(scope="module")
def adapters():
    keys = jax.random.split(jax.random.key(2), 3)
    return {
        "a": jax.random.normal(keys[0], (INPUTS, RANK)),
        "b": jax.random.normal(keys[1], (RANK, OUTPUTS)),
        "g": jax.random.uniform(keys[2], (INPUTS, RANK), minval=0.2, maxval=0.8),
    }


def output(adapters, noise=None, x=X):
    rngs = {} if noise is None else {"noise": noise}
    return model_of().apply(FROZEN | {"lora": adapters}, x, rngs=rngs)


def keys_of(draws: int = DRAWS):
    return jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(draws))


def token_variance(adapters, x=X):
    """Variance of each token's outputs over A ~ N(a, g^4)."""
    hidden = (x**2) @ adapters["g"] ** 4
    return np.asarray(SCALE**2 * (hidden @ adapters["b"] ** 2))


def assert_mean(samples, wanted):
    """Holds a mean over the first axis to 5 standard errors."""
    error = samples.std(0) / np.sqrt(len(samples))
    assert np.all(np.abs(samples.mean(0) - wanted) <= 5 * error + 1e-6)


def test_it_starts_as_lora_with_g_of_its_range():
    inits = {"params": KEY, "lora": jax.random.key(3)}
    ours = model_of(branch=Flipout(0.5)).init(inits, X)["lora"]
    lora = Lora(model_of().base, CONFIG).init(inits, X)["lora"]
    np.testing.assert_array_equal(ours["a"], lora["a"])
    assert not np.any(ours["b"])
    root = np.asarray(ours["g"])
    assert root.shape == ours["a"].shape and len(np.unique(root)) > root.size / 2
    assert 0.5 / np.sqrt(2) <= root.min() < 0.37 and 0.48 < root.max() <= 0.5


def test_without_its_key_it_is_lora(adapters):
    plain = {k: v for k, v in adapters.items() if k != "g"}
    lora = Lora(model_of().base, CONFIG).apply(FROZEN | {"lora": plain}, X)
    np.testing.assert_array_equal(output(adapters), lora)
    exact = adapters | {"g": jnp.zeros_like(adapters["g"])}
    np.testing.assert_array_equal(output(exact, KEY), lora)
    assert np.abs(output(adapters, KEY) - lora).max() > 0.1


def test_a_token_sees_a_sample_of_a_and_two_tokens_are_uncorrelated(adapters):
    flipped = np.asarray(jax.vmap(lambda key: output(adapters, key))(keys_of()))

    def shared(key):
        noise = adapters["g"] ** 2 * jax.random.normal(key, adapters["a"].shape)
        return output(adapters | {"a": adapters["a"] + noise})

    sampled = np.asarray(jax.vmap(shared)(keys_of()))
    mean, variance = np.asarray(output(adapters)), token_variance(adapters)
    for draws in (flipped, sampled):
        assert_mean(draws, mean)
        assert_mean((draws - mean) ** 2, variance)
    first, second = np.swapaxes(flipped - mean, 0, 1)
    assert_mean(first * second, 0.0)
    # The signs matter: one sample's noise of two tokens is correlated as they are.
    first, second = np.swapaxes(sampled - mean, 0, 1)
    together = SCALE**2 * ((X[0] * X[1]) @ adapters["g"] ** 4 @ adapters["b"] ** 2)
    assert_mean(first * second, np.asarray(together))
    assert np.abs(together).max() > 0.1 * variance.max()


def test_signs_average_the_noise_of_equal_tokens(adapters):
    tokens = 16
    same = jnp.tile(X[:1], (tokens, 1))

    def mean(key):
        return jnp.mean(output(adapters, key, same), axis=0)

    means = np.asarray(jax.vmap(mean)(keys_of(5000)))
    wanted = token_variance(adapters)[0] / tokens
    assert_mean((means - np.asarray(output(adapters))[0]) ** 2, wanted)


def test_gradient_of_g_is_unbiased(adapters):
    target = jnp.ones((2, OUTPUTS))

    def loss(root, key):
        out = output(adapters | {"g": root}, key)
        return jnp.sum((out - target) ** 2) / 2

    grads = jax.vmap(jax.grad(loss), (None, 0))(adapters["g"], keys_of())
    # E[loss] = |E[out] - target|^2 / 2 + sum of the variances / 2.
    wanted = jax.grad(
        lambda root: jnp.sum(SCALE**2 * ((X**2) @ root**4 @ adapters["b"] ** 2)) / 2
    )(adapters["g"])
    assert_mean(np.asarray(grads), np.asarray(wanted))


def test_the_two_terms_have_dropout_masks_of_their_own():
    config = LoraConfig(rank=1, alpha=1.0, dropout=0.5, targets=("all-linear",))
    model, ones = model_of(config), jnp.ones((400, INPUTS))
    # One input: an output is zero if it is dropped for both terms.
    alone = jnp.zeros((INPUTS, 1)).at[0].set(1.0)
    adapters = {"a": alone, "b": jnp.ones((1, OUTPUTS)), "g": alone}
    rngs = {"noise": KEY, "dropout": jax.random.key(6)}
    out = np.asarray(model.apply(FROZEN | {"lora": adapters}, ones, rngs=rngs))
    zero = np.all(out == 0, axis=1).mean()
    assert abs(zero - 1 / 4) < 5 * np.sqrt(3 / 16 / 400)


class Stack(nn.Module):
    """Layers that all read the same input, in a scan."""

    @nn.compact
    def __call__(self, x):
        class Layer(nn.Module):
            @nn.compact
            def __call__(self, carry, x):
                return carry, nn.Dense(OUTPUTS, use_bias=False, name="out")(x)

        scanned = nn.scan(
            nn.remat(Layer, prevent_cse=False),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True, "lora": True, "noise": True},
            in_axes=nn.broadcast,
            length=3,
        )
        return scanned(name="layers")(jnp.zeros(()), x)[1]


def test_layers_of_a_scan_draw_their_own_noise(adapters):
    model = Lora(Stack(), CONFIG, Flipout(0.5))
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), adapters)
    variables = {
        "params": {"layers": {"out": {"kernel": jnp.zeros((3, INPUTS, OUTPUTS))}}},
        "lora": {"layers": {"out": stacked}},
    }
    x = jnp.eye(INPUTS)[:1]  # its sign aside, it reads a row of E
    out = np.asarray(model.apply(variables, x, rngs={"noise": KEY}))
    assert len(np.unique(np.abs(out), axis=0)) == 3
    again = np.asarray(model.apply(variables, x, rngs={"noise": KEY}))
    np.testing.assert_array_equal(out, again)
