"""Monte-Carlo samples: averaged, redrawn, accumulated, and unbiased."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ivon_jax import Moments, ivon, ivon_lora, multi_steps, sample, value_and_grad
from ivon_jax._state import find_states, noise_moments, posterior_noise
from ivon_jax._tree import by_path

KEY = jax.random.key(5)
EVERY = 4
KEYS = jax.random.split(jax.random.key(3), EVERY)


def draw_params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = {"dense": {"bias": (4,), "kernel": (3, 4)}, "out": (4, 2)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), dtype),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


PARAMS = draw_params()


def loss_fn(params, target=0.3):
    hidden = jnp.tanh(params["dense"]["kernel"] + params["dense"]["bias"][None])
    return jnp.sum(jnp.square(hidden @ params["out"] - target))


def make():
    return ivon(0.05, ess=80.0, hess_init=0.5, beta1=0.8, beta2=0.9, weight_decay=0.1)


def assert_close(actual, expected, tolerance=1e-5):
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


def mean(trees):
    return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *trees)


GRAD = jax.jit(jax.value_and_grad(loss_fn))
DRAW = jax.jit(sample)


@pytest.mark.parametrize("mc_samples", [1, 2, 5])
def test_value_and_grad_equals_a_loop(mc_samples):
    opt_state = make().init(PARAMS)
    grad_fn = jax.jit(value_and_grad(loss_fn, mc_samples))
    loss, grads, moments = grad_fn(KEY, PARAMS, opt_state, 0.5)

    losses, all_grads, products, squares = [], [], [], []
    for index in range(mc_samples):
        theta = DRAW(KEY, PARAMS, opt_state, index)
        one_loss, one_grads = GRAD(theta, 0.5)
        losses.append(one_loss)
        all_grads.append(one_grads)
        eps = jax.tree.map(lambda t, m: t - m, theta, PARAMS)
        products.append(by_path(jax.tree.map(lambda e, g: e * g, eps, one_grads)))
        squares.append(by_path(jax.tree.map(lambda g: g * g, one_grads)))
    assert_close(loss, mean(losses))
    assert_close(grads, mean(all_grads))
    # theta - m rounds at the size of m, hence not closer than this.
    assert_close(moments, Moments(mean(products), mean(squares)), 1e-4)


@pytest.mark.parametrize("hess_approx", ["price", "gradsq"])
def test_moments_equal_redrawing(hess_approx):
    tx = ivon(0.1, ess=50.0, hess_approx=hess_approx)
    opt_state = tx.init(PARAMS)
    _, grads, moments = value_and_grad(loss_fn)(KEY, PARAMS, opt_state)
    given = tx.update(grads, opt_state, PARAMS, moments=moments)
    redrawn = tx.update(grads, opt_state, PARAMS, key=KEY)
    assert_close(given, redrawn, 1e-7)
    with_both = tx.update(grads, opt_state, PARAMS, moments=moments, key=KEYS[0])
    assert_close(with_both, given, 1e-7)


def test_sample_is_the_mean_plus_noise():
    opt_state = make().init(PARAMS)
    noise = posterior_noise(KEY, opt_state, 1)
    expected = {name: leaf + noise[name] for name, leaf in by_path(PARAMS).items()}
    assert_close(by_path(sample(KEY, PARAMS, opt_state, 1)), expected, 0)


def test_samples_of_16_bit_parameters_are_of_their_type():
    params = draw_params(jnp.bfloat16)
    opt_state = make().init(params)
    theta, noise = sample(KEY, params, opt_state), posterior_noise(KEY, opt_state)
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in noise.values()} == {jnp.dtype("float32")}


def test_posterior_noise_has_mean_zero_and_the_posteriors_variance():
    n = 200_000
    params = {"w": jnp.zeros(n)}
    noise = posterior_noise(KEY, ivon(0.1, 40.0, 2.0, weight_decay=0.5).init(params))
    z = np.asarray(noise["w"], float) * math.sqrt(40.0 * 2.5)
    assert abs(z.mean()) < 4 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 4 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96 / n)  # Var z^4 = 105 - 9


@pytest.mark.parametrize("mc_samples", [1, 8])
def test_hessian_estimate_is_unbiased_on_a_quadratic(mc_samples):
    """E[eps g]/v = A_jj for g = A (theta - c), whatever c, and A not diagonal."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6))
    a, c = root @ root.T / 6, rng.normal(size=6)
    ess, h0, delta = 30.0, 1.5, 0.5
    params = {"w": jnp.asarray(rng.normal(size=6), jnp.float32)}
    opt_state = ivon(0.1, ess, h0, weight_decay=delta).init(params)
    big_a, small_c = jnp.asarray(a, jnp.float32), jnp.asarray(c, jnp.float32)

    def quadratic(params):
        d = params["w"] - small_c
        return d @ big_a @ d / 2

    grad_fn = value_and_grad(quadratic, mc_samples)
    keys = jax.random.split(KEY, 40_000)
    _, grads, moments = jax.vmap(lambda key: grad_fn(key, params, opt_state))(keys)
    precision = ess * (h0 + delta)
    estimates = precision * np.asarray(moments.noise_grad["w"], float)
    error = estimates.std(0) / math.sqrt(len(keys))
    assert (np.abs(estimates.mean(0) - np.diag(a)) < 4.5 * error).all()
    # Wick: Var[eps_j g_j]/v^2 = b_j^2/v + A_jj^2 + sum_k A_jk^2, with b = A (m - c).
    b = a @ (np.asarray(params["w"], float) - c)
    variance = (b**2 * precision + np.diag(a) ** 2 + (a**2).sum(1)) / mc_samples
    np.testing.assert_allclose(estimates.var(0), variance, rtol=0.08)
    mean_error = np.asarray(grads["w"], float).mean(0) - b
    spread = np.sqrt((a**2).sum(1) / precision / mc_samples / len(keys))
    assert (np.abs(mean_error) < 4.5 * spread).all()


