"""The posterior of a point with others beside it."""

import re

import chex
import jax
import jax.numpy as jnp
import pytest

from ivon_jax import Points, Posterior, load_posterior

KEY = jax.random.key(0)


def tree(value: float) -> dict:
    return {"x": {"a": jnp.full((2, 3), value)}, "b": jnp.full(4, value)}


def made() -> Points:
    return Points(tree(1.0), {"last": tree(2.0), "ema": tree(3.0)})


def test_it_predicts_as_the_point_that_is_its_mean():
    points = made()
    assert not points.spread and points.size is None
    chex.assert_trees_all_equal(points.draw(KEY, 3), points.mean, tree(1.0))
    assert points.temper(2.0) is points and points.prune(0.5) is points


def test_another_point_is_a_posterior_of_its_own():
    found = made().at("ema")
    assert isinstance(found, Posterior) and not found.spread
    chex.assert_trees_all_equal(found.mean, tree(3.0))


def test_a_file_gives_the_same_points(tmp_path):
    made().save(tmp_path / "p", step=3)
    loaded, metadata = load_posterior(tmp_path / "p")
    assert isinstance(loaded, Points) and metadata == {"step": 3}
    assert loaded.others.keys() == {"last", "ema"}
    chex.assert_trees_all_equal(loaded, made())


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (Points(tree(1.0), {"last": {"b": jnp.ones(4)}}), "point 'last' has other sha"),
        (Points(tree(1.0), {"last": tree(jnp.nan)}), "last of 'b' is not finite"),
        (Points({}, {"last": tree(1.0)}), "points: none is the mean"),
    ],
)
def test_a_wrong_file_is_refused(points, message, tmp_path):
    points.save(tmp_path / "p")
    with pytest.raises(ValueError, match=message):
        load_posterior(tmp_path / "p")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda p: p.temper(0.0), "tau: 0.0 is not > 0"),
        (lambda p: p.prune(1.5), "prune: 1.5 is not in [0, 1]"),
        (lambda p: p.at("first"), "point: 'first' is not one of last, ema"),
        (
            lambda p: Points(p.mean, {"last": [jnp.ones(1)]}).save("x"),
            "last: only trees",
        ),
    ],
)
def test_wrong_arguments(action, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        action(made())
