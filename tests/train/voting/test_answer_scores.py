"""Scores of written answers against counts by hand and other code."""

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest

from ivon_jax.train.voting.scores import Answers, scores

# Three questions, two models, four outputs of each.
SAMPLED = [
    [["1", "1", "2", None], ["1", "2", "2", "1"]],
    [["4", "5", "5", "5"], ["4", "4", "4", "6"]],
    [[None, None, "8", None], [None, None, None, None]],
]
GREEDY = [["1", "2"], ["4", "4"], [None, "8"]]
GOLD = ["1", "4", "9"]
ANSWERS = Answers(GOLD, SAMPLED, GREEDY, cut=0.25)


@pytest.fixture(scope="module")
def row():
    return scores(ANSWERS)


def test_counts_and_accuracies(row):
    assert (row["models"], row["outputs"], row["cut"]) == (2, 8, 0.25)
    assert row["greedy_accuracy"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert row["sample_accuracy"] == pytest.approx((4 / 8 + 4 / 8 + 0) / 3)
    assert row["vote_accuracy"] == pytest.approx(2 / 3)
    assert row["pass_accuracy"] == pytest.approx(2 / 3)
    assert row["parsed"] == pytest.approx((7 + 8 + 1) / 24)


def test_confidence_is_the_share_of_all_outputs(row):
    assert row["vote_right"] == [True, True, False]
    assert row["vote_share"] == [4 / 8, 4 / 8, 1 / 8]
    brier = np.mean([(0.5 - 1) ** 2, (0.5 - 1) ** 2, (1 / 8) ** 2])
    assert row["vote_brier"] == pytest.approx(brier)
    assert row["vote_auroc"] == 1.0
    assert row["vote_aurc"] == pytest.approx((0 + 0 + 1 / 3) / 3)
    assert row["vote_ece"] == pytest.approx((2 * 0.5 + 1 / 8) / 3)


def test_errors_are_over_questions(row):
    for name, values in (("greedy", [0.5, 1, 0]), ("sample", [0.5, 0.5, 0])):
        error = np.std(values, ddof=1) / math.sqrt(3)
        assert row["vote_errors"][f"{name}_accuracy"] == pytest.approx(error)


def entropy(shares):
    return -sum(share * math.log(share) for share in shares if share)


def test_entropy_is_averaged_over_the_questions_with_answers(row):
    first = entropy([(2 / 3 + 1 / 2) / 2, (1 / 3 + 1 / 2) / 2])
    second = entropy([1 / 2, 3 / 8, 1 / 8])
    assert row["entropy"] == pytest.approx((first + second + 0) / 3)
    within = [
        entropy([2 / 3, 1 / 3]),
        entropy([1 / 2, 1 / 2]),
        2 * entropy([1 / 4, 3 / 4]),
    ]
    assert row["entropy_within"] == pytest.approx(sum(within) / 2 / 3)
    total = row["entropy_within"] + row["entropy_between"]
    assert total == pytest.approx(row["entropy"])


def test_curve_ends_at_all_outputs(row):
    curve = row["curve"]
    assert curve["outputs"] == [1, 2, 4, 8]
    # One output's vote is its answer; ties of all eight are broken by their order.
    assert curve["pass"][0] == curve["vote"][0]
    assert curve["vote"][0] == pytest.approx(row["sample_accuracy"], abs=0.15)
    assert curve["pass"][-1] == pytest.approx(row["pass_accuracy"])
    assert curve["pass"] == sorted(curve["pass"])
    assert curve["vote"][-1] == pytest.approx(2 / 3)


def test_a_grid_has_every_number_of_models_and_outputs(row):
    pairs = [(point["models"], point["outputs"]) for point in row["grid"]]
    assert sorted(pairs) == list(itertools.product([1, 2], [1, 2, 4]))
    whole = next(p for p in row["grid"] if (p["models"], p["outputs"]) == (2, 4))
    assert whole["vote"] == pytest.approx(row["vote_accuracy"])
    # The first model alone is right on the first question, the second is torn.
    half = next(p for p in row["grid"] if (p["models"], p["outputs"]) == (1, 4))
    torn = (1 + 1 / 2) / 2, 1 / 2, 0
    assert half["vote"] == pytest.approx(sum(torn) / 3, abs=0.15)


def test_one_model_has_no_grid_and_no_entropy_between():
    one = [[[a for model in question for a in model]] for question in SAMPLED]
    row = scores(Answers(GOLD, one, [g[:1] for g in GREEDY], 0.0))
    assert row["grid"] == [] and row["models"] == 1
    assert row["entropy_between"] == 0 and row["entropy"] > 0


def test_what_is_not_defined_is_left_out():
    nothing = [[[None] * 2] * 2] * 3
    row = scores(Answers(GOLD, nothing, [[None] * 2] * 3, 1.0))
    assert row["vote_accuracy"] == row["pass_accuracy"] == row["parsed"] == 0
    assert not {"vote_auroc", "entropy"} & row.keys()
    # Plain JSON, which has no NaN.
    assert json.loads(json.dumps(row, allow_nan=False)) == row


def test_a_vote_is_the_most_common_answer_first_given():
    rng = np.random.default_rng(0)
    sampled = [[rng.choice(list("123"), 5).tolist() for _ in "ab"] for _ in range(40)]
    gold = rng.choice(list("123"), 40).tolist()
    row = scores(Answers(gold, sampled, [["1", "1"]] * 40, 0.0))
    for question, truth, right, share in zip(
        sampled, gold, row["vote_right"], row["vote_share"], strict=True
    ):
        ((answer, count),) = Counter(itertools.chain(*question)).most_common(1)
        assert right == (answer == truth) and share == count / 10
