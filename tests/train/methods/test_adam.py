"""Adam's weight decay; LoRA+, which moves B faster, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ivon_jax.lora import LoraConfig
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.methods.adam import Adam, AdamHyper
from ivon_jax.train.methods.base import Minibatch, linear_schedule
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.trainable import TRAINABLES, LoraOnly

RATIO, STEPS = 4.0, 5
HYPER = AdamHyper(
    steps=STEPS, warmup=1, batch_size=4, learning_rate=0.1, b_rate_ratio=RATIO
)
RNG = np.random.default_rng(0)
PARAMS = {
    "q_proj": {
        "a": jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32),
        "b": jnp.zeros((2, 3), jnp.float32),
    },
    "head": {"kernel": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)},
}
X = jnp.asarray(RNG.normal(size=(4, 5)), jnp.float32)


def loss(params, minibatch):
    product = X @ params["q_proj"]["a"] @ params["q_proj"]["b"] + X[:, :3]
    return jnp.sum(jnp.tanh(product @ params["head"]["kernel"]))


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_every_step_is_adamw_with_two_rates(weight_decay):
    hyper = dataclasses.replace(HYPER, weight_decay=weight_decay)
    method = Adam(hyper.resolve("commonsense", num_examples=8))
    params, state = PARAMS, method.init(PARAMS)
    rate = linear_schedule(0.1, STEPS, 1)
    tx = optax.partition(
        {
            "slow": optax.adamw(rate, weight_decay=weight_decay),
            "fast": optax.adamw(
                lambda step: RATIO * rate(step), weight_decay=weight_decay
            ),
        },
        {"q_proj": {"a": "slow", "b": "fast"}, "head": {"kernel": "slow"}},
    )
    wanted, other = PARAMS, tx.init(PARAMS)
    for _ in range(STEPS):
        found = method.step(loss, jax.random.key(0), params, state, Minibatch(X, {}))
        params, state = found.params, found.state
        grads = jax.grad(loss)(wanted, None)
        with jax.numpy_dtype_promotion("standard"):
            updates, other = tx.update(grads, other, wanted)
        wanted = optax.apply_updates(wanted, updates)
        for ours, theirs in zip(
            jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["adam", "swag", "adam-average", "ensemble", "ivon-lora", "ivon", "blob"]
)
def test_the_methods_of_adam_have_it(name):
    fields = {f.name for f in dataclasses.fields(METHODS[name].hyper_type)}
    assert ("b_rate_ratio" in fields) == (name not in ("ivon-lora", "ivon", "blob"))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [("b_rate_ratio", x, "> 0") for x in (0.0, -1.0, float("inf"))]
    + [("weight_decay", x, ">= 0") for x in (-1.0, float("inf"))],
)
def test_illegal_values_are_refused(name, value, wanted):
    hyper = dataclasses.replace(HYPER, **{name: value})
    with pytest.raises(ValueError, match=f"{name}: .* is not a number {wanted}"):
        hyper.resolve("commonsense", num_examples=8)


def test_it_needs_adapters():
    config = TrainConfig(train="full", method="adam", hyper=HYPER)
    with pytest.raises(ValueError, match="b_rate_ratio: only with --train lora"):
        resolve(config, "custom", 8)


def test_other_trainables_have_adapters_too(monkeypatch):
    """A registered choice that freezes the base has what goes with adapters."""
    monkeypatch.setitem(TRAINABLES, "full", LoraOnly())
    for change in ({}, {"lora": LoraConfig(init="pissa")}):
        config = TrainConfig(train="full", method="adam", hyper=HYPER, **change)
        assert resolve(config, "custom", 8).hyper.b_rate_ratio == RATIO
