"""BLoB: its KL, its update by hand, and its posterior from training to export."""

import itertools
import math
from fractions import Fraction
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax.noise import standard_normal
from ivon_jax.train.methods.base import Minibatch
from ivon_jax.train.methods.blob import Blob, BlobHyper, kl_gradients, kl_weight
from ivon_jax.train.step import microbatched

ORDERS, FORMS = ("official", "separate"), ("flipout", "shared")
A, B, G, BIAS = (f"layer/{name}" for name in ("a", "b", "g", "bias"))


@pytest.fixture
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def make(**hyper: Any) -> Blob:
    values = {"steps": 8, "warmup": 2, "batch_size": 8, "kl_cycle": 3} | hyper
    return Blob(BlobHyper(**values).resolve("custom", 64))


def start(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(4, 2)),
        "b": rng.normal(size=(2, 3)),
        "bias": rng.normal(size=3),
        "g": rng.uniform(0.2, 0.6, (4, 2)),
    }


# The KL.


def test_kl_and_its_gradients_are_those_of_torch(float64):
    torch = pytest.importorskip("torch")
    leaves, prior = start(), 0.3
    mean, root = (torch.tensor(leaves[n], requires_grad=True) for n in ("a", "g"))
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, root**2),
        torch.distributions.Normal(torch.zeros_like(mean), prior),
    ).sum()
    kl.backward()
    method = make(prior_std=prior)
    params = {"layer": jax.tree.map(jnp.asarray, leaves)}
    posterior = method.posterior(params, method.init(params))
    np.testing.assert_allclose(posterior.kl(), kl.item(), rtol=1e-6)  # float32 prior
    found = kl_gradients(params["layer"]["a"], params["layer"]["g"], prior)
    for one, other in zip(found, (mean, root), strict=True):
        np.testing.assert_allclose(one, other.grad.numpy(), rtol=1e-12)


def test_gradients_are_those_of_the_closed_form(float64):
    def kl(mean, root, prior):
        ratio = (root**4 + mean**2) / prior**2
        return jnp.sum((ratio - 1 - jnp.log(root**4 / prior**2)) / 2)

    mean, root = (jnp.asarray(start()[name]) for name in ("a", "g"))
    wanted = jax.grad(kl, (0, 1))(mean, root, 0.3)
    found = kl_gradients(mean, root, 0.3)
    chex.assert_trees_all_close(found, wanted, rtol=1e-12)
    negative = kl_gradients(mean, -root, 0.3)
    np.testing.assert_array_equal(negative[1], -found[1])


@given(cycle=st.integers(1, 2000), step=st.integers(0, 10_000))
def test_weights_of_a_cycle(cycle, step):
    i = step % cycle + 1
    wanted = float(Fraction(2**i, 2 ** (cycle + 1) - 1))
    found = float(kl_weight(jnp.int32(step), cycle))
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-37)


