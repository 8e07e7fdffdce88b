"""The variants of IVON-LoRA in benchmarks/variants.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ivon_jax
from benchmarks.variants import Variant, VariantHyper
from ivon_jax.testing import check_method
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.methods.base import Minibatch
from ivon_jax.train.methods.ivon_lora import IvonLora, IvonLoraHyper

STEPS, BATCH_SIZE = 4, 8
PARAMS = {"a": jnp.ones((3, 2)), "b": jnp.full((2, 4), 0.5)}


def loss(params, minibatch):
    del minibatch
    return jnp.sum(jnp.square(params["a"] @ params["b"] - 2.0))


def train(method, loss=loss):
    """Returns parameters, state and gradient norm after each step."""
    rows, ints = jnp.ones((BATCH_SIZE, 1)), jnp.ones((BATCH_SIZE, 1), jnp.int32)
    minibatch = Minibatch(Batch(ints, ints, ints, rows / BATCH_SIZE), {})
    params, state, found = PARAMS, method.init(PARAMS), []
    for key in jax.random.split(jax.random.key(0), STEPS):
        out = method.step(loss, key, params, state, minibatch)
        params, state = out.params, out.state
        found.append(out)
    return found


def variant(**options):
    hyper = VariantHyper(steps=STEPS, batch_size=BATCH_SIZE, gamma=50.0, **options)
    return Variant(hyper.resolve("custom", num_examples=16))


def ivon_lora():
    hyper = IvonLoraHyper(steps=STEPS, batch_size=BATCH_SIZE, gamma=50.0)
    return IvonLora(hyper.resolve("custom", num_examples=16))


def test_the_variant_is_a_method():
    check_method(variant(eta=1.0, ess_start=9.0, hess_steps=2))


def test_defaults_are_ivon_lora():
    for got, want in zip(train(variant()), train(ivon_lora()), strict=True):
        jax.tree.map(np.testing.assert_array_equal, got.params, want.params)
        jax.tree.map(np.testing.assert_array_equal, got.state[1], want.state)


def test_eta_decays_the_mean():
    def flat(params, minibatch):
        return 0.0 * loss(params, minibatch)

    for got, want in ((variant(eta=1.0), True), (variant(), False)):
        end = train(got, flat)[-1].params
        shrunk = jax.tree.map(lambda a, b: bool(jnp.all(a < b)), end, PARAMS)
        assert shrunk == {"a": want, "b": want}


@pytest.mark.parametrize(("share", "factors"), [(1.0, (16, 8, 4, 2)), (0.5, (16, 4))])
def test_lambda_moves_to_its_end(share, factors):
    method = variant(ess_start=16.0, ess_share=share)
    base = ivon_lora()
    params, state = PARAMS, method.init(PARAMS)
    for key, factor in zip(jax.random.split(jax.random.key(0)), factors, strict=False):
        # A step of IVON-LoRA whose state has the lambda of the time.
        warm = state[1][0]._replace(ess=jnp.float32(factor * base.hyper.ess))
        minibatch = Minibatch(None, {})
        want = ivon_jax.value_and_grad(lambda p: loss(p, None))(
            key, params, (warm, *state[1][1:])
        )
        out = method.step(loss, key, params, state, minibatch)
        np.testing.assert_allclose(out.loss, want[0], rtol=1e-6)
        assert out.state[1][0].ess == np.float32(base.hyper.ess)
        params, state = out.params, out.state


def test_hess_is_set_from_the_first_gradients():
    method, steps = variant(hess_steps=2), 2
    params, state, squares = PARAMS, method.init(PARAMS), []
    for key in jax.random.split(jax.random.key(0), STEPS)[:steps]:
        minibatch = Minibatch(None, {})
        grads = ivon_jax.value_and_grad(lambda p: loss(p, None))(key, params, state)[1]
        squares.append(jax.tree.map(lambda g: jnp.mean(jnp.square(g)), grads))
        out = method.step(loss, key, params, state, minibatch)
        params, state = out.params, out.state
    for name, hess in state[1][0].hess.items():
        want = BATCH_SIZE * np.mean([square[name] for square in squares])
        np.testing.assert_allclose(hess, want, rtol=1e-5)
