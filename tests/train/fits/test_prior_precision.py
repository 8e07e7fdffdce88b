"""The marginal likelihood, against an integral; its maximum, against a grid."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from ivon_jax.train.fits.prior_precision import Evidence, by_adam, fixed_point


@pytest.mark.parametrize("curvature", [0.0, 0.3, 20.0])
@pytest.mark.parametrize("p0", [0.1, 5.0])
def test_it_is_the_integral_of_a_gaussian_likelihood(curvature, p0):
    """Where the approximation is exact, at the mode of the posterior."""
    best, height = 1.7, -4.0

    def log_likelihood(theta):
        return height - curvature * (theta - best) ** 2 / 2

    def joint(theta):
        prior = math.sqrt(p0 / (2 * math.pi)) * math.exp(-p0 * theta**2 / 2)
        return prior * math.exp(log_likelihood(theta))

    mode = curvature * best / (curvature + p0)
    evidence = Evidence(np.array([curvature]), mode**2, log_likelihood(mode))
    wanted = math.log(quad(joint, -60, 60, points=[mode], epsabs=0, limit=200)[0])
    assert evidence.log(p0) == pytest.approx(wanted, rel=1e-8)


def random_evidence(seed: int, count: int, scale: float) -> Evidence:
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=count) ** 3
    return Evidence(values, scale * float(rng.exponential()) + 1e-3, -3.0)


@given(st.integers(0, 1000), st.integers(1, 50), st.sampled_from([0.01, 1.0, 100.0]))
def test_no_other_precision_has_more_evidence(seed, count, scale):
    evidence = random_evidence(seed, count, scale)
    found = fixed_point(evidence)
    grid = np.exp(np.linspace(-12, 12, 2000))
    assert evidence.log(found) >= max(evidence.log(p0) for p0 in grid) - 1e-9
    assert found == pytest.approx(
        evidence.effective(found) / evidence.square_norm, rel=1e-9
    )


@pytest.mark.parametrize("seed", range(2))
def test_adam_finds_the_same_given_time(seed):
    evidence = random_evidence(seed, 30, 1.0)
    assert by_adam(evidence, 600) == pytest.approx(fixed_point(evidence), rel=0.01)
    assert abs(math.log(by_adam(evidence, 10))) <= 10 * 0.1 + 1e-5


def test_matrices_are_joined():
    parts = [np.ones((2, 3), np.float32), np.full((4,), 2.0, np.float32)]
    joined = Evidence.of(parts, parts, -1.0)
    assert joined.eigenvalues.shape == (10,)
    assert joined.square_norm == 6 + 16
    assert joined.effective(1.0) == pytest.approx(6 / 2 + 4 * 2 / 3)


@pytest.mark.parametrize(
    ("values", "norm"), [(np.zeros(3), 1.0), (np.ones(3), 0.0)], ids=["flat", "at 0"]
)
def test_no_maximum(values, norm):
    with pytest.raises(ValueError, match=r"^prior: .*; give --prior-precision$"):
        fixed_point(Evidence(values, norm, 0.0))