@given(
    examples=st.integers(1, 100_000),
    batch_size=st.integers(1, 64),
    power=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_the_cycle_is_a_power_of_the_examples_in_batches(examples, batch_size, power):
    hyper = BlobHyper(kl_gamma=math.pi / power, batch_size=batch_size)
    cycle = hyper.resolve("custom", examples).kl_cycle
    assert cycle == pytest.approx(100 * examples**power / batch_size, abs=1 + 1e-6)
    assert cycle >= 1


def test_without_data_the_posterior_becomes_the_prior():
    method = make(steps=400, kl_cycle=1, kl_learning_rate=1e-2, learning_rate=1e-9)
    params: Any = {"layer": jax.tree.map(jnp.float32, start())}
    state = method.init(params)

    @jax.jit
    def step(params, state):
        zero = lambda params, minibatch: 0.0 * jnp.sum(params["layer"]["a"])  # noqa: E731
        out = method.step(zero, jax.random.key(0), params, state, Minibatch({}, {}))
        return out.params, out.state

    for _ in range(400):
        params, state = step(params, state)
    std = params["layer"]["g"] ** 2
    np.testing.assert_allclose(std, method.hyper.prior_std, rtol=1e-3)
    assert np.abs(params["layer"]["a"]).max() < 0.05


# The update.


def slope(a, b, bias, inputs, target, weight):
    """The loss of a part of a batch, and its gradients by hand."""
    left = inputs @ a @ b + bias - target
    back = weight * left
    grads = inputs.T @ back @ b.T, (inputs @ a).T @ back, back.sum(0)
    return weight * (left**2).sum() / 2, grads


def draw(key, form, parts):
    """E of each part of the batch."""
    like = jnp.zeros((4, 2))
    if form == "shared":
        return [np.asarray(standard_normal(key, A, like, 0))] * parts
    keys = [jax.random.fold_in(key, i) for i in range(parts)] if parts > 1 else [key]
    return [np.asarray(jax.random.normal(one, like.shape)) for one in keys]


def by_hand(leaves, batches, keys, hyper, parts):
    """The parameters after each step, in NumPy."""
    leaves = {name: np.array(leaf) for name, leaf in leaves.items()}
    by_adam = ["a", "b", "bias"] + ["g"] * (hyper.order == "separate")
    first, second = (dict.fromkeys(by_adam, 0.0) for _ in range(2))
    cycle = hyper.kl_cycle
    for t, (key, (inputs, target)) in enumerate(zip(keys, batches, strict=True)):
        ramp = t / hyper.warmup
        if t > hyper.warmup:
            ramp = (hyper.steps - t) / (hyper.steps - hyper.warmup)
        loss, grads = 0.0, {name: np.zeros_like(leaf) for name, leaf in leaves.items()}
        for part, noise in enumerate(draw(key, hyper.noise_form, parts)):
            rows = slice(part, None, parts)
            a = leaves["a"] + leaves["g"] ** 2 * noise
            value, (da, db, dbias) = slope(
                a, leaves["b"], leaves["bias"], inputs[rows], target[rows], 1 / 8
            )
            dg = da * noise * 2 * leaves["g"]
            loss += value
            for name, grad in zip(leaves, (da, db, dbias, dg), strict=True):
                grads[name] += grad
        for name in by_adam:
            first[name] = 0.9 * first[name] + 0.1 * grads[name]
            second[name] = 0.999 * second[name] + 0.001 * grads[name] ** 2
            root = np.sqrt(second[name] / (1 - 0.999 ** (t + 1))) + 1e-6
            step = first[name] / (1 - 0.9 ** (t + 1)) / root
            leaves[name] = leaves[name] - hyper.learning_rate * ramp * step
        i = (t + 1) % cycle or cycle
        weight = 2**i / (2 ** (cycle + 1) - 1)
        rate, variance = hyper.kl_learning_rate * ramp, hyper.prior_std**2
        root = leaves["g"]
        pull = weight * 2 * root * (root**2 / variance - 1 / root**2)
        push = weight * leaves["a"] / variance
        left = grads["g"] if hyper.order == "official" else 0.0
        leaves["g"] = root - rate * (left + pull)
        leaves["a"] = leaves["a"] - rate * push
        grads["g"] += pull
        grads["a"] += push
        yield loss, math.sqrt(sum((g**2).sum() for g in grads.values())), leaves


def noisy_loss(params, minibatch):
    """The loss of the hand's, by the token ids as indices of inputs and targets."""
    layer, (inputs, target) = params["layer"], minibatch.batch
    a = layer["a"]
    if "noise" in minibatch.rngs:
        noise = jax.random.normal(minibatch.rngs["noise"], a.shape, a.dtype)
        a = a + layer["g"] ** 2 * noise
    left = inputs @ a @ layer["b"] + layer["bias"][None] - target
    return jnp.sum(left**2) / 16


@pytest.mark.parametrize(
    ("order", "form", "parts"), list(itertools.product(ORDERS, FORMS, (1, 2)))
)
def test_the_update_is_that_by_hand(order, form, parts, float64):
    # Rates that are exact in optax's float32 schedules.
    hyper = {"learning_rate": 1 / 32, "kl_learning_rate": 1 / 64, "steps": 10}
    method = make(order=order, noise_form=form, **hyper)
    rng = np.random.default_rng(1)
    batches = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 3))) for _ in range(8)]
    keys = [jax.random.fold_in(jax.random.key(2), t) for t in range(8)]
    params: Any = {"layer": jax.tree.map(jnp.asarray, start())}
    state = method.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}
    loss = microbatched(noisy_loss, parts)
    step = jax.jit(lambda *args: method.step(loss, *args))
    wanted = by_hand(start(), batches, keys, method.hyper, parts)
    for key, batch, (value, norm, leaves) in zip(keys, batches, wanted, strict=True):
        minibatch: Any = Minibatch(tuple(map(jnp.asarray, batch)), {})
        out = step(key, params, state, minibatch)
        params, state = out.params, out.state
        np.testing.assert_allclose(out.loss, value, rtol=1e-10)
        np.testing.assert_allclose(out.grad_norm, norm, rtol=1e-10)
        chex.assert_trees_all_close(params["layer"], leaves, rtol=1e-9, atol=1e-12)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), leaves, start())
    assert min(jax.tree.leaves(moved)) > 1e-3
