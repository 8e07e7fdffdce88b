"""The bootstrap against scoring each resample, and against its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax import metrics

NAMES = ("accuracy", "nll", "brier", "ece")


def predictions(m, n, c, seed=0):
    rng = np.random.default_rng(seed)
    log_probs = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(m, n, c)), jnp.float32))
    return log_probs, jnp.asarray(rng.integers(c, size=n), jnp.int32)


def test_it_is_each_metric_of_each_resample(monkeypatch):
    """Resamples are drawn again here; the program is cut into several parts."""
    monkeypatch.setattr("ivon_jax.metrics.resampling._DRAWS", 7 * 50)
    log_probs, labels = predictions(3, 50, 4)
    found = metrics.bootstrap(log_probs, labels, seed=5, resamples=20)
    assert found.keys() == set(NAMES)
    assert {value.shape for value in found.values()} == {(20, 3)}
    rng = np.random.default_rng(5)
    drawn = np.concatenate([rng.integers(50, size=(k, 50)) for k in (7, 7, 6)])
    for r, picked in enumerate(drawn):
        for m in range(3):
            one = metrics.summary(log_probs[m, picked], labels[picked])
            for name in NAMES:
                np.testing.assert_allclose(
                    found[name][r, m], one[name], atol=2e-6, err_msg=name
                )


def test_predictions_are_paired():
    log_probs, labels = predictions(1, 80, 3)
    twice = jnp.concatenate([log_probs, log_probs])
    for value in metrics.bootstrap(twice, labels, seed=0, resamples=50).values():
        np.testing.assert_array_equal(value[:, 0], value[:, 1])


def test_errors_of_means_are_those_of_theory():
    """The standard error of a mean over n is sd / sqrt(n), known to 5 sigma."""
    log_probs, labels = predictions(1, 400, 3)
    resamples = 4000
    found = metrics.bootstrap(log_probs, labels, seed=1, resamples=resamples)
    right = np.take_along_axis(np.asarray(log_probs[0]), np.asarray(labels)[:, None], 1)
    values = {
        "nll": -right[:, 0],
        "accuracy": np.asarray(log_probs[0]).argmax(1) == np.asarray(labels),
    }
    for name, value in values.items():
        error = value.std() / 20
        assert abs(found[name].std() / error - 1) < 5 / np.sqrt(2 * resamples) * 1.2
        assert abs(found[name].mean() - value.mean()) < 5 * error / np.sqrt(resamples)


def test_the_seed_decides():
    log_probs, labels = predictions(1, 30, 2)
    one, same, other = (
        metrics.bootstrap(log_probs, labels, seed=seed, resamples=10)["nll"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_an_infinite_term_is_infinite_where_it_is_drawn():
    columns = np.arange(6.0)
    columns[2] = np.inf
    means = metrics.resampled_means(columns, seed=0, resamples=50)
    drawn = metrics.resampled_means(np.float64(np.arange(6) == 2), seed=0, resamples=50)
    columns[2] = 0
    finite = metrics.resampled_means(columns, seed=0, resamples=50)
    np.testing.assert_array_equal(means, np.where(drawn > 0, np.inf, finite))
    assert 0 < np.isinf(means).mean() < 1


def test_illegal_values_are_nan_and_numbers_are_checked():
    log_probs, labels = predictions(1, 30, 2)
    bad = metrics.bootstrap(log_probs.at[0, 0].set(jnp.nan), labels, seed=0)["brier"]
    assert np.isnan(bad).all()
    with pytest.raises(ValueError, match="^resamples: 0 is not >= 1$"):
        metrics.bootstrap(log_probs, labels, seed=0, resamples=0)
