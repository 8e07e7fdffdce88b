"""Scores of generated answers: accuracy by number of outputs, and calibration."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ivon_jax import mbr

# Of one question: the answer of each output of each model, None where it has none.
Sampled = Sequence[Sequence[str | None]]


class Answers(NamedTuple):
    """The answers of one posterior, or of one model.

    Attributes:
        gold: the right answer of each question.
        sampled: of each question, the answers by model and output.
        greedy: of each question, each model's answer by greedy decoding.
        cut: share of the sampled outputs that were ended by their length.
    """

    gold: Sequence[str]
    sampled: Sequence[Sampled]
    greedy: Sequence[Sequence[str | None]]
    cut: float


def scores(answers: Answers) -> dict[str, Any]:
    """Scores answers, as fields of a row of results: plain JSON values.

    Args:
        answers: the answers; every question has the same numbers of models and outputs.

    Returns:
        ``models`` and ``outputs``, the numbers of both of a question;
        ``greedy_accuracy`` and ``sample_accuracy``, means over models, and over single
        outputs; ``vote_accuracy`` and ``pass_accuracy``, of all outputs: the share of
        questions whose vote is right, and of those with a right output; ``parsed``, the
        share of outputs with an answer; ``cut``.
        ``vote_ece``, ``vote_brier``, ``vote_auroc``, ``vote_aurc``: of the share of the
        vote as confidence, see `ivon_jax.mbr.confidence_scores`; ``vote_auroc`` is left
        out if all votes are alike.
        ``entropy``, ``entropy_within``, ``entropy_between``: nats, means over questions
        with an answer, see `ivon_jax.mbr.answer_entropy`; left out if there are none.
        ``vote_errors``: standard errors of the accuracies over questions.
        ``curve``: see `curve`. ``grid``: see `grid`.
        ``vote_right`` and ``vote_share``: whether each question's vote is right, and
        its share.

    Example:
        >>> row = scores(Answers(["7"], [[["7", "8"], ["7", None]]], [["8", "7"]], 0.0))
        >>> row["vote_accuracy"], row["vote_share"], row["sample_accuracy"]
        (1.0, [0.5], 0.5)
    """
    gold, sampled = answers.gold, answers.sampled
    pooled = [[a for model in question for a in model] for question in sampled]
    votes = [mbr.vote(question) for question in pooled]
    right = [vote.answer == truth for vote, truth in zip(votes, gold, strict=True)]
    by_question = {
        "greedy_accuracy": _rates(answers.greedy, gold),
        "sample_accuracy": _rates(pooled, gold),
        "vote_accuracy": np.array(right, np.float64),
        "pass_accuracy": np.array(
            [float(truth in found) for truth, found in zip(gold, pooled, strict=True)]
        ),
    }
    shares = [vote.share for vote in votes]
    sure = mbr.confidence_scores(np.array(shares), np.array(right))
    row = {
        "models": len(sampled[0]),
        "outputs": len(pooled[0]),
        **{name: float(values.mean()) for name, values in by_question.items()},
        "parsed": float(np.mean([[a is not None for a in q] for q in pooled])),
        "cut": answers.cut,
        **{f"vote_{name}": sure[name] for name in ("ece", "brier", "auroc", "aurc")},
        **_entropies(sampled),
    }
    return {name: value for name, value in row.items() if not math.isnan(value)} | {
        "vote_errors": {name: _error(values) for name, values in by_question.items()},
        "curve": curve(answers),
        "grid": grid(answers),
        "vote_right": right,
        "vote_share": shares,
    }


def curve(answers: Answers) -> dict[str, Any]:
    """Computes accuracies by number of outputs, over random subsets of whole models.

    Args:
        answers: the answers.

    Returns:
        ``outputs``, which are powers of two and all; ``vote`` and ``pass``, maj@n and
        pass@n, with ``vote_error`` and ``pass_error``, standard errors over questions.
    """
    counts = _powers(sum(map(len, answers.sampled[0])))
    voted, passed = mbr.curves(answers.sampled, answers.gold, counts)
    return {
        "outputs": counts,
        "vote": voted.mean.tolist(),
        "vote_error": voted.error.tolist(),
        "pass": passed.mean.tolist(),
        "pass_error": passed.error.tolist(),
    }


def grid(answers: Answers) -> list[dict[str, float]]:
    """Computes maj@n for numbers of models and of outputs of each.

    Args:
        answers: the answers.

    Returns:
        A row for each pair of ``models`` and ``outputs``, powers of two and all, with
        ``vote`` and ``vote_error``; empty if there is one model only.
    """
    models = _powers(len(answers.sampled[0]))
    if len(models) == 1:
        return []
    found = []
    for outputs in _powers(len(answers.sampled[0][0])):
        counts = [count * outputs for count in models]
        voted, _ = mbr.curves(answers.sampled, answers.gold, counts, per_model=outputs)
        found += [
            {"models": count, "outputs": outputs, "vote": mean, "vote_error": error}
            for count, mean, error in zip(
                models, voted.mean.tolist(), voted.error.tolist(), strict=True
            )
        ]
    return found


def _powers(most: int) -> list[int]:
    """Returns the powers of two below a number, and the number."""
    return [2**i for i in range((most - 1).bit_length())] + [most]


def _rates(
    answers: Sequence[Sequence[str | None]], gold: Sequence[str]
) -> Float[np.ndarray, " n"]:
    """Returns the share of each question's answers that are right."""
    return np.array(
        [
            np.mean([answer == truth for answer in found])
            for found, truth in zip(answers, gold, strict=True)
        ]
    )


def _error(values: Float[np.ndarray, " n"]) -> float:
    if len(values) == 1:
        return 0.0
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def _entropies(sampled: Sequence[Sampled]) -> dict[str, float]:
    """Averages the entropy and its parts over the questions with an answer."""
    found = []
    for question in sampled:
        answers = [answer for model in question for answer in model]
        models = [i for i, model in enumerate(question) for _ in model]
        if any(answer is not None for answer in answers):
            found.append(mbr.answer_entropy(answers, models))
    if not found:
        return {}
    total, within, between = np.mean(found, axis=0).tolist()
    return {
        "entropy": total,
        "entropy_within": within,
        "entropy_between": between,
    }
