"""IVON takes the trees that optax's optimizers take, and names a leaf it refuses."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from ivon_jax import Posterior, ivon, ivon_lora, multi_steps, sample, value_and_grad
from ivon_jax._state import posterior_precision

KEY = jax.random.key(0)
LR = 0.1
OPTIMIZERS = {
    "ivon": lambda: ivon(LR, ess=100.0),
    "ivon_lora": lambda: ivon_lora(LR, ess=100.0),
    "gradsq": lambda: ivon(LR, ess=100.0, hess_approx="gradsq"),
    "multi_steps": lambda: multi_steps(ivon(LR, ess=100.0), every=1),
}
every_optimizer = pytest.mark.parametrize(
    "make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys()
)


def loss_fn(params):
    leaves = [jnp.sum(jnp.square(jnp.asarray(x) - 2)) for x in jax.tree.leaves(params)]
    return sum((x.astype(jnp.float32) for x in leaves), jnp.zeros([]))


def assert_same_kind(mine, other):
    assert (mine.shape, mine.dtype) == (other.shape, other.dtype)


def everything(tx, params):
    """One step by each way to take it, and all that is read off the state."""
    opt_state = tx.init(params)
    theta = sample(KEY, params, opt_state)
    grads = jax.grad(loss_fn)(theta)
    redrawn, new_state = tx.update(grads, opt_state, params, key=KEY)
    _, grads, moments = value_and_grad(loss_fn, mc_samples=2)(KEY, params, opt_state)
    updates, _ = tx.update(grads, opt_state, params, moments=moments)
    posterior = Posterior.from_state(params, new_state)
    return {
        "theta": theta,
        "redrawn": optax.apply_updates(params, redrawn),
        "moments": optax.apply_updates(params, updates),
        "precision": posterior_precision(new_state),
        "samples": posterior.temper(2.0).sample(KEY, 3),
        "pruned": [posterior.prune(0.5, by).mean for by in ("global", "matrix")],
        "log_prob": posterior.log_prob(theta),
        "kl": posterior.kl(),
    }


TREES = {
    "empty dict": {},
    "empty tuple": (),
    "nothing but None": {"a": None, "b": {}},
    "None beside an array": {"a": None, "b": jnp.ones(3)},
    "Python float": {"a": 0.5, "b": jnp.ones(3)},
    "nothing but a Python float": 0.5,
    "NumPy array": {"a": np.ones(3, np.float32)},
    "NumPy array of float64": {"a": np.ones((2, 3))},
    "NumPy scalar": {"a": np.float32(1.5)},
    "no entries": {"a": jnp.ones((0, 3)), "b": jnp.ones((2, 3, 0)), "c": jnp.ones(3)},
    "nothing but no entries": {"a": jnp.ones((0, 3))},
    "16 bits": {"a": jnp.ones((2, 3), jnp.bfloat16)},
}


@every_optimizer
@pytest.mark.parametrize("params", TREES.values(), ids=TREES.keys())
def test_tree_is_taken_as_its_arrays_are(make, params):
    """A Python float or a NumPy array is the JAX array of its value."""
    found = everything(make(), params)
    sgd = optax.sgd(LR)
    updates, _ = sgd.update(jax.grad(loss_fn)(params), sgd.init(params), params)
    for name in ("theta", "redrawn", "moments"):
        stepped = optax.apply_updates(params, updates)
        jax.tree.map(assert_same_kind, found[name], stepped)
    wanted = everything(make(), jax.tree.map(jnp.asarray, params))
    chex.assert_trees_all_equal(found, wanted)
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))


PARAMS = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
WITHOUT_LEAVES = {
    "partition": lambda tx: optax.partition(
        {"rest": optax.sgd(LR), "none": tx}, {"a": "rest", "b": "rest"}
    ),
    "partition by a function": lambda tx: optax.partition(
        {"rest": optax.sgd(LR), "none": tx},
        lambda params: jax.tree.map(lambda _: "rest", params),
    ),
    "masked": lambda tx: optax.chain(
        optax.masked(tx, {"a": False, "b": False}), optax.sgd(LR)
    ),
}


@every_optimizer
@pytest.mark.parametrize("outside", [False, True], ids=["within", "multi_steps of it"])
@pytest.mark.parametrize("wrap", WITHOUT_LEAVES.values(), ids=WITHOUT_LEAVES.keys())
def test_group_without_leaves_changes_nothing(wrap, outside, make):
    tx = wrap(make())
    tx = multi_steps(tx, every=1) if outside else tx
    found = everything(tx, PARAMS)
    step = lambda p: p - LR * jax.grad(loss_fn)(PARAMS)["b"][0]  # noqa: E731
    for name in ("redrawn", "moments"):
        jax.tree.map(
            np.testing.assert_allclose, found[name], jax.tree.map(step, PARAMS)
        )
    chex.assert_trees_all_equal(found["theta"], PARAMS)
    assert found["precision"] == {}
    assert float(found["kl"]) == 0


NOT_FLOATS = {
    "int32": jnp.arange(3),
    "uint8": np.arange(3, dtype=np.uint8),
    "bool": jnp.ones(3, bool),
    "complex64": jnp.ones(3, jnp.complex64),
    "key<fry>": KEY,
    "int32 ": 3,
    "bool ": True,
    "complex64 ": 1j,
}


@every_optimizer
@pytest.mark.parametrize(("dtype", "leaf"), NOT_FLOATS.items(), ids=NOT_FLOATS.keys())
def test_leaf_that_is_no_float_is_refused_by_name(make, dtype, leaf):
    params = {"layer": {"count": leaf}, "w": jnp.ones(3)}
    with pytest.raises(ValueError) as error:
        make().init(params)
    dtype = dtype.strip()
    assert str(error.value).startswith(f"params: the leaf 'layer/count' is {dtype}, ")
    assert "optax.masked" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("leaf", [jnp.arange(3), jnp.ones(3, jnp.complex64), 3])
def test_leaf_that_is_no_float_may_be_excluded(leaf):
    params = {"count": leaf, "w": jnp.ones(3)}
    masks = {"count": False, "w": True}
    grads = {"count": jnp.zeros_like(leaf), "w": jnp.ones(3)}
    for make in (
        lambda: optax.masked(ivon(LR, ess=100.0), masks),
        lambda: multi_steps(optax.masked(ivon(LR, ess=100.0), masks), every=1),
    ):
        tx = make()
        opt_state = tx.init(params)
        theta = sample(KEY, params, opt_state)
        updates, opt_state = tx.update(grads, opt_state, params, key=KEY)
        samples = Posterior.from_state(params, opt_state).sample(KEY, 2)
        for tree in (theta, optax.apply_updates(params, updates)):
            np.testing.assert_array_equal(tree["count"], leaf)
            assert not np.array_equal(tree["w"], params["w"])
        assert samples["count"].dtype == jnp.asarray(leaf).dtype


def test_gradients_may_be_wider_than_the_parameters():
    """`multi_steps` holds and emits updates of one dtype, the parameters'."""
    params, grads = {"w": jnp.ones(3, jnp.bfloat16)}, {"w": jnp.ones(3)}
    tx = multi_steps(ivon(LR, ess=100.0), every=2)
    opt_state, dtypes = tx.init(params), []
    for index in range(2):
        key = jax.random.fold_in(KEY, index)
        updates, opt_state = tx.update(grads, opt_state, params, key=key)
        dtypes.append(updates["w"].dtype)
    assert dtypes == [jnp.bfloat16, jnp.bfloat16]
    assert np.all(np.asarray(updates["w"], np.float32) < 0)


def test_an_optimizer_of_nnx_passes_the_key_on():
    tx = ivon(LR, ess=100.0)
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    grads = jax.grad(loss_fn)(sample(KEY, params, optimizer.opt_state))
    updates, state = tx.update(grads, tx.init(params), params, key=KEY)
    wanted = jax.tree.leaves(optax.apply_updates(params, updates))
    optimizer.update(model, grads, key=KEY)
    found = jax.tree.leaves(nnx.state(model, nnx.Param))
    chex.assert_trees_all_close(found, wanted)
    chex.assert_trees_all_close(
        posterior_precision(optimizer.opt_state), posterior_precision(state)
    )
