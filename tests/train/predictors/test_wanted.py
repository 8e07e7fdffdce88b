"""What is predicted by default, and what options change or add."""

import jax.numpy as jnp
import pytest

from ivon_jax import Mixture, Particles, Points, Posterior
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.predictors.linearised import Linearised
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.point import Point
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.predictors.wanted import Wanted

LEAF = {"w": jnp.zeros(2)}
POINT = Posterior.point(LEAF)
GAUSSIAN = Posterior(LEAF, {"w": jnp.ones(2)}, {})
POINTS = Points(LEAF, {"last": LEAF, "ema": LEAF})
MEMBERS = Particles.of([LEAF] * 3)
MIXTURE = Mixture.of([GAUSSIAN, GAUSSIAN])
OWN = (Samples(4, tau=2.0),)
OTHERS = [Point("ema"), Point("last")]
LINEAR = Linearised("probit")


@pytest.mark.parametrize(
    ("posterior", "own", "options", "expected"),
    [
        (POINT, (), {}, [Mean()]),
        (GAUSSIAN, (), {}, [Mean(), Samples(10)]),
        (GAUSSIAN, (), {"samples": 3, "tau": 2.0}, [Mean(), Samples(3, 2.0)]),
        # Other points are a run's own, whatever else is asked for.
        (POINTS, (), {}, [Mean(), *OTHERS]),
        (POINTS, (), {"samples": 3}, [Mean(), *OTHERS]),
        (POINTS, (), {"dropout_samples": 2}, [Mean(), *OTHERS, Dropout(2)]),
        # The average of members is no model.
        (MEMBERS, (), {}, [Samples(3)]),
        (MEMBERS, (), {"samples": 2}, [Samples(2)]),
        (MIXTURE, (Samples(4),), {}, [Samples(4)]),
        (MIXTURE, (Samples(4),), {"tau": 2.0}, [Samples(10, 2.0)]),
        # What a fit is for gives way to other samples, not to what is added.
        (GAUSSIAN, OWN, {}, [Mean(), *OWN]),
        (GAUSSIAN, OWN, {"prune": 0.5}, [Mean(0.5), Samples(10, prune=0.5)]),
        (GAUSSIAN, OWN, {"linearised": LINEAR}, [Mean(), *OWN, LINEAR]),
        (GAUSSIAN, (LINEAR,), {"linearised": LINEAR}, [Mean(), LINEAR]),
        (GAUSSIAN, OWN, {"temperature": True}, [Mean(), *OWN]),
    ],
)
def test_what_is_predicted(posterior, own, options, expected):
    assert Wanted(**options).predictors(posterior, own) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples: 0 is not >= 1"),
        ({"tau": 0.0}, "tau: 0.0 is not"),
        ({"prune": 1.5}, "prune: 1.5 is not"),
        ({"dropout_samples": -1}, "dropout_samples: -1 is not >= 1"),
    ],
)
def test_numbers_are_checked_without_a_posterior(options, message):
    with pytest.raises(ValueError, match=message):
        Wanted(**options).check()


def test_a_point_has_no_temperature():
    for posterior in (POINT, POINTS):
        with pytest.raises(ValueError, match="tau: the method has no posterior"):
            Wanted(tau=2.0).predictors(posterior)


def test_masks_are_not_put_over_the_average_of_members():
    with pytest.raises(ValueError, match="dropout_samples: .* has several members"):
        Dropout(2).split(MEMBERS, 0.1)