# --- micro-batches ------------------------------------------------------------------


TARGETS = np.random.default_rng(1).normal(size=(3, EVERY)).astype(np.float32)


def accumulate(tx, keys):
    """Takes three steps of EVERY micro-batches; nothing moves in between."""
    params, opt_state = PARAMS, tx.init(PARAMS)
    update = jax.jit(lambda *args, key: tx.update(*args, key=key))
    for step, micro in np.ndindex(TARGETS.shape):
        key = keys[step, micro]
        _, grads = GRAD(DRAW(key, params, opt_state), TARGETS[step, micro])
        updates, opt_state = update(grads, opt_state, params, key=key)
        moved = [bool(np.any(leaf)) for leaf in jax.tree.leaves(updates)]
        assert moved == [micro == EVERY - 1] * len(moved)
        params = optax.apply_updates(params, updates)
    return params, find_states(opt_state)


def test_multi_steps_averages_gradient_and_noise_times_gradient():
    keys = jax.random.split(KEY, TARGETS.shape)
    tx, params = ivon_lora(0.05, 80.0, clip_radius=1.0), PARAMS
    actual = accumulate(multi_steps(tx, EVERY), keys)

    opt_state = tx.init(params)
    for step, targets in enumerate(TARGETS):
        grads, products = [], []
        for target, key in zip(targets, keys[step], strict=True):
            grads.append(GRAD(DRAW(key, params, opt_state), target)[1])
            noise, leaves = posterior_noise(key, opt_state), by_path(grads[-1])
            products.append({name: noise[name] * leaves[name] for name in noise})
        moments = Moments(mean(products), dict.fromkeys(noise))
        updates, opt_state = tx.update(mean(grads), opt_state, params, moments=moments)
        params = optax.apply_updates(params, updates)
    assert_close(actual, (params, find_states(opt_state)))


