"""IVON inside optax's wrappers walks the same path as IVON alone."""

from collections import OrderedDict

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ivon_jax import (
    FixedPrior,
    Posterior,
    ivon,
    ivon_lora,
    multi_steps,
    sample,
    scale_by_ivon,
    value_and_grad,
)
from ivon_jax._state import find_states, posterior_noise
from ivon_jax.noise import gaussian, standard_normal

STEPS = 12
KEYS = jax.random.split(jax.random.key(7), STEPS)
LR = 0.05
SETTINGS = {
    "ess": 80.0,
    "hess_init": 0.5,
    "beta1": 0.8,
    "beta2": 0.9,
    "weight_decay": 0.1,
}


def plain():
    return ivon(LR, rescale_lr=False, **SETTINGS)


def core():
    settings = dict(SETTINGS)
    return scale_by_ivon(prior=FixedPrior(settings.pop("weight_decay")), **settings)


def draw_params():
    rng = np.random.default_rng(0)
    shapes = {"dense": {"bias": (4,), "kernel": (8, 4)}, "out": (4, 2)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


PARAMS = draw_params()


def loss_fn(params, target=0.3):
    """Separable, so that a leaf's path does not depend on other leaves."""
    terms = jax.tree.map(
        lambda p: jnp.sum(jnp.square(p - target) + jnp.sin(2 * p)), params
    )
    return sum(jax.tree.leaves(terms))


def step(tx, key, params, opt_state):
    grads = jax.grad(loss_fn)(sample(key, params, opt_state))
    updates, opt_state = tx.update(grads, opt_state, params, key=key)
    return optax.apply_updates(params, updates), opt_state


def trajectory(tx, params=PARAMS):
    one = jax.jit(lambda *args: step(tx, *args))
    opt_state, path = tx.init(params), []
    for key in KEYS:
        params, opt_state = one(key, params, opt_state)
        path.append(params)
    return path, opt_state


def assert_same(actual, expected, rtol=1e-6):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=rtol)


def partitioned(bias, rest):
    labels = {"dense": {"bias": "bias", "kernel": "rest"}, "out": "rest"}
    return optax.partition({"bias": bias, "rest": rest}, labels)


def mask(params):
    return {"dense": {"bias": False, "kernel": True}, "out": True}


def chain(*parts):
    return optax.chain(*parts, optax.scale_by_learning_rate(LR))


