"""Step for step the authors' own optimizer, given the same noise, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from peer_ivon import draw_params, flat, loss, run_torch

from ivon_jax import ivon, sample, value_and_grad
from ivon_jax._state import find_states

STEPS = 50
TOLERANCE = 1e-10
# torch rounds hess_init to float32, so it is one that float32 has exactly.
SETTINGS = {
    "ess": 50.0,
    "hess_init": 0.25,
    "beta1": 0.8,
    "beta2": 0.97,
    "weight_decay": 0.02,
}
CASES = {
    "authors' defaults": {
        "hess_init": 1.0,
        "beta1": 0.9,
        "beta2": 0.99999,
        "weight_decay": 1e-4,
    },
    "price": {},
    "gradsq": {"hess_approx": "gradsq"},
    "price, K=3": {"mc_samples": 3},
    "gradsq, K=3": {"hess_approx": "gradsq", "mc_samples": 3},
    "clip": {"clip_radius": 0.2},
    "no decay": {"weight_decay": 0.0},
    "no rescale": {"rescale_lr": False},
    "no debias": {"debias": False},
    "schedule": {"schedule": True},
    "all": {
        "clip_radius": 0.3,
        "weight_decay": 0.1,
        "rescale_lr": False,
        "debias": False,
        "mc_samples": 3,
        "hess_approx": "gradsq",
        "schedule": True,
    },
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def run_ours(start, batches, keys, schedule, mc_samples, settings):
    params = jax.tree.map(jnp.asarray, start)
    tx = ivon(schedule, **settings)
    opt_state = tx.init(params)
    loss_fn = lambda params, x, y: loss(jnp, params, x, y)  # noqa: E731

    @jax.jit
    def step(key, params, opt_state, x, y):
        if mc_samples == 1:  # the README's loop, which redraws the noise
            grads = jax.grad(loss_fn)(sample(key, params, opt_state), x, y)
            extra = {"key": key}
        else:
            _, grads, moments = value_and_grad(loss_fn, mc_samples)(
                key, params, opt_state, x, y
            )
            extra = {"moments": moments}
        updates, opt_state = tx.update(grads, opt_state, params, **extra)
        return optax.apply_updates(params, updates), opt_state

    for key, (x, y) in zip(keys, batches, strict=True):
        params, opt_state = step(key, params, opt_state, x, y)
        (state,) = find_states(opt_state)
        yield flat(params), flat(state.mu), flat(state.hess)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_step_equals_torch(case, monkeypatch):
    settings = SETTINGS | case
    mc_samples = settings.pop("mc_samples", 1)
    if settings.pop("schedule", False):
        schedule = lambda count: 0.1 * jnp.sin(jnp.asarray(count, float) / 16)  # noqa: E731
    else:
        schedule = lambda count: 0.05  # noqa: E731
    rng = np.random.default_rng(0)
    start = draw_params(rng)
    batches = [(rng.normal(size=(8, 3)), rng.normal(size=(8, 2)))] * STEPS
    keys = jax.random.split(jax.random.key(1), STEPS)
    rates = [float(schedule(step)) for step in range(STEPS)]

    ours = run_ours(start, batches, keys, schedule, mc_samples, settings)
    theirs = run_torch(start, batches, keys, rates, mc_samples, settings, monkeypatch)
    steps = 0
    for own, other in zip(ours, theirs, strict=True):
        for mine, expected in zip(own, other, strict=True):
            np.testing.assert_allclose(mine, expected, rtol=TOLERANCE, atol=TOLERANCE)
        steps += 1
    assert steps == STEPS
    assert np.linalg.norm(own[0] - flat(start)) > 1e-3  # it did move
    assert math.isfinite(own[2].sum())