def test_multi_steps_with_one_key_is_one_big_batch():
    tx, params, keys = make(), PARAMS, KEYS[:3]
    actual = accumulate(
        multi_steps(tx, EVERY), jnp.broadcast_to(keys[:, None], TARGETS.shape)
    )

    @jax.jit
    def big(theta, targets):
        losses = jax.vmap(lambda target: loss_fn(theta, target))(targets)
        return jnp.mean(losses)

    opt_state = tx.init(params)
    for targets, key in zip(TARGETS, keys, strict=True):
        grads = jax.grad(big)(sample(key, params, opt_state), jnp.asarray(targets))
        updates, opt_state = tx.update(grads, opt_state, params, key=key)
        params = optax.apply_updates(params, updates)
    assert_close(actual, (params, find_states(opt_state)))


def test_multi_steps_takes_the_moments_of_value_and_grad():
    """Also where each of two groups accumulates on its own."""
    labels = {"dense": "a", "out": "b"}
    parts = {name: multi_steps(make(), EVERY) for name in ("a", "b")}
    tx, params = optax.partition(parts, labels), PARAMS
    grad_fn = jax.jit(value_and_grad(loss_fn, mc_samples=2))
    update = jax.jit(lambda *args, moments: tx.update(*args, moments=moments))
    opt_state = tx.init(params)
    for key in KEYS:
        _, grads, moments = grad_fn(key, params, opt_state)
        updates, opt_state = update(grads, opt_state, params, moments=moments)
        params = optax.apply_updates(params, updates)

    start = make().init(PARAMS)
    grads, moments = mean([grad_fn(key, PARAMS, start)[1:] for key in KEYS])
    updates, _ = make().update(grads, start, PARAMS, moments=moments)
    assert_close(params, optax.apply_updates(PARAMS, updates))


def test_multi_steps_accumulates_16_bit_gradients_in_float32():
    params = {"w": jnp.zeros(5, jnp.bfloat16)}
    tx, every = multi_steps(make(), every=512), 512
    opt_state = tx.init(params)
    ones = {"w": params["w"] + 1}
    update = jax.jit(lambda state: tx.update(ones, state, params, key=KEY))
    for _ in range(every - 1):
        updates, opt_state = update(opt_state)
    assert updates["w"].dtype == jnp.bfloat16 and not updates["w"].any()
    # Added up in bfloat16, 1/512 is lost beside 1/2.
    np.testing.assert_allclose(opt_state.grads["w"], 511 / 512, rtol=1e-5)


def test_noise_moments_ignores_uncovered_leaves():
    moments = noise_moments({"out": jnp.full((4, 2), 2.0)}, PARAMS)
    assert_close(moments.noise_grad, {"out": 2 * PARAMS["out"]})
    assert_close(moments.squared_grad, {"out": jnp.square(PARAMS["out"])})


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_the_variance_of_the_hessian_estimate_falls_as_one_over_groups(groups):
    # Where the gradient is x whatever the noise, the estimate of one group is
    # z x sqrt(precision), and that of all is the mean of as many independent ones.
    params, ess, hess = {"w": jnp.zeros(2)}, 50.0, 3.0
    state = ivon(0.1, ess, hess_init=hess, weight_decay=0.0).init(params)
    x = jnp.outer(jnp.arange(1.0, groups + 1), jnp.array([1.0, -0.5]))

    def estimate(key):
        gradients = value_and_grad(lambda p, x: p["w"] @ x, groups=groups)
        return ess * hess * gradients(key, params, state, x)[2].noise_grad["w"]

    found = jax.jit(jax.vmap(estimate))(jax.random.split(KEY, 20_000))
    wanted = ess * hess * jnp.square(x).mean(0) / groups
    np.testing.assert_allclose(found.var(0), wanted, rtol=0.05)
    np.testing.assert_allclose(found.mean(0), 0, atol=4 * (wanted.max() / 2e4) ** 0.5)


