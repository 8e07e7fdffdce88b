"""IVON as a method is the authors' optimizer, on a schedule, at its samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peer_ivon import draw_params, flat, loss, run_torch

from ivon_jax import Posterior
from ivon_jax.train.methods.base import Minibatch, linear_schedule
from ivon_jax.train.methods.ivon import Ivon, IvonHyper
from ivon_jax.train.methods.ivon_lora import IvonLora, IvonLoraHyper

# The schedule is in float32: with such numbers it is exact.
STEPS = 20
GIVEN = IvonHyper(
    steps=STEPS,
    warmup=4,
    learning_rate=0.125,
    beta1=0.8,
    beta2=0.97,
    ess=50.0,
    hess_init=0.25,
    weight_decay=0.02,
    clip_radius=0.3,
)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def steps(method, start, keys, batch):
    """Parameters and posterior after every step on the same batch."""
    minibatch = Minibatch(batch, {})
    params = jax.tree.map(jnp.asarray, start)
    state = method.init(params)
    step = jax.jit(
        lambda key, params, state: method.step(
            lambda params, minibatch: loss(jnp, params, *minibatch.batch),
            key,
            params,
            state,
            minibatch,
        )
    )
    for key in keys:
        found = step(key, params, state)
        params, state = found.params, found.state
        yield params, method.posterior(params, state)


@pytest.mark.parametrize("mc_samples", [1, 3])
def test_every_step_equals_torch(mc_samples, float64, monkeypatch):
    hyper = IvonHyper(**{**vars(GIVEN), "mc_samples": mc_samples})
    method = Ivon(hyper.resolve("commonsense", num_examples=8))
    rng = np.random.default_rng(0)
    start, batch = draw_params(rng), (rng.normal(size=(8, 3)), rng.normal(size=(8, 2)))
    keys = jax.random.split(jax.random.key(1), STEPS)
    schedule = linear_schedule(GIVEN.learning_rate, STEPS, GIVEN.warmup)
    rates = [float(schedule(step)) for step in range(STEPS)]
    settings = {
        name: getattr(GIVEN, name)
        for name in (
            "ess",
            "hess_init",
            "beta1",
            "beta2",
            "weight_decay",
            "clip_radius",
        )
    }
    theirs = run_torch(
        start,
        [batch] * STEPS,
        keys,
        rates,
        mc_samples,
        settings | {"rescale_lr": False},
        monkeypatch,
    )
    ours = steps(method, start, keys, batch)
    for (params, posterior), (mean, _, hess) in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(flat(params), mean, rtol=1e-10, atol=1e-10)
        precision = np.concatenate([np.ravel(p) for p in posterior.precision.values()])
        wanted = hyper.ess * (hess + hyper.weight_decay)
        np.testing.assert_allclose(precision, wanted, rtol=1e-10)
    assert np.linalg.norm(flat(params) - flat(start)) > 1e-3


def test_the_prior_has_precision_lambda_times_delta():
    method = Ivon(GIVEN.resolve("commonsense", num_examples=8))
    params = {"w": jnp.asarray([[0.5, -1.0]])}
    posterior = method.posterior(params, method.init(params))
    assert posterior.prior_precision["w"] == pytest.approx(50 * 0.02)
    # KL of N(m, v) against N(0, 1/s0), entry by entry.
    s0, variance = 1.0, 1 / (50 * (0.25 + 0.02))
    m = np.array([0.5, -1.0])
    wanted = 0.5 * np.sum(s0 * (m**2 + variance) - 1 - np.log(s0 * variance))
    assert float(posterior.kl()) == pytest.approx(wanted, rel=1e-5)


def test_with_a_flat_prior_it_starts_at_the_posterior_of_ivon_lora():
    shared = {k: v for k, v in vars(GIVEN).items() if k != "weight_decay"}
    flat_prior = Ivon(IvonHyper(**shared, weight_decay=0.0).resolve("commonsense", 8))
    lora = IvonLora(IvonLoraHyper(**shared).resolve("commonsense", 8))
    params = {"w": jnp.ones((3, 2))}
    first, other = (m.posterior(params, m.init(params)) for m in (flat_prior, lora))
    assert isinstance(first, Posterior)
    np.testing.assert_array_equal(first.precision["w"], other.precision["w"])


def test_lambda_is_gamma_root_n_by_default():
    """As IVON-LoRA's, so that only the prior differs between the two."""
    shared = {k: v for k, v in vars(IvonHyper()).items() if k != "weight_decay"}
    for family in ("commonsense", "glue"):
        own = vars(IvonHyper().resolve(family, 400))
        assert own.pop("weight_decay") == 1e-4
        assert own == vars(IvonLoraHyper(**shared).resolve(family, 400))
