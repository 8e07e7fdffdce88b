"""The algorithm: against numpy, closed forms, and an adversary."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax import (
    FixedPrior,
    MatrixPrior,
    ivon_lora,
    lora_ess,
    sample,
    scale_by_ivon,
    value_and_grad,
)
from ivon_jax._state import find_states, posterior_noise, posterior_precision
from ivon_jax._tree import by_path
from ivon_jax.noise import standard_normal

# --- IVON-LoRA is the published Alg. 1, with the correction divided by h --------------


def numpy_ivon_lora(mean, noise, grad_fn, lr, ess, h0, beta1, beta2, xi, eta, scaled):
    """One leaf of IVON-LoRA in the notation of the paper."""
    m, g, h = mean, np.zeros_like(mean), np.full_like(mean, h0)
    axes = tuple(range(-min(mean.ndim, 2), 0))
    delta = np.zeros_like(m.mean(axes, keepdims=True))
    for t, z in enumerate(noise, 1):
        v = 1 / (ess * (h + delta))
        eps = np.sqrt(v) * z
        grad = grad_fn(m + eps)
        f = ess * (h + delta) * eps * grad
        g = beta1 * g + (1 - beta1) * grad
        delta = 1 / (m**2 + v).mean(axes, keepdims=True)
        if scaled:
            delta = delta / ess
        x = (1 - beta2) * (f - h) / h
        h = h * (1 + x + x**2 / 2)
        step = (g / (1 - beta1**t) + eta * delta * m) / (h + delta)
        m = m - lr * np.clip(step, -xi, xi)
        yield m, g, h, np.broadcast_to(delta, h.shape)


@pytest.mark.parametrize(
    ("eta", "scaled", "xi"), [(0.0, True, 0.5), (1.0, True, 0.5), (0.3, False, np.inf)]
)
def test_ivon_lora_equals_numpy(eta, scaled, xi):
    rng = np.random.default_rng(0)
    start = {
        "a": rng.normal(size=(2, 5, 3)),  # two stacked layers
        "b": np.zeros((2, 3, 4)),
        "deep": rng.normal(size=(2, 3, 4, 2)),
        "head": rng.normal(size=(4, 6)),
        "scalar": rng.normal(size=()),
        "vector": rng.normal(size=7),
    }
    hyper = {"ess": 200.0, "beta1": 0.8, "beta2": 0.98}
    steps = 60
    grad_fn = lambda xp, theta: 0.7 * theta - xp.sin(3 * theta) + 0.1  # noqa: E731
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, start)
        prior = MatrixPrior(scaled=scaled, eta=eta)
        tx = ivon_lora(0.02, hess_init=0.3, clip_radius=xi, prior=prior, **hyper)

        def step(carry, key):
            params, opt_state = carry
            theta = sample(key, params, opt_state)
            grads = jax.tree.map(lambda leaf: grad_fn(jnp, leaf), theta)
            updates, opt_state = tx.update(grads, opt_state, params, key=key)
            params = optax.apply_updates(params, updates)
            (state,) = find_states(opt_state)
            delta = jax.tree.map(
                lambda d, h: jnp.broadcast_to(d, h.shape), state.delta, state.hess
            )
            return (params, opt_state), (params, state.mu, state.hess, delta)

        keys = jax.random.split(jax.random.key(3), steps)
        _, ours = jax.lax.scan(step, (params, tx.init(params)), keys)
        draw = jax.vmap(standard_normal, in_axes=(0, None, None, None))
        noise = {n: np.asarray(draw(keys, n, leaf, 0)) for n, leaf in params.items()}
    for name, mean in start.items():
        leaf_grad = lambda theta: grad_fn(np, theta)  # noqa: E731
        theirs = numpy_ivon_lora(
            mean, noise[name], leaf_grad, 0.02, h0=0.3, xi=xi, eta=eta, scaled=scaled,
            **hyper,
        )  # fmt: skip
        for mine, expected in zip(ours, zip(*theirs, strict=True), strict=True):
            np.testing.assert_allclose(mine[name], np.stack(expected), 1e-9, 1e-12)


# --- Positivity, whatever gradient and prior do ---------------------------------------


@dataclass(frozen=True)
class AnyPrior(MatrixPrior):
    """A moving prior whose delta is whatever the adversary says."""

    value: jax.Array | float = 0.0

    def update(self, delta, mean, variance, ess):
        return jnp.zeros_like(delta) + self.value


PRIORS = {
    "fixed": lambda delta: FixedPrior(delta),  # as with a schedule on weight_decay
    "matrix": lambda delta: MatrixPrior(),
    "unscaled": lambda delta: MatrixPrior(scaled=False, eta=1.0),
    "any": lambda delta: AnyPrior(value=delta),
}
SHAPE = (2, 3)
ATTACKS = 24
magnitudes = st.one_of(st.floats(-38, 38), st.sampled_from([-45.0, 0.0, 38.4]))
attack = st.tuples(
    st.integers(0, 3),  # which gradient, see `attacker`
    magnitudes,  # log10 of its size
    st.floats(-18, 18),  # log10 of the mean, which moves the matrix prior
    st.one_of(st.just(-np.inf), st.floats(-12, 12)),  # log10 of the free priors
)


def attacker(kind, size, noise, state, rho, bound):
    """A gradient chosen by someone who knows the noise and the state."""
    distance = state.hess["w"] - bound
    scale = state.ess * (state.hess["w"] + state.delta["w"]) * noise
    return jnp.stack(
        [
            jnp.full(SHAPE, size) * jnp.array([[1.0, -1.0, 1.0]]),
            -size * jnp.sign(noise),  # a negative Hessian estimate of any size
            (state.hess["w"] - distance / rho) / scale,  # x = -1: the deepest step
            (state.hess["w"] - 2 * distance / rho) / scale,  # x = -2: the way back
        ]
    )[kind]


def attacked(make_prior, hess_approx, seed, ess, beta2, attacks):
    """Runs all attacks; returns each step's state, legality and precision."""

    def step(state, inputs):
        key, kind, size, mean, delta = inputs
        prior = make_prior(delta)
        tx = scale_by_ivon(ess, prior, 1e-2, beta2=beta2, hess_approx=hess_approx)
        noise = posterior_noise(key, state)["w"]
        bound = prior.hess_bound(state.delta["w"])
        grad = attacker(kind, size, noise, state, 1 - beta2, bound)
        grad = jnp.clip(grad, -3e38, 3e38)  # finite, as training sees to
        params = {"w": jnp.full(SHAPE, mean)}
        _, state = tx.update({"w": grad}, state, params, key=key)
        above = state.hess["w"] > prior.hess_bound(state.delta["w"])
        return state, (state, above, posterior_precision(state)["w"])

    keys = jax.random.split(jax.random.key(seed), ATTACKS)
    params = {"w": jnp.zeros(SHAPE)}
    start = scale_by_ivon(ess, make_prior(attacks[-1][0]), 1e-2).init(params)
    return jax.lax.scan(step, start, (keys, *attacks))[1]


