"""The paper's data sets of commonsense reasoning, with its prompts.

In the style "choice_text" the questions are lm-eval's, and the choices' texts are
compared: small models do not use letters.
"""

import functools
from collections.abc import Callable

from ivon_jax.train.data.fields import Template, field, shown, text
from ivon_jax.train.data.task import Choice, Row, Source, Task
from ivon_jax.train.tasks import choices

# name: (field of the question, hub id, configuration, local folder)
_CHOICE = {
    "arc_challenge": ("question", "allenai/ai2_arc", "ARC-Challenge", "ARC-Challenge"),
    "arc_easy": ("question", "allenai/ai2_arc", "ARC-Easy", "ARC-Easy"),
    "openbookqa": ("question_stem", "allenai/openbookqa", "main", "openbookqa"),
}
# Questions before a choice's text.
_ASKED = {
    "question": "Question: {question}\nAnswer:",
    "question_stem": "{question_stem}",
}


def _choice_task(name: str, style: str) -> Task:
    question, hub, config, folder = _CHOICE[name]
    by_text = style == "choice_text"
    return Task(
        name,
        "commonsense",
        Template(_ASKED[question]) if by_text else choices.choice_prompt(question),
        choices.choice_target,
        choices.LETTERS,
        choices=choices.choice_texts if by_text else None,
        keep=choices.four_choices,
        source=Source(hub, config, f"{folder}/train", f"{folder}/validation"),
    )


def _winogrande(name: str, style: str) -> Task:
    # One validation split serves every training size.
    source = Source(
        "allenai/winogrande", name, f"{name}/train", "winogrande/validation"
    )
    words = ("A", "B")
    if style == "choice_text":
        parts = (_before_blank, _option, words)
        return Task(name, "commonsense", *parts, choices=_filled_in, source=source)
    options = {
        # The published code omits the full stop after B, and adds one per option.
        "paper_code": "A. {option1}. B {option2}.",
        "paper_table": "A. {option1} B. {option2}",
    }[style]
    prompt = Template(
        "Select one of the choices that answers the following question: "
        f"{{sentence}} Choices: {options} Answer:"
    )
    return Task(name, "commonsense", prompt, _option, words, source=source)


def _parts(row: Row) -> tuple[str, str]:
    """Returns the sentence before and after its blank."""
    before, blank, after = text(row, "sentence").partition("_")
    if not blank or not after.strip():
        raise ValueError("field 'sentence' has no blank, _, or nothing after it")
    return before, after.strip()


def _before_blank(row: Row) -> str:
    return _parts(row)[0]


def _filled_in(row: Row) -> tuple[Choice, ...]:
    """Returns both options, given, and the same rest of the sentence, scored."""
    rest = f" {_parts(row)[1]}"
    return tuple(Choice(text(row, name), rest) for name in ("option1", "option2"))


def _boolq(name: str, style: str) -> Task:
    prompt = Template(
        "Answer the question with only True or False: {question} Context: {passage}"
    )
    source = Source("google/boolq", None, "boolq/train", "boolq/validation")
    words = ("False", "True")
    return Task(name, "commonsense", prompt, _truth, words, source=source)


def _option(row: Row) -> int:
    answer = str(field(row, "answer"))
    if answer not in ("1", "2"):
        raise ValueError(f"answer {shown(answer)} is neither '1' nor '2'")
    return int(answer) - 1


def _truth(row: Row) -> int:
    answer = field(row, "answer")
    named = {"false": 0, "true": 1}.get(str(answer).lower())
    if named is None or not isinstance(answer, bool | str):
        raise ValueError(f"answer {shown(answer)} is neither true nor false")
    return named


# Functions of the task's name and the prompt style.
_MAKERS: dict[str, Callable[[str, str], Task]] = {
    "winogrande_s": _winogrande,
    "winogrande_m": _winogrande,
    **dict.fromkeys(_CHOICE, _choice_task),
    "boolq": _boolq,
}
COMMONSENSE = {k: functools.partial(make, k) for k, make in _MAKERS.items()}
