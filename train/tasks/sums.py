"""A scripted text task: word problems of additions and subtractions.

The solution has the running totals, without carries: a small model makes independent
errors in it, which voting over several solutions corrects.
"""

import functools
import itertools
from typing import NamedTuple

from ivon_jax.train.data.exchanges import Exchange, Row
from ivon_jax.train.data.fields import text
from ivon_jax.train.data.task import Split, Task
from ivon_jax.train.tasks.final_number import MARK, final_number
from ivon_jax.train.tasks.hashing import choose

SIZES = {"train": 800, "eval": 200}
# Two digits: of SmolLM2-135M's samples for the first 33 questions about half were right
# after 200 steps of Adam with batch 8 and learning rate 1e-3.
SMALLEST, COUNT = 10, 90
# One of this many sets of numbers is held out.
HELD_OUT = 5
_NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gia", "Hugo")


class _Template(NamedTuple):
    """A problem; signs are those of the numbers after the first."""

    problem: str
    signs: str


_TEMPLATES = (
    _Template("{name} has {0} stamps and buys {1} more. How many now?", "+"),
    _Template("{name} had {0} coins and spent {1}. How many are left?", "-"),
    _Template(
        "A train has {0} seats; {name} counts {1} taken. How many are free?", "-"
    ),
    _Template("{name} picked {0} apples, then {1}, then {2}. How many in all?", "++"),
    _Template("{name} read {0} pages on Monday and {1} on Tuesday. In all?", "+"),
    _Template("A shop had {0} pens, sold {1} and received {2}. How many now?", "-+"),
    _Template("{name} scored {0} points, won {1} and lost {2}. What is left?", "+-"),
    _Template("A farm has {0} hens, {1} ducks and {2} geese. How many birds?", "++"),
    _Template("{name} walked {0} steps and then {1}. How many steps?", "+"),
    # Those below are in no training example.
    _Template("There were {0} books; {name} took {1} away. How many remain?", "-"),
    _Template("{name} saved {0} euros in May and {1} in June. How much in all?", "+"),
    _Template("A bus drove {0} km, {1} km and {2} km. How far altogether?", "++"),
)
_UNSEEN = 3


def totals(numbers: tuple[int, ...], signs: str) -> list[int]:
    """Returns the total after each number."""
    signed = (
        n if sign == "+" else -n for sign, n in zip(signs, numbers[1:], strict=True)
    )
    return list(itertools.accumulate((numbers[0], *signed)))


def solution(numbers: tuple[int, ...], signs: str) -> str:
    """Writes the running totals, then the answer.

    Example:
        >>> print(solution((47, 385, 96), "+-"))
        47 + 385 = 432
        432 - 96 = 336
        #### 336
    """
    found = totals(numbers, signs)
    steps = zip(found, signs, numbers[1:], found[1:], strict=False)
    lines = [f"{before} {sign} {n} = {after}" for before, sign, n, after in steps]
    return "\n".join([*lines, f"{MARK}{found[-1]}"])


@functools.cache
def _rows(split: Split) -> list[dict[str, str]]:
    """Makes the rows of a split; no set of numbers is in both."""
    known = len(_TEMPLATES) - (_UNSEEN if split == "train" else 0)
    rows: list[dict[str, str]] = []
    seen, index = set(), 0
    while len(rows) < SIZES[split]:
        template = _TEMPLATES[len(rows) % known]
        index += 1
        count = len(template.signs) + 1
        numbers = tuple(SMALLEST + choose(COUNT, split, index, i) for i in range(count))
        group = tuple(sorted(numbers))
        held_out = choose(HELD_OUT, "held out", group) == 0
        if group in seen or held_out == (split == "train"):
            continue
        if min(totals(numbers, template.signs)) < 0:
            continue
        seen.add(group)
        name = _NAMES[choose(len(_NAMES), split, index)]
        problem = template.problem.format(*numbers, name=name)
        rows.append({"problem": problem, "solution": solution(numbers, template.signs)})
    return rows


def sums_rows(split: Split) -> list[dict[str, str]]:
    """Returns the rows `{"problem", "solution"}` of one split, always the same.

    No set of numbers is in both splits, and a quarter of the evaluation examples are
    worded as no training example is.
    """
    return [dict(row) for row in _rows(split)]


def _exchange(row: Row) -> Exchange:
    return Exchange(f"{text(row, 'problem')}\n", text(row, "solution"))


def _task(style: str) -> Task:
    return Task("sums", "text", rows=sums_rows, exchange=_exchange, parse=final_number)


SUMS = {"sums": _task}
