"""Prediction sets: their coverage, and other implementations."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax.conformal import Conformal, fewest_examples

SCORES = ("lac", "aps", "raps")


def draw(rng, n, classes=5):
    """Probabilities that are wrong in part, and labels."""
    logits = rng.normal(size=(n, classes)) * 2
    true = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((n, 1)) > true.cumsum(axis=1)[:, :-1]).sum(axis=1)
    stated = np.exp(1.7 * logits + rng.normal(size=(n, classes)))
    return stated / stated.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("n", "alpha"), [(19, 0.1), (50, 0.3), (199, 0.05)])
def test_sets_cover_as_often_as_they_should(score, n, alpha):
    """Exact for n (Angelopoulos and Bates, 2023): k/(n+1), over 1,000 calibrations."""
    rng = np.random.default_rng(1)
    draws, new = 1000, 20
    covered = np.zeros(draws)
    for i in range(draws):
        probs, labels = draw(rng, n + new)
        noise = rng.random(n + new)
        rule = Conformal.fit(score, alpha, probs[:n], labels[:n], noise[:n])
        # Without the top class that every set is given.
        inside = rule.scores(probs[n:], noise[n:]) <= rule.quantile
        covered[i] = inside[np.arange(new), labels[n:]].mean()
    k = math.ceil(round((n + 1) * (1 - alpha), 9))
    # Given the calibration the coverage is Beta(k, n + 1 - k).
    mean = k / (n + 1)
    beta = mean * (1 - mean) / (n + 2)
    variance = beta + (mean * (1 - mean) - beta) / new
    assert abs(covered.mean() - mean) < 5 * math.sqrt(variance / draws)
    assert mean >= 1 - alpha


@given(
    seed=st.integers(0, 2**32 - 1),
    score=st.sampled_from(SCORES),
    random=st.booleans(),
)
def test_a_set_is_the_classes_that_conform_and_the_top_one(seed, score, random):
    rng = np.random.default_rng(seed)
    probs, labels = draw(rng, 40)
    noise = rng.random(40) if random else None
    rule = Conformal.fit(score, 0.2, probs, labels, noise)
    sets = rule.sets(probs, noise)
    for i, row in enumerate(probs):
        order = sorted(range(5), key=lambda c, row=row: -row[c])
        for rank, c in enumerate(order):
            if score == "lac":
                wanted = 1 - row[c]
            else:
                own = noise[i] if random else 1
                wanted = sum(row[d] for d in order[:rank]) + own * row[c]
                wanted += 0.1 * rank if score == "raps" else 0
            assert sets[i, c] == (wanted <= rule.quantile + 1e-12 or rank == 0)


@pytest.mark.parametrize("score", SCORES)
def test_too_few_examples_exclude_nothing(score):
    probs, labels = draw(np.random.default_rng(0), 19)
    assert fewest_examples(0.05) == 19
    few = Conformal.fit(score, 0.05, probs[:18], labels[:18])
    assert few.quantile == math.inf and few.sets(probs).all()
    assert Conformal.fit(score, 0.05, probs, labels).quantile < math.inf


@given(st.integers(1, 1000))
def test_the_fewest_examples_are_the_first_whose_rank_exists(n):
    for alpha in (0.01, 0.05, 0.07, 0.1, 0.3, 0.5, 0.9):
        exists = round((n + 1) * (1 - alpha), 9) <= n
        assert (n >= fewest_examples(alpha)) == exists


def test_larger_noise_gives_smaller_or_equal_sets_of_the_same_rule():
    probs, labels = draw(np.random.default_rng(2), 100)
    rule = Conformal.fit("aps", 0.2, probs, labels)
    assert (rule.sets(probs, np.zeros(100)) >= rule.sets(probs)).all()


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_illegal_alphas(alpha):
    with pytest.raises(ValueError, match=r"^alpha: .* is not in \(0, 1\)$"):
        fewest_examples(alpha)
    with pytest.raises(ValueError, match="^alpha: "):
        Conformal("lac", alpha, 1.0)


class Given:
    """A fitted classifier, for MAPIE, whose inputs are the probabilities."""

    _estimator_type = "classifier"
    classes_ = np.arange(5)

    def fit(self, x, y):
        return self

    def predict_proba(self, x):
        return np.asarray(x)

    def predict(self, x):
        return np.asarray(x).argmax(axis=1)

    def __sklearn_is_fitted__(self):
        return True

    def __sklearn_tags__(self):
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(),
        )


@pytest.mark.parametrize("score", ["lac", "aps"])
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25])
def test_sets_are_those_of_mapie(score, alpha):
    mapie = pytest.importorskip("mapie.classification")
    rng = np.random.default_rng(7)
    (held, labels), (new, _) = draw(rng, 157), draw(rng, 80)
    theirs = mapie.SplitConformalClassifier(
        Given(), confidence_level=1 - alpha, conformity_score=score, random_state=3
    )
    theirs.conformalize(held, labels)
    params = {"include_last_label": "randomized"} if score == "aps" else {}
    _, wanted = theirs.predict_set(new, conformity_score_params=params)
    # MAPIE keeps the other part of a class's own probability.
    noise, other = (1 - np.random.RandomState(3).uniform(size=n) for n in (157, 80))
    rule = Conformal.fit(score, alpha, held, labels, noise)
    wanted = wanted[:, :, 0]
    wanted[np.arange(80), new.argmax(axis=1)] = True
    np.testing.assert_array_equal(rule.sets(new, other), wanted)
    assert 1 < wanted.sum(axis=1).mean() < 5


@pytest.mark.parametrize("score", SCORES)
def test_scores_are_those_of_torch_uncertainty(score):
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("torch_uncertainty.post_processing.conformal")
    probs, _ = draw(np.random.default_rng(4), 60)
    theirs = {
        "lac": lambda p: 1 - p,  # there inline
        "aps": peers.ConformalClsAPS(0.1, randomized=False)._calculate_all_labels,
        "raps": peers.ConformalClsRAPS(0.1, randomized=False)._calculate_all_labels,
    }[score](torch.tensor(probs))
    found = Conformal(score, 0.1, 1.0).scores(probs)
    np.testing.assert_allclose(found, theirs.numpy(), rtol=0, atol=1e-12)
