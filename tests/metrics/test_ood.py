"""Detection of foreign examples and risk-coverage, against other implementations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax import metrics
from ivon_jax.metrics import ood

fast = {name: jax.jit(getattr(ood, name)) for name in ("auroc", "aupr", "fpr95")}
sizes = st.sampled_from([(1, 1), (3, 40), (60, 17)])
levels = st.sampled_from([1, 4, 10**6])  # few levels give ties


def scores(seed, size, levels):
    rng = np.random.default_rng(seed)
    own, foreign = rng.normal(size=size[0]), rng.normal(0.7, 1, size=size[1])
    return tuple(
        (np.round(part * levels) / levels).astype(np.float32) for part in (own, foreign)
    )


@given(seed=st.integers(0, 2**32 - 1), size=sizes, levels=levels)
@settings(deadline=None)  # a size's first example compiles
def test_equal_to_scikit_learn(seed, size, levels):
    own, foreign = scores(seed, size, levels)
    both, truth = np.concatenate([own, foreign]), np.repeat([0, 1], size)
    rates = sklearn.metrics.roc_curve(truth, both, drop_intermediate=False)
    wanted = {
        "auroc": sklearn.metrics.roc_auc_score(truth, both),
        "aupr": sklearn.metrics.average_precision_score(truth, both),
        "fpr95": rates[0][np.argmax(rates[1] >= 0.95 - 1e-9)],
    }
    for name, value in wanted.items():
        found = fast[name](jnp.asarray(own), jnp.asarray(foreign))
        np.testing.assert_allclose(found, value, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("levels", [4, 10**6])
def test_fpr95_equals_torch_uncertainty(levels):
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("torch_uncertainty.metrics.classification.fpr")
    for seed in range(5):
        own, foreign = scores(seed, (60, 100), levels)
        both = torch.tensor(np.concatenate([own, foreign]))
        truth = torch.tensor(np.repeat([0, 1], (60, 100)))
        wanted = peers._fprx_compute(both, truth, 0.95, 1)
        np.testing.assert_allclose(fast["fpr95"](own, foreign), wanted, atol=1e-6)


def test_order_and_scale_of_scores_do_not_matter():
    own, foreign = scores(0, (60, 17), 4)
    for function in fast.values():
        found = function(own[::-1], np.roll(foreign, 5))
        np.testing.assert_allclose(function(own, foreign), found, atol=1e-6)
        grown = function(3 * own + 1, 3 * foreign + 1)
        np.testing.assert_allclose(grown, found, atol=1e-6)


@pytest.mark.parametrize("name", fast)
def test_a_nan_is_not_overlooked_and_nothing_is_refused(name):
    nan = jnp.array([0.1, jnp.nan])
    assert jnp.isnan(fast[name](nan, jnp.ones(3)))
    assert jnp.isnan(fast[name](jnp.ones(3), nan))
    with pytest.raises(ValueError, match="scores must not be empty"):
        getattr(ood, name)(jnp.zeros(0), nan)


def test_own_and_foreign_exchanged_mirror_the_auroc():
    own, foreign = scores(3, (60, 17), 4)
    total = fast["auroc"](own, foreign) + fast["auroc"](foreign, own)
    np.testing.assert_allclose(total, 1, atol=1e-6)


# Risk and coverage


def classified(seed, n, levels=10**6):
    """Log-probabilities of two classes, right with about their confidence."""
    rng = np.random.default_rng(seed)
    confidence = 0.5 + np.ceil(rng.random(n) * levels) / levels * 0.499
    probs = np.stack([confidence, 1 - confidence], axis=1)
    labels = (rng.random(n) > confidence).astype(np.int32)
    return np.log(probs).astype(np.float32), labels


def ours(name, log_probs, labels):
    return jax.jit(getattr(metrics, name))(jnp.asarray(log_probs), jnp.asarray(labels))


@pytest.mark.parametrize("n", [20, 200])
def test_risk_coverage_equals_torch_uncertainty(n):
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("torch_uncertainty.metrics.classification")
    for seed in range(5):
        log_probs, labels = classified(seed, n)
        probs = torch.tensor(np.exp(log_probs.astype(np.float64)))

        def theirs(metric, probs=probs, labels=labels):
            metric.update(probs, torch.tensor(labels))
            return float(metric.compute())

        order = np.argsort(-log_probs[:, 0])
        errors = np.cumsum(labels[order])
        # Theirs is a trapezoid from 1/n to 1, ours the mean over 1..n.
        for name, metric, curve in (
            ("aurc", peers.AURC(), errors / np.arange(1, n + 1)),
            ("augrc", peers.AUGRC(), errors / n),
        ):
            ends = (curve[0] + curve[-1]) / 2
            mean = (theirs(metric) * (n - 1) + ends) / n
            np.testing.assert_allclose(ours(name, log_probs, labels), mean, atol=1e-6)
        wanted = np.nan_to_num(theirs(peers.CovAt5Risk()))
        found = ours("coverage_at_risk", log_probs, labels)
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), levels=st.integers(1, 30))
@settings(deadline=None)
def test_coverage_at_risk_is_that_of_the_best_threshold(seed, levels):
    log_probs, labels = classified(seed, 50, levels)
    best = 0.0
    for threshold in log_probs[:, 0]:
        kept = log_probs[:, 0] >= threshold
        if labels[kept].mean() <= 0.05:
            best = max(best, kept.mean())
    found = ours("coverage_at_risk", log_probs, labels)
    np.testing.assert_allclose(found, best, atol=1e-6)


def test_augrc_of_ties_is_the_mean_over_their_orders():
    confidence, wrong = [0.9, 0.7, 0.7, 0.7, 0.6], [0, 1, 0, 0, 1]
    areas = []
    for order in itertools.permutations(range(5)):
        if all(confidence[i] >= confidence[j] for i, j in itertools.pairwise(order)):
            areas.append(np.mean(np.cumsum(np.array(wrong)[list(order)]) / 5))
    log_probs = np.log([[c, 1 - c] for c in confidence]).astype(np.float32)
    found = ours("augrc", log_probs, np.array(wrong, np.int32))
    np.testing.assert_allclose(found, np.mean(areas), rtol=1e-6)


def test_one_error_in_twenty_is_a_risk_of_five_percent():
    log_probs, _ = classified(0, 20)
    labels = np.zeros(20, np.int32)
    labels[np.argmin(log_probs[:, 0])] = 1
    assert ours("coverage_at_risk", log_probs, labels) == 1


def test_illegal_probabilities_make_risk_coverage_nan():
    log_probs, labels = classified(0, 20)
    log_probs[3, 0] = np.nan
    for name in ("augrc", "coverage_at_risk"):
        assert jnp.isnan(ours(name, log_probs, labels))
