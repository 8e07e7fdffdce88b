"""A diagnosis is that of the step as taken, and its advice names what is wrong."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import ivon_jax
from ivon_jax.diagnostics import ENTRIES, QUANTILES, Diagnosis, diagnose
from ivon_jax.prior import FixedPrior, MatrixPrior

PARAMS = {"a": jnp.linspace(-1, 1, 24).reshape(8, 3), "b": jnp.full((3, 5), 0.25)}
XI, RATE = 0.3, 1e-3


def loss(params):
    return jnp.sum(jnp.tanh(jnp.ones((2, 8)) @ params["a"] @ params["b"]) ** 2)


def trained(tx, steps, params=PARAMS):
    """The mean before and after the last step, and the state."""
    state, before = tx.init(params), params
    for step in range(steps):
        key, before = jax.random.key(step), params
        _, grads, moments = ivon_jax.value_and_grad(loss)(key, params, state)
        updates, state = tx.update(grads, state, params, moments=moments)
        params = optax.apply_updates(params, updates)
    return before, params, state


@pytest.mark.parametrize(
    "tx, prior",
    [
        (
            ivon_jax.ivon_lora(RATE, 100.0, 0.1, beta2=0.9, clip_radius=XI),
            MatrixPrior(),
        ),
        (
            ivon_jax.ivon(
                RATE,
                100.0,
                0.1,
                beta2=0.9,
                weight_decay=0.02,
                clip_radius=XI,
                rescale_lr=False,
            ),
            FixedPrior(0.02),
        ),
    ],
    ids=["matrix prior", "fixed prior"],
)
def test_the_clipped_share_is_that_of_the_entries_that_moved_by_the_bound(tx, prior):
    before, after, state = trained(tx, 3)
    moved = np.concatenate(
        [np.ravel(np.abs(after[name] - before[name])) for name in before]
    )
    share = np.mean(np.isclose(moved, RATE * XI, rtol=1e-3))
    assert 0.1 < share < 0.9
    # The decay is that of the mean after the step: no entry is that close to the bound.
    found = jax.jit(lambda p, s: diagnose(p, s, 0.1, XI, prior))(after, state)
    np.testing.assert_allclose(found.clipped, share, atol=1e-6)
    assert found.steps == 3


def test_quantiles_and_noise_are_those_of_the_posterior():
    _, params, state = trained(ivon_jax.ivon_lora(0.1, 50.0, 0.1, beta2=0.5), 4)
    found = diagnose(params, state, 0.1)
    posterior = ivon_jax.Posterior.from_state(params, state)
    mean = np.concatenate([np.ravel(params[n]) for n in "ab"])
    sigma = np.concatenate([np.ravel(posterior.precision[n]) for n in "ab"]) ** -0.5
    (inner,) = [s for s in state if isinstance(s, ivon_jax.ScaleByIvonState)]
    hess = np.concatenate([np.ravel(inner.hess[n]) for n in "ab"])
    close = {"rtol": 1e-4}
    np.testing.assert_allclose(found.hess, np.quantile(hess / 0.1, QUANTILES), **close)
    ratio = np.quantile(abs(mean) / sigma, QUANTILES)
    np.testing.assert_allclose(found.signal_to_noise, ratio, **close)
    noise = np.linalg.norm(sigma) / np.linalg.norm(mean)
    np.testing.assert_allclose(found.noise, noise, **close)
    assert found.clipped == 0  # without a bound


def test_parts_without_ivon_do_not_count():
    tx = optax.partition(
        {"bayes": ivon_jax.ivon_lora(0.1, 50.0, 0.5), "plain": optax.sgd(0.1)},
        {"a": "bayes", "b": "plain"},
    )
    whole = diagnose(PARAMS, tx.init(PARAMS), 0.5)
    alone = {"a": PARAMS["a"]}
    part = diagnose(alone, ivon_jax.ivon_lora(0.1, 50.0, 0.5).init(alone), 0.5)
    for one, two in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one, two)


def test_of_many_entries_some_stand_for_all():
    params = {"w": jnp.arange(3 * ENTRIES, dtype=jnp.float32)}
    found = diagnose(
        params, ivon_jax.ivon(0.1, 4.0, 0.25, weight_decay=0.0).init(params), 0.25
    )
    expected = np.array(QUANTILES) * 3 * ENTRIES  # sigma is 1
    np.testing.assert_allclose(found.signal_to_noise, expected, rtol=1e-4)


SANE = Diagnosis(
    *map(np.float32, (100, 0.5)),
    np.float32([0.5, 0.9, 1.0, 2.0, 9.0]),
    np.float32([0.1, 1, 2, 3, 4]),
    np.float32(0.4),
)


@pytest.mark.parametrize(
    "change, words",
    [
        ({}, []),
        ({"hess": np.float32([0.995, 1, 1, 1, 1.005])}, ["lower beta2"]),
        ({"hess": np.float32([0.995, 1, 1, 1, 1.05])}, []),
        ({"clipped": np.float32(0.99)}, ["raise clip_radius"]),
        ({"noise": np.float32(9.0)}, []),
        ({"noise": np.float32(30.0)}, ["30.0 times as large as the mean; raise ess"]),
        ({"noise": np.float32(np.inf)}, ["raise ess"]),
        ({"noise": np.float32(20), "clipped": np.float32(1)}, ["clip", "raise ess"]),
    ],
)
def test_advice_is_a_line_for_each_thing_that_is_wrong(change, words):
    found = SANE._replace(**change)
    advice = found.advice()
    assert len(advice) == len(words)
    for line, word in zip(advice, words, strict=True):
        assert word in line
        assert "\n" not in line
    assert sum("advice" in line for line in found.lines()) == len(words)


def test_a_state_without_ivon_is_refused():
    with pytest.raises(ValueError, match="holds no IVON state"):
        diagnose(PARAMS, optax.sgd(0.1).init(PARAMS), 0.1)


@pytest.mark.parametrize("params", [{}, {"a": jnp.zeros((0, 3))}])
def test_a_state_without_entries_is_refused(params):
    state = ivon_jax.ivon_lora(0.1, 50.0).init(params)
    with pytest.raises(ValueError, match="^opt_state: its IVON state has no entries$"):
        diagnose(params, state, 0.1)


def test_a_mesh_of_explicit_axes_changes_nothing():
    tx = ivon_jax.ivon_lora(0.1, 50.0, 0.5)
    params = {"a": jnp.linspace(-1, 1, 48).reshape(2, 8, 3)}
    expected = diagnose(params, tx.init(params), 0.5)
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, NamedSharding(mesh, PartitionSpec(None, "x")))
        state = tx.init(params)
        eager = diagnose(params, state, 0.5)
        jitted = jax.jit(lambda params, state: diagnose(params, state, 0.5))(
            params, state
        )
    chex.assert_trees_all_close(eager, expected, rtol=1e-5)
    chex.assert_trees_all_close(jitted, expected, rtol=1e-5)
