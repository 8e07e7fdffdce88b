"""Utilities agree with other libraries, decisions with sums written out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax import mbr

TEXTS = ["the cat sat on the mat", "A cat sat on mats.", "", "dog", "the mat sat"]
texts = st.lists(st.text("ab c", max_size=6), min_size=1, max_size=6)
weights = st.floats(0.0, 10.0, allow_subnormal=False)


def levenshtein(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@given(candidates=texts, references=texts)
def test_edit_is_the_distance_by_the_textbook(candidates, references):
    pytest.importorskip("rapidfuzz")
    got = mbr.edit(candidates, references)
    for a, row in zip(candidates, got, strict=True):
        for b, value in zip(references, row, strict=True):
            longest = max(len(a), len(b))
            expected = 1 - levenshtein(a, b) / longest if longest else 1.0
            assert value == pytest.approx(expected)


def test_rouge_l_is_that_of_rouge_score():
    pytest.importorskip("rapidfuzz")
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    rouge = scorer.RougeScorer(["rougeL"])
    got = mbr.rouge_l(TEXTS, TEXTS)
    for i, a in enumerate(TEXTS):
        for j, b in enumerate(TEXTS):
            expected = rouge.score(b, a)["rougeL"].fmeasure
            assert got[i, j] == pytest.approx(expected)


@pytest.mark.parametrize("name", ["chrf", "bleu"])
def test_scores_of_sentences_are_those_of_sacrebleu(name):
    sacrebleu = pytest.importorskip("sacrebleu")
    score = {"chrf": sacrebleu.sentence_chrf, "bleu": sacrebleu.sentence_bleu}[name]
    got = mbr.UTILITIES[name](TEXTS, TEXTS[:3])
    for i, a in enumerate(TEXTS):
        for j, b in enumerate(TEXTS[:3]):
            assert got[i, j] == pytest.approx(score(a, [b]).score / 100)


@pytest.mark.parametrize("name", mbr.UTILITIES)
def test_utilities_are_shares_and_highest_for_the_same_text(name):
    for package in ("rapidfuzz", "sacrebleu"):
        pytest.importorskip(package)
    given = [text for text in TEXTS if text]
    got = mbr.UTILITIES[name](given, given)
    assert got.shape == (4, 4) and (got >= 0).all() and (got <= 1 + 1e-9).all()
    np.testing.assert_allclose(np.diag(got), 1.0)


def test_a_missing_library_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"needs sacrebleu; pip install ivon-jax\[mbr"):
        mbr.bleu(["a"], ["a"])


def test_cosine_is_that_of_the_vectors():
    vectors = {"a": [1.0, 0.0], "b": [3.0, 4.0], "c": [-1.0, 0.0], "d": [0.0, 0.0]}
    utility = mbr.cosine(lambda given: np.array([vectors[text] for text in given]))
    expected = [[1.0, 0.6, 0.0, 0.0], [0.6, 1.0, 0.0, 0.0]]
    np.testing.assert_allclose(utility(["a", "b"], list("abcd")), expected)


@given(candidates=texts, references=texts)
def test_equal_texts_are_scored_once(candidates, references):
    calls = []

    def score(a, b):
        calls.append((a, b))
        return len(a) - 0.5 * len(b)

    got = mbr.utility_matrix(candidates, references, mbr.pairwise(score))
    assert len(calls) == len(set(calls))
    expected = [[len(a) - 0.5 * len(b) for b in references] for a in candidates]
    np.testing.assert_array_equal(got, expected)


@given(st.data())
def test_expected_utilities_are_the_sums_written_out(data):
    n, m = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    values = st.lists(st.floats(0, 1), min_size=n * m, max_size=n * m)
    utilities = np.array(data.draw(values)).reshape(n, m)
    models = data.draw(st.lists(st.integers(0, 2), min_size=m, max_size=m))
    given = data.draw(st.lists(weights, min_size=m, max_size=m))
    given[0] += 1.0
    pooled = mbr.expected_utility(utilities, weights=given)
    per_model = mbr.expected_utility(utilities, models, "per-model", given)
    for i in range(n):
        total = sum(w * utilities[i, j] for j, w in enumerate(given))
        assert pooled[i] == pytest.approx(total / sum(given))
        means = []
        for model in set(models):
            own = [j for j in range(m) if models[j] == model]
            if sum(given[j] for j in own) > 0:
                mean = sum(given[j] * utilities[i, j] for j in own)
                means.append(mean / sum(given[j] for j in own))
        assert per_model[i] == pytest.approx(sum(means) / len(means))


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_pooled_and_per_model_agree_for_equal_numbers(models, outputs, seed):
    utilities = np.random.default_rng(seed).random((4, models * outputs))
    of = np.repeat(np.arange(models), outputs)
    pooled = mbr.expected_utility(utilities)
    per_model = mbr.expected_utility(utilities, of.tolist(), "per-model")
    np.testing.assert_allclose(pooled, per_model)


def test_the_first_of_the_best_is_chosen():
    assert mbr.best(np.array([0.2, 0.7, 0.7, 0.1])) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1.0]}, "weights: are not 3 numbers >= 0, one above 0"),
        ({"weights": [1.0, -1.0, 1.0]}, "weights: are not 3"),
        ({"weights": [0.0, 0.0, 0.0]}, "weights: are not 3"),
        ({"how": "per-model"}, "models: are not 3, one for each reference"),
        ({"how": "per-model", "models": [0]}, "models: are not 3"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mbr.expected_utility(np.ones((2, 3)), **options)