ATTACKED = jax.jit(attacked, static_argnums=(0, 1))


@pytest.mark.parametrize("hess_approx", ["price", "gradsq"])
@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS.keys())
@settings(max_examples=100, deadline=None)
@given(
    attacks=st.lists(attack, min_size=ATTACKS, max_size=ATTACKS),
    seed=st.integers(0, 2**31 - 1),
    ess=st.sampled_from([1e-3, 1.0, 1e5, 1e10]),
    beta2=st.sampled_from([0.0, 0.5, 0.9995, 0.99999]),
)
def test_precision_stays_positive_and_finite(
    prior, hess_approx, attacks, seed, ess, beta2
):
    kinds, *logarithms = zip(*attacks, strict=True)
    numbers = [np.minimum(10.0 ** np.array(x), 3e38) for x in logarithms]
    columns = [np.int32(kinds), *map(np.float32, numbers)]
    args = np.float32(ess), np.float32(beta2), columns
    state, above, precision = ATTACKED(prior, hess_approx, seed, *args)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert above.all()
    assert (np.asarray(precision) > 0).all() and np.isfinite(precision).all()


def test_falling_weight_decay_leaves_precision():
    """A smaller delta and a step each at most halve h + delta, however small it is."""
    params = {"w": jnp.zeros(100)}
    state = scale_by_ivon(1e3, FixedPrior(0.1)).init(params)
    state = state._replace(hess={"w": jnp.linspace(-0.099, 0.1, 100)})
    before = state.hess["w"] + state.delta["w"]
    tx = scale_by_ivon(1e3, FixedPrior(1e-3), beta2=0.9)
    grads = {"w": jax.random.normal(jax.random.key(1), (100,))}
    _, state = tx.update(grads, state, params, key=jax.random.key(2))
    after = state.hess["w"] + state.delta["w"]
    assert (after >= before / 4 * (1 - 1e-4)).all()


