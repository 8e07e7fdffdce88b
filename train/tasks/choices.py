"""Rows with lettered choices, as in ARC and OpenBookQA.

`choices` holds two lists, `label` and `text`; `answerKey` is one of the labels. For
rows of another form the functions raise a ValueError that names the field.
"""

from collections.abc import Callable, Mapping

from ivon_jax.train.data.fields import field, shown, text
from ivon_jax.train.data.task import Choice, Row

LETTERS = ("A", "B", "C", "D")
# A few ARC items number their choices instead of lettering them.
_LETTER_OF = {**{c: c for c in LETTERS}, **dict(zip("1234", LETTERS, strict=True))}


def _choices(row: Row) -> list[tuple[str, str]]:
    """Returns (label, text) of every choice, in the row's order and labels."""
    choices = field(row, "choices")
    if not isinstance(choices, Mapping) or not all(
        isinstance(choices.get(key), list) for key in ("label", "text")
    ):
        raise ValueError("field 'choices' must hold two lists, 'label' and 'text'")
    pairs = list(zip(choices["label"], choices["text"], strict=False))
    if len(choices["label"]) != len(choices["text"]):
        raise ValueError("field 'choices' has more or fewer labels than texts")
    if not all(isinstance(part, str) and part for pair in pairs for part in pair):
        raise ValueError("field 'choices' must hold non-empty strings only")
    return pairs


def _lettered(row: Row) -> dict[str, str]:
    """Returns the text of every choice by letter, in the row's order."""
    pairs = _choices(row)
    letters = {_LETTER_OF.get(label, "?"): choice for label, choice in pairs}
    if sorted(letters) != list(LETTERS):
        labels = [label for label, _ in pairs]
        raise ValueError(f"choice labels {shown(labels)} are neither A-D nor 1-4")
    return letters


def choice_prompt(question: str) -> Callable[[Row], str]:
    """Returns the prompt function for questions in the named field.

    Every choice starts with a capital and ends in a full stop, as in the paper's code.
    """

    def prompt(row: Row) -> str:
        listed = []
        for letter, choice in _lettered(row).items():
            stop = "" if choice.endswith(".") else "."
            listed.append(f"{letter}. {choice[0].upper()}{choice[1:]}{stop}")
        return (
            "Select one of the choices that answers the following question: "
            f"{text(row, question)} Choices: {' '.join(listed)} Answer:"
        )

    return prompt


def choice_texts(row: Row) -> tuple[Choice, ...]:
    """Returns the text of every choice in the order of `LETTERS`, as it is written."""
    lettered = _lettered(row)
    return tuple(Choice("", f" {lettered[letter]}") for letter in LETTERS)


def choice_target(row: Row) -> int:
    """Returns the index in `LETTERS` of the right choice."""
    labels = [label for label, _ in _choices(row)]
    answer = text(row, "answerKey")
    if answer not in labels:
        raise ValueError(f"answerKey {shown(answer)} is not among {shown(labels)}")
    return LETTERS.index(_LETTER_OF[answer])


def four_choices(row: Row) -> bool:
    """Returns whether a row has four choices; the protocol drops others of ARC."""
    return len(_choices(row)) == len(LETTERS)
