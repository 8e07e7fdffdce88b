"""The check of methods lets good ones pass, and finds what is wrong with others."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

from ivon_jax import Posterior
from ivon_jax.testing import check_method
from ivon_jax.train.methods.adam import Adam, AdamHyper
from ivon_jax.train.methods.registry import METHODS

HYPER = AdamHyper(steps=5).resolve("custom", num_examples=8)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", ["commonsense", "glue"])
def test_every_method_passes(name, family):
    hyper = METHODS[name].hyper_type(steps=5).resolve(family, num_examples=8)
    check_method(METHODS[name].make(hyper, 1))


class Narrow(Adam):
    def step(self, *args):
        out = super().step(*args)
        half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), out.params)
        return out._replace(params=half)


class Weak(Adam):
    """Its first state has a Python number's type, so the second step is another."""

    def init(self, params):
        return super().init(params), jnp.asarray(1.0)

    def step(self, loss, key, params, state, minibatch):
        out = super().step(loss, key, params, state[0], minibatch)
        return out._replace(state=(out.state, state[1] * jnp.float32(1)))


class Overflowing(Adam):
    def step(self, *args):
        return super().step(*args)._replace(loss=jnp.float32(jnp.inf))


class Vector(Adam):
    def step(self, *args):
        return super().step(*args)._replace(logs={"norms": jnp.zeros(2)})


class Boasting(Adam):
    """Says that its posterior is more than a point."""

    spread: ClassVar = True


class Misnamed(Adam):
    def posterior(self, params, state):
        return Posterior.point(params["layer"])


class NoPosterior(Adam):
    def posterior(self, params, state):
        return params


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (Narrow, "dtype"),
        (Weak, "traced > 1 times"),
        (Overflowing, "(?i)finite"),
        (Vector, "rank"),
        (Boasting, "(?i)equal"),
        (Misnamed, "(?i)struct"),
        (NoPosterior, "dict"),
    ],
)
def test_faults_are_found(method, wrong):
    with pytest.raises(AssertionError, match=wrong):
        check_method(method(HYPER))


def test_a_step_that_depends_on_anything_else_is_found():
    draws = iter(range(100))

    class Restless(Adam):
        def step(self, *args):
            out = super().step(*args)
            shape = jax.ShapeDtypeStruct((), jnp.float32)
            noise = jax.pure_callback(lambda: jnp.float32(next(draws)), shape)
            return out._replace(logs={"noise": noise})

    with pytest.raises(AssertionError, match=r"(?i)equal|differ"):
        check_method(Restless(HYPER))
