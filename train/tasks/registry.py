"""Tasks: how a raw row becomes a prompt and a class, and where its rows live.

A decoder reads the prompt, and only the next-token scores of `Task.words` count. An
encoder reads the texts, and its head gives a score for each class; or, for a task
without words, the number that is asked for. Which of them is used follows from the
model.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from ivon_jax.train.data.fields import Template, class_index, field, number, shown, text
from ivon_jax.train.tasks import choices, cities
from ivon_jax.train.tasks.spacing import blank_follows

Row = Mapping[str, Any]
Split = Literal["train", "eval"]

PROMPT_STYLES = ("paper_code", "paper_table")


class Example(NamedTuple):
    """One question and its answer.

    Attributes:
        prompt: what a decoder reads; empty if the task is none for decoders.
        label: index of the right word in `Task.words`, or the right number.
        texts: what an encoder reads, one text or two; if there are none, the prompt.
    """

    prompt: str
    label: int | float
    texts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a task's rows are, on the hub and in a local data folder.

    Attributes:
        hub: data set id on the Hugging Face hub.
        config: its configuration, None where it has a single one.
        train: file of training rows below the data folder, without suffix.
        eval: file of evaluation rows below the data folder, without suffix.
        hub_train: split of the hub data set that is trained on.
        hub_eval: split of the hub data set that is evaluated on; the official
            test splits carry no labels, so it is the validation split.
    """

    hub: str
    config: str | None
    train: str
    eval: str
    hub_train: str = "train"
    hub_eval: str = "validation"


def _keep_all(row: Row) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Task:
    """A task of classification, or of regression if it has no words.

    Attributes:
        name: what `--task` calls it.
        family: "commonsense", "glue" or "custom"; chooses the presets.
        prompt: raw row to prompt; None if there is none.
        target: raw row to class index, or to the number asked for.
        words: label words in class order, without leading blank.
        inputs: fields that an encoder reads; none for the prompt.
        leading_space: whether the answer token is that of " word" (what a model
            emits after "Answer:") or of the bare word.
        other_space: whether it is the other way around with a tokenizer for which
            only that makes every word a single token.
        keep: rows it refuses are left out, silently: the published protocol.
        source: hub and local location; None if rows come from elsewhere.
        rows: builds the rows of a split, for a task that needs no files.
        balanced: whether a subsample takes equally many of every class.
        metrics: the headline metrics, by their names in `ivon_jax.metrics`.
    """

    name: str
    family: Literal["commonsense", "glue", "custom"]
    prompt: Callable[[Row], str] | None
    target: Callable[[Row], int | float]
    words: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    leading_space: bool = True
    other_space: bool = False
    keep: Callable[[Row], bool] = _keep_all
    source: Source | None = None
    rows: Callable[[Split], list[dict[str, str]]] | None = None
    balanced: bool = False
    metrics: tuple[str, ...] = ("accuracy",)

    @property
    def outputs(self) -> int:
        """Outputs of a head: one for each class, or the number."""
        return len(self.words) or 1

    def example(self, row: Row) -> Example | None:
        """Turns a row into an example, or None if the task leaves it out.

        Raises:
            ValueError: a field is missing or has a value the task does not know.
        """
        if not self.keep(row):
            return None
        texts = tuple(text(row, name) for name in self.inputs)
        prompt = self.prompt(row) if self.prompt else ""
        return Example(prompt, self.target(row), texts)


def _choice_task(name: str, question: str, source: Source) -> Task:
    return Task(
        name,
        "commonsense",
        choices.choice_prompt(question),
        choices.choice_target,
        choices.LETTERS,
        keep=choices.four_choices,
        source=source,
    )


def _winogrande(size: str, style: str) -> Task:
    options = {
        # The published code forgets the full stop after B, and adds one per option.
        "paper_code": "A. {option1}. B {option2}.",
        "paper_table": "A. {option1} B. {option2}",
    }[style]
    prompt = Template(
        "Select one of the choices that answers the following question: "
        f"{{sentence}} Choices: {options} Answer:"
    )
    name = f"winogrande_{size}"
    # One validation split serves every training size.
    source = Source(
        "allenai/winogrande", name, f"{name}/train", "winogrande/validation"
    )
    return Task(name, "commonsense", prompt, _option, ("A", "B"), source=source)


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


def _continent(row: Row) -> int:
    return class_index(field(row, "continent"), cities.CONTINENTS)


def _label(count: int) -> Callable[[Row], int]:
    unnamed = ("",) * count
    return lambda row: class_index(field(row, "label"), unnamed)


def _score(row: Row) -> float:
    return number(row, "label")


class _Glue(NamedTuple):
    """A task of GLUE, with a prompt of our own: the paper has a head only."""

    inputs: tuple[str, ...]
    prompt: str
    words: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)