SAME = {
    "first in a chain": lambda: chain(core(), optax.clip(1e9)),
    "in the middle": lambda: chain(optax.identity(), core(), optax.identity()),
    "after a clip": lambda: optax.chain(optax.clip_by_global_norm(1e9), plain()),
    "last": lambda: optax.chain(optax.scale_by_learning_rate(-1.0), plain()),
    "nested chains": lambda: optax.chain(optax.chain(optax.chain(plain()))),
    "named chain": lambda: optax.named_chain(("a", optax.identity()), ("b", plain())),
    "masked, all": lambda: optax.masked(plain(), jax.tree.map(lambda _: True, PARAMS)),
    "partition, two IVONs": lambda: partitioned(plain(), plain()),
    "partition in a chain": lambda: optax.chain(
        optax.clip(1e9), partitioned(chain(core()), plain())
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(plain(), 3),
    "inject_hyperparams": lambda: optax.inject_hyperparams(ivon, static_args="beta2")(
        learning_rate=LR, rescale_lr=False, **SETTINGS
    ),
    "multi_steps of one": lambda: multi_steps(plain(), every=1),
    "multi_steps of one, in a partition": lambda: partitioned(
        multi_steps(plain(), every=1), plain()
    ),
}


@pytest.fixture(scope="module")
def plain_path():
    return trajectory(plain())


@pytest.mark.parametrize("make", SAME.values(), ids=SAME.keys())
def test_wrapped_equals_plain(make, plain_path):
    path, opt_state = trajectory(make())
    assert_same(path, plain_path[0])
    noise, expected = (
        posterior_noise(KEYS[0], state) for state in (opt_state, plain_path[1])
    )
    assert noise.keys() == expected.keys()
    assert_same(noise, expected, 1e-5)


@pytest.mark.parametrize("make", SAME.values(), ids=SAME.keys())
def test_noise_is_the_same_as_unwrapped(make):
    first = sample(KEYS[0], PARAMS, plain().init(PARAMS), 2)
    wrapped = sample(KEYS[0], PARAMS, make().init(PARAMS), 2)
    chex.assert_trees_all_equal(wrapped, first)


def adam_alone(leaf):
    adam = optax.adam(LR)
    state, path = adam.init(leaf), []
    for _ in KEYS:
        updates, state = adam.update(jax.grad(loss_fn)(leaf), state, leaf)
        leaf = optax.apply_updates(leaf, updates)
        path.append(leaf)
    return path


@pytest.fixture
def adams_promotion():
    """optax's Adam multiplies floats by integers, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


UNCOVERED = {
    "masked": lambda: optax.masked(plain(), mask(PARAMS)),
    "masked by a function": lambda: optax.chain(optax.masked(plain(), mask)),
    "partition with adam": lambda: partitioned(optax.adam(LR), plain()),
    "multi_steps of a partition": lambda: multi_steps(
        partitioned(optax.adam(LR), plain()), every=1
    ),
    "frozen": lambda: partitioned(optax.set_to_zero(), plain()),
}


@pytest.mark.parametrize("make", UNCOVERED.values(), ids=UNCOVERED.keys())
def test_uncovered_leaves_are_points(make, plain_path, adams_promotion, request):
    tx = make()
    opt_state = tx.init(PARAMS)
    theta = sample(KEYS[0], PARAMS, opt_state)
    np.testing.assert_array_equal(theta["dense"]["bias"], PARAMS["dense"]["bias"])
    assert not np.array_equal(theta["out"], PARAMS["out"])
    assert "dense/bias" not in Posterior.from_state(PARAMS, opt_state).precision
    path, _ = trajectory(tx)
    for mine, other in zip(path, plain_path[0], strict=True):
        assert_same(mine["out"], other["out"])
        assert_same(mine["dense"]["kernel"], other["dense"]["kernel"])
    biases = [params["dense"]["bias"] for params in path]
    if "adam" in request.node.name or "multi" in request.node.name:
        assert_same(biases, adam_alone(PARAMS["dense"]["bias"]), 1e-5)
    elif "frozen" in request.node.name:
        assert_same(biases, [PARAMS["dense"]["bias"]] * STEPS)


def test_two_ivons_with_their_own_settings(plain_path):
    other = ivon(0.01, ess=1000.0, hess_init=2.0, clip_radius=0.1)
    path, opt_state = trajectory(partitioned(other, plain()))
    alone, _ = trajectory(other)
    for mine, bias, rest in zip(path, alone, plain_path[0], strict=True):
        assert_same(mine["dense"]["bias"], bias["dense"]["bias"])
        assert_same(mine["out"], rest["out"])
    assert sorted(float(state.ess) for state in find_states(opt_state)) == [80, 1000]


def test_injected_schedule_of_ess():
    """A step's noise is drawn with the ess its state holds, that of the step before."""
    schedule = lambda count: 50.0 * (count.astype(float) + 1)  # noqa: E731
    settings = dict(SETTINGS)
    del settings["ess"]
    make = optax.inject_hyperparams(ivon, static_args="beta2")
    path, _ = trajectory(
        make(learning_rate=LR, ess=schedule, rescale_lr=False, **settings)
    )
    params, opt_state = PARAMS, None
    for index, (key, expected) in enumerate(zip(KEYS, path, strict=True)):
        tx = ivon(LR, 50.0 * (index + 1), rescale_lr=False, **settings)
        opt_state = tx.init(params) if opt_state is None else opt_state
        params, opt_state = step(tx, key, params, opt_state)
        assert_same(params, expected)


INJECTED = {
    "ivon": lambda: optax.inject_hyperparams(ivon, static_args="beta2")(LR, 100.0),
    "ivon_lora": lambda: optax.inject_hyperparams(
        ivon_lora, static_args=("beta2", "prior")
    )(LR, 100.0),
    "array": lambda: ivon(LR, jnp.float32(100), weight_decay=jnp.float32(0.1)),
}


@pytest.mark.parametrize("make", INJECTED.values(), ids=INJECTED.keys())
def test_a_new_state_can_be_donated(make):
    """No two of its arrays are one buffer."""
    tx = make()
    params = jax.tree.map(jnp.array, PARAMS)
    state = tx.init(params)
    donating = jax.jit(lambda key, *args: step(tx, key, *args), donate_argnums=(1, 2))
    expected = (params, tx.init(params))
    for key in KEYS[:2]:
        expected = step(tx, key, *expected)
        params, state = donating(key, jax.tree.map(jnp.array, params), state)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, 1e-5), params, expected[0]
    )


def test_apply_if_finite_leaves_the_state_alone():
    tx = optax.apply_if_finite(plain(), max_consecutive_errors=3)
    opt_state = tx.init(PARAMS)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    _, opt_state = tx.update(grads, opt_state, PARAMS, key=KEYS[0])
    for bad in (jnp.nan, jnp.inf):
        grads["out"] = grads["out"].at[0, 0].set(bad)
        updates, new_state = tx.update(grads, opt_state, PARAMS, key=KEYS[1])
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
        jax.tree.map(
            np.testing.assert_array_equal,
            find_states(new_state),
            find_states(opt_state),
        )


def test_scan_and_donation(plain_path):
    tx = plain()

    def body(carry, key):
        carry = step(tx, key, *carry)
        return carry, carry[0]

    _, path = jax.lax.scan(body, (PARAMS, tx.init(PARAMS)), KEYS)
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *plain_path[0])
    assert_same(path, expected)

    donating = jax.jit(
        lambda key, params, state: step(tx, key, params, state), donate_argnums=(1, 2)
    )
    params = jax.tree.map(jnp.copy, PARAMS)
    opt_state = tx.init(PARAMS)
    for key in KEYS:
        old, (params, opt_state) = opt_state, donating(key, params, opt_state)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(find_states(old)))
    assert_same(params, plain_path[0][-1])


