"""The posterior that is a set of parameters."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ivon_jax
from ivon_jax import (
    Distribution,
    Kronecker,
    LowRank,
    Mixture,
    Particles,
    Points,
    Posterior,
    load_posterior,
)
from ivon_jax.ensemble import ensemble_log_probs
from ivon_jax.kinds import KINDS, Gaussian

KEY = jax.random.key(0)


def members(count: int) -> list[dict]:
    keys = jax.random.split(KEY, count)
    return [
        {"x": {"a": jax.random.normal(key, (3, 2))}, "b": jax.random.normal(key, (4,))}
        for key in keys
    ]


def test_every_kind_is_a_distribution():
    point = {"w": jnp.ones(2)}
    made = (
        Posterior.point(point),
        Particles.of([point, point]),
        Kronecker.of(point, {}, 1.0),
        LowRank(point, {}, {}),
        Points(point, {}),
        Mixture.of([Posterior.point(point)]),
    )
    assert {type(one) for one in made} == set(KINDS.values())
    assert all(isinstance(one, Distribution) for one in made)
    assert [isinstance(one, Gaussian) for one in made] == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]


def test_draws_are_the_members_in_turn():
    alone = members(3)
    posterior = Particles.of(alone)
    assert posterior.size == 3 and posterior.spread
    for index in range(7):
        drawn = posterior.draw(jax.random.key(index), index)
        chex.assert_trees_all_equal(drawn, alone[index % 3])


def test_the_mean_is_that_of_the_members():
    alone = members(4)
    want = jax.tree.map(lambda *leaves: np.mean(np.stack(leaves), axis=0), *alone)
    found = Particles.of(alone).mean
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, want)


def test_an_ensemble_averages_the_members_predictions():
    alone = members(3)

    def logits(params):
        return params["x"]["a"]

    found = ensemble_log_probs(logits, Particles.of(alone), KEY, 3, chunk_size=1)
    want = np.stack([jax.nn.log_softmax(logits(one)) for one in alone])
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_a_file_gives_the_same_members_and_numbers(tmp_path):
    posterior = Particles.of(members(2))
    posterior.save(tmp_path / "p", step=7, ess=2.5)
    loaded, facts = load_posterior(tmp_path / "p")
    assert isinstance(loaded, Particles)
    assert facts == {"step": 7, "ess": 2.5}
    chex.assert_trees_all_equal(loaded.members, posterior.members)
    message = "a posterior of kind 'particles'; use ivon_jax.load_posterior"
    with pytest.raises(ValueError, match=message):
        Posterior.load(tmp_path / "p")


def test_gaussians_are_read_by_the_same_function(tmp_path):
    Posterior({"w": jnp.ones(2)}, {"w": jnp.ones(2)}, {}).save(tmp_path / "p", step=1)
    loaded, facts = load_posterior(tmp_path / "p")
    assert isinstance(loaded, Posterior) and facts == {"step": 1}


def test_an_unknown_kind_is_refused(tmp_path, monkeypatch):
    class Other(Particles):
        kind = "other"

    Other(Particles.of(members(2)).members).save(tmp_path / "p")
    with pytest.raises(ValueError, match="kind 'other' is not one of gaussian, partic"):
        load_posterior(tmp_path / "p")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda p: p.temper(2.0), "tau: 2.0 is not 1"),
        (lambda p: p.prune(0.1), "prune: 0.1 is not 0"),
        (lambda p: Particles.of([]), "members: name at least one"),
        (
            lambda p: Particles.of([{"w": jnp.ones(2)}, {"w": jnp.ones(3)}]),
            "members: they differ in structure or shapes",
        ),
        (lambda p: Particles.of([{"w": jnp.ones(1)}, {"v": jnp.ones(1)}]), "differ"),
    ],
)
def test_what_particles_cannot_do(action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        action(Particles.of(members(2)))


def test_neither_does_anything_by_its_neutral_value():
    posterior = Particles.of(members(2))
    assert posterior.temper(1.0) is posterior
    assert posterior.prune(0.0) is posterior


def test_names_are_public():
    assert ivon_jax.Particles is Particles


def test_the_variance_is_the_members():
    alone = members(3)
    found = Particles.of(alone).variance()
    stacked = np.stack([one["x"]["a"] for one in alone])
    np.testing.assert_allclose(found["x/a"], stacked.var(axis=0), rtol=1e-5)
    assert Particles.of(alone[:1]).variance() == {}