_PAIR = ("sentence1", "sentence2")
_GLUE: dict[str, _Glue] = {
    "sst2": _Glue(
        ("sentence",), "Review: {sentence}\nSentiment:", ("negative", "positive")
    ),
    "cola": _Glue(
        ("sentence",),
        "Sentence: {sentence}\nIs this sentence grammatical? Answer:",
        ("no", "yes"),
        ("matthews", "accuracy"),
    ),
    "rte": _Glue(
        _PAIR,
        "Premise: {sentence1}\nHypothesis: {sentence2}\n"
        "Does the premise entail the hypothesis? Answer:",
        ("yes", "no"),
    ),
    "mrpc": _Glue(
        _PAIR,
        "Sentence 1: {sentence1}\nSentence 2: {sentence2}\n"
        "Do both sentences mean the same? Answer:",
        ("no", "yes"),
        ("accuracy", "f1"),
    ),
    "qqp": _Glue(
        ("question1", "question2"),
        "Question 1: {question1}\nQuestion 2: {question2}\n"
        "Do both questions ask the same? Answer:",
        ("no", "yes"),
        ("accuracy", "f1"),
    ),
    "qnli": _Glue(
        ("question", "sentence"),
        "Question: {question}\nSentence: {sentence}\n"
        "Does the sentence answer the question? Answer:",
        ("yes", "no"),
    ),
    "stsb": _Glue(_PAIR, "", (), ("pearson", "spearman")),
}

# name: (field of the question, hub id, configuration, local folder)
_CHOICE = {
    "arc_challenge": ("question", "allenai/ai2_arc", "ARC-Challenge", "ARC-Challenge"),
    "arc_easy": ("question", "allenai/ai2_arc", "ARC-Easy", "ARC-Easy"),
    "openbookqa": ("question_stem", "allenai/openbookqa", "main", "openbookqa"),
}

TASKS = (
    "city-continent",
    "winogrande_s",
    "winogrande_m",
    *_CHOICE,
    "boolq",
    *_GLUE,
)


def _glue_task(name: str, glue: _Glue) -> Task:
    return Task(
        name,
        "glue",
        Template(glue.prompt, strip=True) if glue.prompt else None,
        _label(len(glue.words)) if glue.words else _score,
        glue.words,
        glue.inputs,
        source=Source("nyu-mll/glue", name, f"{name}/train", f"{name}/validation"),
        metrics=glue.metrics,
    )


def get_task(name: str, prompt_style: str = "paper_code") -> Task:
    """Looks a built-in task up.

    Args:
        name: one of `TASKS`.
        prompt_style: "paper_code" for the prompts of the code the paper's numbers
            come from, "paper_table" for those its Table 8 prints. They differ for
            WinoGrande only; the preprocessing of choices is the code's in both.

    Raises:
        ValueError: unknown name or style; the message lists the legal ones.

    >>> get_task("boolq").words
    ('False', 'True')
    """
    if prompt_style not in PROMPT_STYLES:
        legal = ", ".join(PROMPT_STYLES)
        raise ValueError(f"unknown prompt style {shown(prompt_style)}; legal: {legal}")
    if name == "city-continent":
        return Task(
            name,
            "commonsense",
            Template("Question: On which continent is the city of {name}? Answer:"),
            _continent,
            cities.CONTINENTS,
            rows=cities.city_rows,
            balanced=True,
        )
    if name in ("winogrande_s", "winogrande_m"):
        return _winogrande(name[-1], prompt_style)
    if name in _CHOICE:
        question, hub, config, folder = _CHOICE[name]
        source = Source(hub, config, f"{folder}/train", f"{folder}/validation")
        return _choice_task(name, question, source)
    if name == "boolq":
        prompt = Template(
            "Answer the question with only True or False: {question} Context: {passage}"
        )
        source = Source("google/boolq", None, "boolq/train", "boolq/validation")
        words = ("False", "True")
        return Task(name, "commonsense", prompt, _truth, words, source=source)
    if name in _GLUE:
        return _glue_task(name, _GLUE[name])
    legal = ", ".join((*TASKS, "custom"))
    raise ValueError(f"unknown task {shown(name)}; legal: {legal}")


def custom_task(
    prompt: str,
    labels: tuple[str, ...],
    *,
    label_field: str = "label",
    leading_space: bool | None = None,
) -> Task:
    """Makes a task of a user's prompt template and label words.

    Args:
        prompt: template with `{field}` placeholders, `{{` for a brace.
        labels: the label words in class order.
        label_field: field of a row holding its class: one of `labels`, or its
            index. If any label is itself a number, only the former.
        leading_space: see `Task`; None to go by the prompt's end, the words' script
            and the tokenizer.

    Raises:
        ValueError: a template without field, with the label in it, or malformed, or
            with a blank at its end before words with one at their start; fewer than
            two labels, an empty or a repeated one.

    >>> task = custom_task("Text: {text} Topic:", ("sport", "art"))
    >>> task.example({"text": "A late goal.", "label": "sport"})
    Example(prompt='Text: A late goal. Topic:', label=0, texts=())
    """
    words = tuple(label.strip() for label in labels)
    if len(words) < 2 or not all(words) or len(set(words)) != len(words):
        raise ValueError(
            f"labels {shown(list(labels))}: at least two, distinct and not empty"
        )
    template = Template(prompt)
    if not template.names:
        raise ValueError(f"prompt {shown(prompt)} has no {{field}} placeholder")
    if label_field in template.names:
        raise ValueError(f"prompt {shown(prompt)} shows the answer, {{{label_field}}}")
    blank = prompt.endswith(" ")
    space = leading_space
    if space is None:
        space = blank_follows(prompt.rstrip(" "), words)
    if space and blank:
        raise ValueError(
            f"prompt {shown(prompt)} ends in a blank, but every label word starts "
            "with one; drop the prompt's"
        )

    def target(row: Row) -> int:
        return class_index(field(row, label_field), words)

    return Task(
        "custom",
        "custom",
        template,
        target,
        words,
        leading_space=space,
        other_space=leading_space is None and not blank,
    )