def test_vmap_over_replicas():
    tx = plain()
    replicas = jax.tree.map(lambda p: jnp.stack([p, p + 1, -p]), PARAMS)
    keys = jax.random.split(jax.random.key(1), 3)
    one = jax.jit(lambda *args: step(tx, *args))
    step_all = jax.jit(jax.vmap(lambda *args: step(tx, *args)))
    states = jax.vmap(tx.init)(replicas)
    together = step_all(keys, *step_all(keys, replicas, states))
    for i in range(3):
        params = jax.tree.map(lambda p, i=i: p[i], replicas)
        alone = one(keys[i], *one(keys[i], params, tx.init(params)))
        assert_same(jax.tree.map(lambda x, i=i: x[i], together), alone, 1e-5)


@pytest.mark.parametrize(
    "read",
    [
        lambda state: sample(KEYS[0], PARAMS, state),
        lambda state: value_and_grad(loss_fn)(KEYS[0], PARAMS, state),
        lambda state: Posterior.from_state(PARAMS, state),
    ],
    ids=["sample", "value_and_grad", "Posterior.from_state"],
)
def test_optax_multi_steps_is_refused(read):
    tx = optax.chain(
        optax.identity(), optax.MultiSteps(plain(), 2).gradient_transformation()
    )
    with pytest.raises(ValueError, match=r"use ivon_jax\.multi_steps$"):
        read(tx.init(PARAMS))


# --- the noise depends on key, index and path alone --------------------------------


def test_noise_does_not_depend_on_order_or_company():
    opt_state = plain().init(PARAMS)
    theta = sample(KEYS[0], PARAMS, opt_state)
    alone = {"out": PARAMS["out"]}
    np.testing.assert_array_equal(
        sample(KEYS[0], alone, plain().init(alone))["out"], theta["out"]
    )
    reordered = OrderedDict(
        [("out", PARAMS["out"]), ("dense", OrderedDict(
            kernel=PARAMS["dense"]["kernel"], bias=PARAMS["dense"]["bias"]))]
    )  # fmt: skip
    other = sample(KEYS[0], reordered, plain().init(reordered))
    np.testing.assert_array_equal(other["out"], theta["out"])
    np.testing.assert_array_equal(other["dense"]["bias"], theta["dense"]["bias"])


def test_noise_differs_by_key_index_and_path():
    params = {"a": jnp.zeros(4), "b": jnp.zeros(4)}
    opt_state = plain().init(params)
    draws = [
        theta[name]
        for key in KEYS[:2]
        for index in (0, 1)
        for theta in [sample(key, params, opt_state, index)]
        for name in params
    ]
    assert len({np.asarray(draw).tobytes() for draw in draws}) == len(draws)


def test_noise_does_not_depend_on_sharding():
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    params = {"w": PARAMS["dense"]["kernel"], "v": jnp.zeros((16, 8, 3))}
    sharded = jax.device_put(params, sharding)
    tx = plain()
    one = jax.jit(lambda key, params, state: step(tx, key, params, state)[0])
    theta = jax.jit(sample)(KEYS[0], params, tx.init(params))
    there = jax.jit(sample)(KEYS[0], sharded, tx.init(sharded))
    assert len(there["v"].sharding.device_set) == 8
    chex.assert_trees_all_equal(there, theta)
    moved = one(KEYS[0], sharded, tx.init(sharded))
    assert_same(moved, one(KEYS[0], params, tx.init(params)))


@pytest.mark.parametrize("shape", [(8,), (8, 7, 3), (16, 37), (64, 5)])
def test_noise_has_the_same_bits_however_it_is_compiled(shape):
    low, high = jnp.log(1e-3), jnp.log(1e9)
    uniform = jax.random.uniform(KEYS[1], shape, minval=low, maxval=high)
    precision = {"w": jnp.exp(uniform)}

    def draw(index, precision):
        return gaussian(KEYS[0], precision, index)["w"]

    normal = standard_normal(KEYS[0], "w", uniform, 1)
    # Every operation after the normal is exactly rounded, so numpy has the same bits.
    wanted = np.asarray(normal) * np.sqrt(1 / np.asarray(precision["w"]))
    indices = jnp.arange(2)
    draws = [
        draw(1, precision),
        jax.jit(draw)(1, precision),
        jax.jit(lambda p: jax.lax.map(lambda i: draw(i, p), indices))(precision)[1],
    ]
    for devices in (2, 4, 8):
        mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
        sharding = NamedSharding(mesh, PartitionSpec("x"))
        there = jax.jit(draw, out_shardings=sharding)(
            1, jax.device_put(precision, sharding)
        )
        assert len(there.sharding.device_set) == devices
        draws.append(there)
    for found in draws:
        np.testing.assert_array_equal(found, wanted)
