"""The paper's data sets of commonsense reasoning, with its prompts."""

import functools
from collections.abc import Callable

from ivon_jax.train.data.fields import Template, field, shown
from ivon_jax.train.data.task import Row, Source, Task
from ivon_jax.train.tasks import choices

# name: (field of the question, hub id, configuration, local folder)
_CHOICE = {
    "arc_challenge": ("question", "allenai/ai2_arc", "ARC-Challenge", "ARC-Challenge"),
    "arc_easy": ("question", "allenai/ai2_arc", "ARC-Easy", "ARC-Easy"),
    "openbookqa": ("question_stem", "allenai/openbookqa", "main", "openbookqa"),
}


def _choice_task(name: str, style: str) -> Task:
    question, hub, config, folder = _CHOICE[name]
    return Task(
        name,
        "commonsense",
        choices.choice_prompt(question),
        choices.choice_target,
        choices.LETTERS,
        keep=choices.four_choices,
        source=Source(hub, config, f"{folder}/train", f"{folder}/validation"),
    )


def _winogrande(name: str, style: str) -> Task:
    options = {
        # The published code omits the full stop after B, and adds one per option.
        "paper_code": "A. {option1}. B {option2}.",
        "paper_table": "A. {option1} B. {option2}",
    }[style]
    prompt = Template(
        "Select one of the choices that answers the following question: "
        f"{{sentence}} Choices: {options} Answer:"
    )
    # One validation split serves every training size.
    source = Source(
        "allenai/winogrande", name, f"{name}/train", "winogrande/validation"
    )
    return Task(name, "commonsense", prompt, _option, ("A", "B"), source=source)


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