def test_unmoved_matrix_under_the_printed_prior_stays_finite():
    tx = scale_by_ivon(1e5, MatrixPrior(scaled=False))
    params = grads = {"b": jnp.zeros((3, 4))}
    state = tx.init(params)
    for step in range(20):
        key = jax.random.fold_in(jax.random.key(0), step)
        _, state = tx.update(grads, state, params, key=key)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


# --- What it converges to -------------------------------------------------------------


def run(tx, loss_fn, params, steps, seed=0, mc_samples=1):
    """Runs IVON, and returns the last params, state and the mean of grad^2."""
    grad_fn = value_and_grad(loss_fn, mc_samples)

    def step(carry, key):
        params, state = carry
        _, grads, moments = grad_fn(key, params, state)
        updates, state = tx.update(grads, state, params, moments=moments)
        squares = jax.tree.map(jnp.square, grads)
        return (optax.apply_updates(params, updates), state), squares

    @jax.jit
    def loop(params):
        keys = jax.random.split(jax.random.key(seed), steps)
        carry, squares = jax.lax.scan(step, (params, tx.init(params)), keys)
        return *carry, jax.tree.map(lambda x: jnp.mean(x[-steps // 2 :], 0), squares)

    return loop(params)


@pytest.mark.parametrize(("curvature", "mean"), [(1.0, 0.0), (1.0, 0.4), (2.0, 0.3)])
def test_hess_of_a_quadratic(curvature, mean):
    """E[h] = a + rho/2 Var[f]/(h+delta), Var[f] = a^2 (m^2 lambda (h+delta) + 2).

    f = a (m eps + eps^2)/v has E[f] = a, and its variance follows from the Gaussian
    moments E[eps^2] = v, E[eps^4] = 3 v^2. Its first term is the bias
    rho/2 lambda E[g^2] that IVON's positivity brings. Terms of rho^2 are left out.
    """
    ess, rho, delta, n = 100.0, 0.01, 0.5, 10_000
    tx = scale_by_ivon(ess, FixedPrior(delta), 0.5, beta2=1 - rho)
    frozen = optax.chain(tx, optax.scale(0.0))
    loss_fn = lambda p: jnp.sum(curvature * jnp.square(p["w"]) / 2)  # noqa: E731
    _, opt_state, _ = run(frozen, loss_fn, {"w": jnp.full(n, mean)}, 1500)
    hess = np.asarray(find_states(opt_state)[0].hess["w"], float)

    a, total = curvature, curvature + delta
    bias = rho / 2 * a**2 * (mean**2 * ess + 2 / total)
    # 4 standard errors of n independent entries, and rho^2 times the same moments.
    tolerance = 4 * hess.std() / math.sqrt(n) + rho * bias + 3 * rho**2 * a
    assert abs(hess.mean() - (a + bias)) < tolerance
    if mean:
        assert bias > 5 * tolerance  # the bias is seen, not lost in the noise


def test_posterior_of_linear_regression():
    """Mean: ridge regression. Precision: lambda (diag H + delta) + IVON's bias."""
    data, features, replicas = 40, 6, 400
    ess, delta, rho = float(data), 0.1, 0.01
    rng = np.random.default_rng(0)
    x = rng.normal(size=(data, features)) @ (
        np.eye(features) + 0.3 * rng.normal(size=(features, features))
    )
    y = x @ rng.normal(size=features) + rng.normal(size=data)
    hessian = x.T @ x / data
    ridge = np.linalg.solve(hessian + delta * np.eye(features), x.T @ y / data)

    xs, ys = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)

    def loss_fn(params):
        error = params["w"] @ xs.T - ys[None]
        return jnp.sum(jnp.mean(jnp.square(error), axis=1)) / 2

    tx = optax.chain(
        scale_by_ivon(ess, FixedPrior(delta), 1.0, beta2=1 - rho),
        optax.scale_by_learning_rate(0.02),
    )
    start = {"w": jnp.zeros((replicas, features))}
    params, opt_state, squares = run(tx, loss_fn, start, 2000)
    means, hess = params["w"], find_states(opt_state)[0].hess["w"]

    error = np.mean(means, 0) - ridge
    assert (np.abs(error) < 4 * np.std(means, 0) / math.sqrt(replicas)).all()
    # Var[f] = lambda (h+delta) E[g^2] for a gradient independent of eps, and a^2 more
    # because the gradient at m + eps is not.
    a = np.diag(hessian)
    bias = rho / 2 * (ess * np.mean(squares["w"], 0) + a**2 / (a + delta))
    tolerance = 4 * np.std(hess, 0) / math.sqrt(replicas) + rho * a
    assert (np.abs(np.mean(hess, 0) - (a + bias)) < tolerance).all()
    precision = np.mean(posterior_precision(opt_state)["w"], 0)
    np.testing.assert_allclose(precision, ess * (a + bias + delta), rtol=0.05)


def test_printed_prior_freezes_b_and_the_scaled_one_does_not():
    """Eq. 2 as printed lets delta of B, which starts at zero, run away."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
    labels = jnp.argmax(x[:, :3], axis=1)
    start = {
        "a": jnp.asarray(rng.uniform(-0.25, 0.25, size=(16, 4)), jnp.float32),
        "b": jnp.zeros((4, 3)),
    }

    def loss_fn(params):
        logits = 2.0 * (x @ params["a"] @ params["b"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    end = {}
    for scaled in (True, False):
        tx = ivon_lora(0.05, lora_ess(64, 1000.0), prior=MatrixPrior(scaled=scaled),
                       clip_radius=0.1)  # fmt: skip
        params, opt_state, _ = run(tx, loss_fn, start, 400)
        end[scaled] = params, find_states(opt_state)[0].delta["b"], loss_fn(params)
    start_loss = math.log(3)
    params, delta, loss = end[False]
    assert float(jnp.max(jnp.abs(params["b"]))) < 1e-4
    assert float(delta.min()) > 1e8
    assert float(loss) == pytest.approx(start_loss, abs=1e-4)
    params, delta, loss = end[True]
    assert float(jnp.max(jnp.abs(params["b"]))) > 0.1
    assert float(delta.max()) < 10
    assert float(loss) < 0.7 * start_loss


def test_growing_a_stack_changes_no_layer():
    """Layers stacked on leading axes have priors of their own."""
    prior = MatrixPrior()
    rng = np.random.default_rng(0)
    mean = jnp.asarray(rng.normal(size=(3, 2, 4, 5)), jnp.float32)
    variance = jnp.square(mean) + 0.1
    ess = jnp.asarray(10.0)
    stacked = prior.update(prior.init(mean), mean, variance, ess)
    assert stacked.shape == (3, 2, 1, 1)
    for i, j in np.ndindex(3, 2):
        m, v = mean[i, j], variance[i, j]
        alone = prior.update(prior.init(m), m, v, ess)
        expected = 1 / (10 * np.mean(np.square(m) + v))
        np.testing.assert_allclose(stacked[i, j], alone, rtol=1e-6)
        np.testing.assert_allclose(alone, [[expected]], rtol=1e-5)


def test_path_names():
    tree = {"a": {"b": jnp.zeros(1)}, "c": [jnp.ones(1), jnp.ones(2)]}
    assert list(by_path(tree)) == ["a/b", "c/0", "c/1"]
