"""Votes of parsed answers: minimum Bayes risk with a utility of 0 or 1."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple


class Vote(NamedTuple):
    """The outcome of a vote.

    Attributes:
        answer: the answer of most weight, of tied ones the first that was given; None
            if there is none.
        output: position of the first output that gave it.
        share: its share of all weight, that of outputs without an answer included: a
            confidence.
        margin: its share minus that of the next.
    """

    answer: Any
    output: int | None
    share: float
    margin: float


def vote(
    answers: Sequence[Hashable | None], weights: Sequence[float] | None = None
) -> Vote:
    """Finds the answer that most outputs give.

    Args:
        answers: parsed answers; None for outputs that have none, which cast no vote.
        weights: of each output, not negative, as its probability.

    Raises:
        ValueError: there are no outputs, or weights do not fit.

    Example:
        >>> vote(["8", "7", None, "7", "9"])
        Vote(answer='7', output=1, share=0.4, margin=0.2)
        >>> vote(["8", "7"], weights=[1.0, 3.0]).answer
        '7'
        >>> vote([None, None])
        Vote(answer=None, output=None, share=0.0, margin=0.0)
    """
    given = [1.0] * len(answers) if weights is None else list(map(float, weights))
    total = sum(given)
    fits = len(given) == len(answers) and min(given, default=-1) >= 0
    if not fits or not total > 0:
        raise ValueError(f"weights: are not {len(answers)} numbers >= 0, one above 0")
    sums: dict[Hashable, float] = {}
    for answer, weight in zip(answers, given, strict=True):
        if answer is not None:
            sums[answer] = sums.get(answer, 0.0) + weight
    if not sums:
        return Vote(None, None, 0.0, 0.0)
    winner = max(sums, key=sums.__getitem__)  # the first of the highest
    second = max((value for key, value in sums.items() if key != winner), default=0.0)
    first = next(i for i, answer in enumerate(answers) if answer == winner)
    return Vote(winner, first, sums[winner] / total, (sums[winner] - second) / total)
