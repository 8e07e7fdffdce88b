"""IVON as optax expects an optimizer to behave, and its errors."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ivon_jax import (
    MatrixPrior,
    Posterior,
    ivon,
    ivon_lora,
    lora_ess,
    multi_steps,
    sample,
    scale_by_ivon,
    value_and_grad,
)
from ivon_jax._state import find_states, posterior_noise, posterior_precision

KEY = jax.random.key(0)
LONG = 5000
OPTIMIZERS = {
    "ivon": lambda: ivon(0.1, ess=100.0),
    "ivon_lora": lambda: ivon_lora(0.1, ess=100.0),
    "gradsq": lambda: ivon(0.1, ess=100.0, hess_approx="gradsq", clip_radius=1.0),
    "multi_steps": lambda: multi_steps(ivon_lora(0.1, ess=100.0), every=2),
}
every_optimizer = pytest.mark.parametrize(
    "make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys()
)


def slow(*case):
    """One more pair, where others already have each of its parts."""
    return pytest.param(*case, marks=pytest.mark.slow)


def draw_params(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    return {
        "a": jnp.asarray(rng.normal(size=(16, 4)), dtype),
        "b": {"c": jnp.asarray(rng.normal(size=8), dtype)},
    }


def shapes(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@every_optimizer
def test_unexpected_extra_args_are_accepted(make):
    tx, params = make(), draw_params()
    opt_state = tx.init(params)
    expected = tx.update(params, opt_state, params, key=KEY)
    extra = {"value": jnp.zeros([]), "unknown": "text"}
    actual = tx.update(params, opt_state, params, key=KEY, **extra)
    chex.assert_trees_all_equal(actual, expected)


@every_optimizer
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_one_trace_and_a_state_that_keeps_its_type(make, dtype):
    tx, params = make(), draw_params(dtype)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key, params, opt_state):
        grads = sample(key, params, opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, key=key)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    before = shapes(opt_state)
    for index in range(3):
        key = jax.random.fold_in(KEY, index)
        params, opt_state = step(key, params, opt_state)
    assert shapes(opt_state) == before
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    (state,) = find_states(opt_state)
    floats = jax.tree.leaves((state.ess, state.mu, state.hess, state.delta))
    assert {leaf.dtype for leaf in floats} == {jnp.dtype(jnp.float32)}


@every_optimizer
@pytest.mark.parametrize(
    ("axis_type", "dtype"),
    [
        (AxisType.Auto, jnp.float32),
        (AxisType.Explicit, jnp.float16),
        slow(AxisType.Auto, jnp.float16),
        slow(AxisType.Explicit, jnp.float32),
    ],
)
def test_sharded_state_keeps_its_sharding(make, axis_type, dtype):
    mesh = jax.make_mesh((8,), ("x",), axis_types=(axis_type,))
    with jax.set_mesh(mesh):
        tx = make()
        params = jax.device_put(
            draw_params(dtype), NamedSharding(mesh, PartitionSpec("x"))
        )
        opt_state = tx.init(params)

        @jax.jit
        def step(params, opt_state):
            theta = sample(KEY, params, opt_state)
            return tx.update(theta, opt_state, params, key=KEY)

        updates, new_state = step(params, opt_state)
        kept = jax.tree.map(
            lambda old, new: (
                old.shape == new.shape
                and old.dtype == new.dtype
                and old.sharding.is_equivalent_to(new.sharding, old.ndim)
            ),
            (params, opt_state),
            (updates, new_state),
        )
        assert all(jax.tree.leaves(kept)), kept
        (state,) = find_states(new_state)
        assert state.hess["a"].addressable_shards[0].data.shape == (2, 4)


@pytest.mark.parametrize("make", [OPTIMIZERS["ivon"], OPTIMIZERS["ivon_lora"]])
def test_map_params_reaches_every_parameter_tree(make):
    tx = make()
    marked = optax.tree.map_params(tx, lambda leaf: "params", tx.init(draw_params()))
    (state,) = find_states(marked)
    assert set(jax.tree.leaves((state.mu, state.hess, state.delta))) == {"params"}
    assert state.count.dtype == jnp.int32 and state.ess.shape == ()


@pytest.mark.parametrize("inside", ["nothing", "masked"])
def test_map_params_reaches_what_multi_steps_accumulates(inside):
    """Given a tree like the parameters, as of partition specs, and where masked."""
    inner, params = ivon_lora(0.1, ess=100.0), draw_params()
    specs = {"a": "spec of a", "b": {"c": "spec of c"}}
    kept = specs
    if inside == "masked":
        inner = optax.masked(inner, {"a": True, "b": {"c": False}})
        kept = {"a": "spec of a", "b": {"c": optax.MaskedNode()}}
    tx = multi_steps(inner, every=2)
    marked = optax.tree.map_params(
        tx,
        lambda leaf, spec: leaf if isinstance(leaf, optax.MaskedNode) else spec,
        tx.init(params),
        specs,
        transform_non_params=lambda _: None,
        is_leaf=lambda leaf: isinstance(leaf, optax.MaskedNode),
    )
    (state,) = find_states(marked)
    assert marked.grads == specs
    trees = (marked.noise_grad, marked.squared_grad, state.mu, state.hess, state.delta)
    assert all(tree == kept for tree in trees)
    assert marked.mini_step is state.count is state.ess is None


def rosenbrock(params):
    x, y = params["x"], params["y"]
    return jnp.sum(jnp.square(1 - x) + 2 * jnp.square(y - jnp.square(x)))


def parabola(params):
    return jnp.sum(jnp.square(params["x"] - 2)) + jnp.sum(jnp.square(params["y"] + 1))


def matrix(params):
    target = jnp.asarray([[2.0, 1.0, 0.5], [0.0, 1.0, -1.0]])
    return jnp.mean(jnp.square(params["x"] @ params["y"] - target))


STARTS = {
    parabola: {"x": jnp.zeros(3), "y": jnp.zeros((2, 2))},
    rosenbrock: {"x": jnp.zeros(2), "y": jnp.zeros(2)},
    matrix: {"x": 0.5 * jnp.eye(2), "y": 0.1 * jnp.ones((2, 3))},
}


def decay(count):
    return 0.1 * (1 - count.astype(float) / LONG)


LEARNERS = {
    "price": ivon(decay, 100.0, beta2=0.999, weight_decay=0.0),
    "gradsq": ivon(decay, 100.0, beta2=0.999, weight_decay=0.0, hess_approx="gradsq"),
    "lora": ivon_lora(decay, 100.0, hess_init=1.0, beta2=0.999, clip_radius=1.0),
}


@pytest.mark.parametrize(
    ("name", "loss_fn"),
    [
        ("price", rosenbrock),
        ("price", matrix),
        ("gradsq", parabola),
        ("lora", matrix),
        *(slow(name, parabola) for name in ("price", "lora")),
        *(slow(name, rosenbrock) for name in ("gradsq", "lora")),
        slow("gradsq", matrix),
    ],
)
def test_long_scan_converges(name, loss_fn):
    tx, start = LEARNERS[name], STARTS[loss_fn]

    def step(carry, key):
        params, opt_state = carry
        grads = jax.grad(loss_fn)(sample(key, params, opt_state))
        updates, opt_state = tx.update(grads, opt_state, params, key=key)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(KEY, LONG)
    (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), keys)
    assert float(loss_fn(params)) < 1e-3 * float(loss_fn(start))


def params_of(*shape):
    return {"w": jnp.ones(shape)}


def update_without(name):
    tx, params = ivon(0.1, 10.0), params_of(3)
    arguments = {"key": KEY, "params": params}
    del arguments[name]
    tx.update(params, tx.init(params), **arguments)


def multi_update_without_key():
    tx, params = multi_steps(ivon(0.1, 10.0), every=2), params_of(3)
    tx.update(params, tx.init(params), params)


def sample_from(tx, params=None, of=None):
    params = params_of(3) if params is None else params
    sample(KEY, params, tx.init(params if of is None else of))


WRONG = {
    "ess: 0 is not a number > 0": lambda: ivon(0.1, ess=0),
    "ess: nan is not a number > 0": lambda: scale_by_ivon(ess=math.nan),
    "ess: -1.0 is not a number > 0": lambda: scale_by_ivon(ess=np.float32(-1)),
    "ess: inf is not a number > 0": lambda: scale_by_ivon(ess=math.inf),
    "hess_init: -1.0 is not a number > 0": lambda: ivon(0.1, 1.0, hess_init=-1.0),
    "learning_rate: -0.1 is not >= 0": lambda: ivon(-0.1, 1.0),
    "learning_rate: nan is not >= 0": lambda: ivon_lora(math.nan, 1.0),
    "beta1: 1.0 is not in [0, 1)": lambda: ivon(0.1, 1.0, beta1=1.0),
    "beta1: -0.1 is not in [0, 1)": lambda: ivon_lora(0.1, 1.0, beta1=-0.1),
    "beta2: 1.5 is not in [0, 1)": lambda: ivon(0.1, 1.0, beta2=1.5),
    "clip_radius: 0.0 is not > 0": lambda: ivon(0.1, 1.0, clip_radius=0.0),
    "clip_radius: -1 is not > 0": lambda: ivon_lora(0.1, 1.0, clip_radius=-1),
    "weight_decay: -1.0 is not a number >= 0": lambda: ivon(
        0.1, 1.0, weight_decay=-1.0
    ),
    "mc_samples: 0 is not >= 1": lambda: value_and_grad(lambda p: p, mc_samples=0),
    "every: 0 is not >= 1": lambda: multi_steps(ivon(0.1, 1.0), every=0),
    "key: IVON's update needs the key given to sample": lambda: update_without("key"),
    "params: IVON's update needs the current mean": lambda: update_without("params"),
    "key: IVON's update": multi_update_without_key,
    "opt_state: holds no IVON state": lambda: sample_from(optax.adam(0.1)),
    "opt_state: two IVON states cover 'w'": lambda: sample_from(
        optax.chain(scale_by_ivon(1.0), scale_by_ivon(2.0))
    ),
    "params: lacks the leaf 'w'": lambda: sample_from(
        ivon(0.1, 1.0), {"sub": params_of(3)}, params_of(3)
    ),
    "params: two leaves are named 'a/b'": lambda: sample_from(
        ivon(0.1, 1.0), {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}
    ),
}


@pytest.mark.parametrize(("message", "call"), WRONG.items(), ids=WRONG.keys())
def test_wrong_use_is_a_one_line_error(message, call):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_hess_approx_names_the_legal_values():
    with pytest.raises(ValueError, match="'price' or 'gradsq'"):
        # Past the run-time type checker, which would object first.
        scale_by_ivon.__wrapped__(1.0, hess_approx="other")


def test_posterior_is_read_off_the_state():
    params = draw_params()
    tx = ivon(0.1, ess=50.0, hess_init=3.0, weight_decay=1.0)
    opt_state = tx.init(params)
    for precision in posterior_precision(opt_state).values():
        np.testing.assert_allclose(precision, 50.0 * 4.0)
    posterior = Posterior.from_state(params, opt_state)
    theta, drawn = sample(KEY, params, opt_state, 3), posterior.draw(KEY, 3)
    chex.assert_trees_all_equal(theta, drawn)
    noise = posterior_noise(KEY, opt_state, 3)
    np.testing.assert_allclose(theta["a"] - params["a"], noise["a"], atol=1e-6)
    assert all(float(s0) == 50.0 for s0 in posterior.prior_precision.values())


def test_lora_ess_and_first_step_of_the_preset():
    """lambda = gamma sqrt(N); the first sigma is 1/sqrt(lambda h0), see App. D."""
    ess = lora_ess(640)
    assert ess == pytest.approx(126491.1, rel=1e-6)
    tx = ivon_lora(1e-2, ess)
    params = {"b": jnp.zeros((400, 500))}
    opt_state = tx.init(params)
    theta = sample(KEY, params, opt_state)
    sigma = 1 / math.sqrt(ess * 0.05)
    n = theta["b"].size
    assert float(jnp.std(theta["b"])) == pytest.approx(sigma, rel=4 / math.sqrt(2 * n))
    assert isinstance(MatrixPrior().eta, float)
    updates, _ = tx.update(theta, opt_state, params, key=KEY)
    # No entry moves by more than learning rate times clip radius.
    assert float(jnp.max(jnp.abs(updates["b"]))) == pytest.approx(1e-2 * 5e-3)
