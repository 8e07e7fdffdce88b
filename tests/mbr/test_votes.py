"""Votes, curves and confidences against enumerations and other libraries."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ivon_jax
from ivon_jax import mbr

answers = st.lists(st.sampled_from(["7", "8", "9", None]), min_size=1, max_size=9)


@given(answers)
def test_a_vote_is_minimum_bayes_risk_of_equality(given):
    found = mbr.vote(given)
    parsed = [(i, a) for i, a in enumerate(given) if a is not None]
    if not parsed:
        assert found == (None, None, 0.0, 0.0)
        return
    texts = [a for _, a in parsed]
    scores = mbr.expected_utility(mbr.utility_matrix(texts, texts, mbr.exact))
    place, answer = parsed[mbr.best(scores)]
    assert (found.answer, found.output) == (answer, place)
    counts = sorted((texts.count(a) for a in set(texts)), reverse=True)
    assert found.share == pytest.approx(counts[0] / len(given))
    second = counts[1] if len(counts) > 1 else 0
    assert found.margin == pytest.approx((counts[0] - second) / len(given))


@given(answers, st.integers(0, 99))
def test_a_weight_counts_as_so_many_votes(given, seed):
    weights = np.random.default_rng(seed).integers(0, 4, len(given))
    weights[0] += 1
    repeated = [a for a, w in zip(given, weights, strict=True) for _ in range(w)]
    counts = {a: repeated.count(a) for a in repeated if a is not None}
    found = mbr.vote(given, weights.tolist())
    if counts:
        assert counts[found.answer] == max(counts.values())
        assert found.share == pytest.approx(max(counts.values()) / len(repeated))


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], []])
def test_weights_that_do_not_fit_are_refused(weights):
    with pytest.raises(ValueError, match="weights: are not 2 numbers >= 0"):
        mbr.vote(["7", "8"], weights)


@given(st.integers(1, 7), st.data())
def test_pass_at_n_is_the_share_of_subsets(total, data):
    correct = data.draw(st.integers(0, total))
    n = data.draw(st.integers(1, total))
    subsets = list(itertools.combinations(range(total), n))
    hits = sum(any(i < correct for i in subset) for subset in subsets)
    assert mbr.pass_at(correct, total, n) == pytest.approx(hits / len(subsets))


@pytest.mark.parametrize(("correct", "total", "n"), [(3, 2, 1), (0, 2, 3), (0, 2, 0)])
def test_pass_at_refuses_what_cannot_be(correct, total, n):
    with pytest.raises(ValueError, match="n: "):
        mbr.pass_at(correct, total, n)


def model_first(question, n):
    """Every first n outputs, as models and outputs of a model are in any order."""
    for models in itertools.permutations(question):
        orders = [list(itertools.permutations(outputs)) for outputs in models]
        for choice in itertools.product(*orders):
            yield [answer for outputs in choice for answer in outputs][:n]


QUESTIONS = [
    [["1", "2"], ["1", "3"], ["2", None]],
    [["4", "4"], ["5", "5"], ["5", "4"]],
    [[None, None], [None, None], [None, None]],
]
GOLD = ["1", "4", "9"]


def test_curves_are_means_over_subsets_of_whole_models():
    counts, draws = [1, 2, 3, 4, 6], 4000
    votes, passes = mbr.curves(QUESTIONS, GOLD, counts, draws=draws)
    for place, n in enumerate(counts):
        won, there = [], []
        for question, gold in zip(QUESTIONS, GOLD, strict=True):
            subsets = list(model_first(question, n))
            won.append(np.mean([mbr.vote(s).answer == gold for s in subsets]))
            there.append(np.mean([gold in s for s in subsets]))
        for curve, expected in ((votes, won), (passes, there)):
            noise = math.sqrt(sum(p * (1 - p) for p in expected) / draws) / 3
            assert abs(curve.mean[place] - np.mean(expected)) <= 6 * noise + 1e-12
            error = np.std(expected, ddof=1) / math.sqrt(3)
            assert curve.error[place] == pytest.approx(error, abs=0.02)


@pytest.mark.parametrize(
    ("models", "outputs"), [(1, 1), (1, 2), (2, 1), (3, 1), (2, 2)]
)
def test_curves_of_some_outputs_of_each_model(models, outputs):
    n, draws = models * outputs, 4000
    votes, _ = mbr.curves(QUESTIONS, GOLD, [n], draws=draws, per_model=outputs)
    won = []
    for question, gold in zip(QUESTIONS, GOLD, strict=True):
        hits = [
            mbr.vote([a for own in choice for a in own]).answer == gold
            for chosen in itertools.permutations(question, models)
            for choice in itertools.product(
                *(itertools.permutations(own, outputs) for own in chosen)
            )
        ]
        won.append(np.mean(hits))
    noise = math.sqrt(sum(p * (1 - p) for p in won) / draws) / 3
    assert abs(votes.mean[0] - np.mean(won)) <= 6 * noise + 1e-12


def test_pass_of_single_outputs_has_the_closed_form():
    question = [["1"], ["2"], ["1"], ["3"], ["2"]]
    _, passes = mbr.curves([question], ["1"], [1, 2, 4, 5], draws=20_000)
    expected = [mbr.pass_at(2, 5, n) for n in (1, 2, 4, 5)]
    np.testing.assert_allclose(passes.mean, expected, atol=0.02)
    assert passes.error.tolist() == [0.0] * 4


def test_curves_of_one_seed_are_the_same():
    first, again, other = (
        mbr.curves(QUESTIONS, GOLD, [1, 3], draws=5, seed=seed)[0].mean.tolist()
        for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [7]}, r"counts: \[7\] are not in 1 .. 6"),
        ({"counts": [0]}, r"counts: \[0\] are not in 1 .. 6"),
        ({"counts": []}, r"counts: \[\] are not in 1 .. 6"),
        ({"gold": ["1"]}, "gold: 1 answers for 3 questions"),
        ({"draws": 0}, "draws: 0 is not >= 1"),
        ({"per_model": 0}, "per_model: 0 is not >= 1"),
        ({"counts": [4], "per_model": 1}, r"counts: \[4\] are not in 1 .. 3"),
    ],
)
def test_curves_refuse_what_does_not_fit(change, message):
    options = {"answers": QUESTIONS, "gold": GOLD, "counts": [1], **change}
    with pytest.raises(ValueError, match=message):
        mbr.curves(**options)


@given(
    st.lists(st.tuples(st.sampled_from(["7", "8", None]), st.integers(0, 2))).filter(
        lambda pairs: any(answer is not None for answer, _ in pairs)
    )
)
def test_entropy_splits_into_that_of_models_and_between_them(pairs):
    given, models = zip(*pairs, strict=True)
    found = mbr.answer_entropy(given, models)
    shares = {}
    for answer, model in pairs:
        if answer is not None:
            shares.setdefault(model, []).append(answer == "7")
    of_seven = [np.mean(own) for own in shares.values()]

    def binary(p):
        return -sum(q * math.log(q) for q in (p, 1 - p) if q > 0)

    assert found.total == pytest.approx(binary(np.mean(of_seven)), abs=1e-12)
    within = np.mean([binary(p) for p in of_seven])
    assert found.within == pytest.approx(within, abs=1e-12)
    assert found.between == pytest.approx(found.total - within, abs=1e-12)
    assert found.between >= 0


def test_one_model_has_no_entropy_between_models():
    found = mbr.answer_entropy(["7", "8", "8", None])
    assert found.between == 0 and found.total == found.within > 0
    assert np.isnan(mbr.answer_entropy([None, None])).all()


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=30))
def test_confidences_are_scored_as_by_other_libraries(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    sure = np.array([k for k, _ in pairs]) / 8
    right = np.array([r for _, r in pairs])
    found = mbr.confidence_scores(sure, right)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["brier"] == pytest.approx(np.mean((sure - right) ** 2))
    if right.all() or not right.any():
        assert np.isnan(found["auroc"])
    else:
        expected = metrics.roc_auc_score(right, sure)
        assert found["auroc"] == pytest.approx(expected)
    gaps = 0.0
    for low in range(15):
        own = np.floor(np.minimum(sure * 15, 14.5)) == low
        if own.any():
            gaps += own.sum() * abs(sure[own].mean() - right[own].mean())
    assert found["ece"] == pytest.approx(gaps / len(sure))


@given(
    st.lists(st.tuples(st.integers(10, 20), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([1, 4, 5, 10, 15]),
)
def test_shares_on_the_edges_of_bins_are_binned_as_by_the_metrics(pairs, bins):
    sure, right = np.array([k for k, _ in pairs]) / 20, [r for _, r in pairs]
    found = mbr.confidence_scores(sure, np.array(right), bins)["ece"]
    with np.errstate(divide="ignore"):
        log_probs = np.log(np.stack([sure, 1 - sure], axis=1), dtype=np.float32)
    labels = jnp.where(np.array(right), 0, 1)
    expected = ivon_jax.metrics.ece(jnp.asarray(log_probs), labels, bins)
    assert found == pytest.approx(float(expected), abs=1e-5)


def test_risk_and_coverage_average_over_the_orders_of_ties():
    sure, right = np.array([0.5, 0.9, 0.5, 0.5, 0.1]), np.array([1, 0, 1, 0, 1], bool)
    areas = []
    for order in itertools.permutations(range(5)):
        if all(sure[a] >= sure[b] for a, b in itertools.pairwise(order)):
            wrong = np.cumsum(~right[list(order)])
            areas.append(np.mean(wrong / np.arange(1, 6)))
    found = mbr.confidence_scores(sure, right)["aurc"]
    assert found == pytest.approx(np.mean(areas))


@pytest.mark.parametrize("sure", [[], [1.1], [-0.1], [np.nan]])
def test_confidences_out_of_range_are_refused(sure):
    with pytest.raises(ValueError, match=r"confidence: is not one or more numbers in"):
        mbr.confidence_scores(np.array(sure), np.ones(len(sure), bool))