def test_groups_are_samples_of_their_own_on_parts_of_the_data():
    params = {"w": jnp.array([0.5, -1.0, 2.0])}
    opt_state = ivon(0.1, ess=5.0, hess_init=0.2).init(params)
    x = jax.random.normal(jax.random.key(3), (4, 2, 3))  # groups, rows, features

    def loss_fn(params, x):
        return jnp.mean(jnp.square(jnp.tanh(x @ params["w"]) - 1))

    key, samples = jax.random.key(9), 3
    loss, grads, moments = jax.jit(value_and_grad(loss_fn, samples, groups=4))(
        key, params, opt_state, x
    )
    terms = []
    for group in range(4):
        for index in range(group * samples, (group + 1) * samples):
            theta = sample(key, params, opt_state, index)
            value, grad = jax.value_and_grad(loss_fn)(theta, x[group])
            terms.append((value, grad["w"], grad["w"] * (theta["w"] - params["w"])))
    means = [np.mean(np.stack(part), axis=0) for part in zip(*terms, strict=True)]
    np.testing.assert_allclose(loss, means[0], rtol=1e-5)
    np.testing.assert_allclose(grads["w"], means[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(moments.noise_grad["w"], means[2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("samples", "groups"), [(1, 1), (3, 1), (1, 2), (3, 2)])
def test_aux_is_that_of_each_sample(samples, groups):
    params = {"w": jnp.array([0.5, -1.0, 2.0])}
    opt_state = ivon(0.1, ess=5.0, hess_init=0.2).init(params)
    x = jax.random.normal(jax.random.key(3), (groups, 2, 3))

    def loss_fn(params, x):
        outputs = x @ params["w"]
        return jnp.mean(jnp.square(outputs)), {"outputs": outputs, "rows": 2}

    plain = value_and_grad(lambda *args: loss_fn(*args)[0], samples, groups)
    given = KEY, params, opt_state, x if groups > 1 else x[0]
    (loss, aux), grads, moments = jax.jit(
        value_and_grad(loss_fn, samples, groups, has_aux=True)
    )(*given)
    chex.assert_trees_all_close((loss, grads, moments), plain(*given), rtol=1e-5)
    axes = (groups,) * (groups > 1) + (samples,) * (samples > 1)
    outputs = aux["outputs"].reshape(groups * samples, 2)
    for index, found in enumerate(outputs):
        theta = sample(KEY, params, opt_state, index)
        expected = x[index // samples] @ theta["w"]
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_array_equal(aux["rows"], np.full(axes, 2))


def test_16_bit_gradients_of_many_samples_are_added_in_float32():
    params = {"w": jnp.zeros(2, jnp.bfloat16)}
    opt_state = ivon(0.1, ess=100.0).init(params)
    _, grads, _ = value_and_grad(lambda p: jnp.sum(p["w"].astype(float)), 600)(
        KEY, params, opt_state
    )
    chex.assert_trees_all_equal(grads, {"w": jnp.ones(2, jnp.bfloat16)})


@pytest.mark.parametrize("closed", ["gradients", "parameters", "both"])
def test_multi_steps_closed_over_arrays_of_a_mesh_of_explicit_axes(closed):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    tx = multi_steps(make(), every=2)

    def two_steps(params):
        state, found = tx.init(params), []
        grads = jax.tree.map(jnp.cos, params)

        @jax.jit
        def update(state, key, grads_in, params_in):
            grads_in = grads if closed != "parameters" else grads_in
            params_in = params if closed != "gradients" else params_in
            return tx.update(grads_in, state, params_in, key=key)

        for key in KEYS[:2]:
            updates, state = update(state, key, grads, params)
            found.append(updates)
        return found

    params = {"w": jnp.linspace(-1, 1, 32).reshape(8, 4)}
    expected = two_steps(params)
    with jax.set_mesh(mesh):
        sharding = NamedSharding(mesh, PartitionSpec("x"))
        found = two_steps(jax.device_put(params, sharding))
    assert_close(found, expected)
    assert all(x.sharding.spec[0] == "x" for x in jax.tree.leaves(found))
