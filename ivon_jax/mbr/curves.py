"""Accuracy of the vote, and of the best output, as the number of outputs grows."""

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from ivon_jax.checks import AT_LEAST_ONE, check

# Of one question: the answers of each model's outputs.
Answers = Sequence[Sequence[Hashable | None]]


class Curve(NamedTuple):
    """Accuracy by number of outputs.

    Attributes:
        counts: numbers of outputs.
        mean: accuracy, averaged over questions and subsets of outputs.
        error: standard error over questions; other training seeds vary more.
    """

    counts: Int[np.ndarray, " c"]
    mean: Float[np.ndarray, " c"]
    error: Float[np.ndarray, " c"]


def pass_at(correct: int, total: int, n: int) -> float:
    """Returns the probability that n of the outputs hold a correct one.

    Without bias for any n (Chen et al. 2021, arXiv:2107.03374, Eq. 1).

    Args:
        correct: number of correct outputs.
        total: number of outputs.
        n: number to draw without replacement, at most `total`.

    Raises:
        ValueError: the numbers do not fit each other.

    Example:
        >>> pass_at(1, 4, 2)
        0.5
    """
    if not 0 <= correct <= total or not 1 <= n <= total:
        raise ValueError(f"n: {n} of {total} outputs, {correct} correct, cannot be")
    return 1 - math.comb(total - correct, n) / math.comb(total, n)


def curves(
    answers: Sequence[Answers],
    gold: Sequence[Hashable],
    counts: Sequence[int],
    draws: int = 100,
    seed: int = 0,
    per_model: int | None = None,
) -> tuple[Curve, Curve]:
    """Computes maj@n and pass@n over random subsets of whole models.

    A subset is the first n outputs after models, and the outputs of each, have been
    shuffled: n outputs are those of as few models as hold them, as if n outputs had
    been asked for at once.

    Args:
        answers: for each question, the answers by model and output; None where an
            output has none, which casts no vote.
        gold: the right answers.
        counts: numbers of outputs.
        draws: number of subsets.
        seed: seed of the subsets.
        per_model: number of outputs to take of a model; None for all.

    Returns:
        Accuracy of the vote, and share of questions with a correct output.

    Raises:
        ValueError: there are no questions, or fewer outputs than asked for.

    Example:
        >>> votes, _ = curves([[["1", "2"], ["1", "1"]]], ["1"], [4])
        >>> votes.mean.tolist()
        [1.0]
    """
    check("draws", draws, AT_LEAST_ONE)
    if per_model is not None:
        check("per_model", per_model, AT_LEAST_ONE)
    wanted = np.array(counts)
    fewest = min(
        (sum(len(model[:per_model]) for model in question) for question in answers),
        default=0,
    )
    if not len(wanted) or not (wanted >= 1).all() or not (wanted <= fewest).all():
        raise ValueError(f"counts: {list(counts)} are not in 1 .. {fewest}")
    if len(gold) != len(answers):
        raise ValueError(f"gold: {len(gold)} answers for {len(answers)} questions")
    rng = np.random.default_rng(seed)
    hits = np.zeros((2, len(answers), len(wanted)))
    for question, (models, right) in enumerate(zip(answers, gold, strict=True)):
        known = {right: 0}
        coded = [
            np.array([-1 if a is None else known.setdefault(a, len(known)) for a in m])
            for m in models
        ]
        for _ in range(draws):
            order = [
                rng.permutation(coded[i])[:per_model]
                for i in rng.permutation(len(coded))
            ]
            hits[:, question] += _hits(np.concatenate(order), wanted, len(known))
    hits /= draws
    means = hits.mean(axis=1)
    spread = hits.std(axis=1, ddof=1) if len(answers) > 1 else np.full_like(means, 0)
    errors = spread / math.sqrt(len(answers))
    voted, passed = (
        Curve(wanted, mean, error) for mean, error in zip(means, errors, strict=True)
    )
    return voted, passed


def _hits(
    codes: Int[np.ndarray, " n"], counts: Int[np.ndarray, " c"], classes: int
) -> Bool[np.ndarray, "2 c"]:
    """Returns whether class 0 wins the first outputs' vote, and whether it occurs."""
    given = codes[:, None] == np.arange(classes)
    votes = np.cumsum(given, axis=0)[counts - 1]
    # Ties go to the class that comes first.
    firsts = np.where(given.any(axis=0), given.argmax(axis=0), len(codes))
    order = np.argsort(firsts, kind="stable")
    there = votes[:, 0] > 0
    return np.stack([there & (order[votes[:, order].argmax(axis=1)] == 0), there])
