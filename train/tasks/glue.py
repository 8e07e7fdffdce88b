"""The tasks of GLUE."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from ivon_jax.train.data.fields import Template, class_index, field, numeric
from ivon_jax.train.data.task import Row, Source, Task


class _Glue(NamedTuple):
    """A task of GLUE; the prompts are ours, for the paper uses a head only."""

    inputs: tuple[str, ...]
    prompt: str
    label_words: tuple[str, ...]
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


def _glue_task(name: str, style: str) -> Task:
    glue = _GLUE[name]
    return Task(
        name,
        "glue",
        Template(glue.prompt, strip=True) if glue.prompt else None,
        _label(len(glue.label_words)) if glue.label_words else _score,
        glue.label_words,
        glue.inputs,
        source=Source("nyu-mll/glue", name, f"{name}/train", f"{name}/validation"),
        metrics=glue.metrics,
    )


def _label(count: int) -> Callable[[Row], int]:
    unnamed = ("",) * count
    return lambda row: class_index(field(row, "label"), unnamed)


def _score(row: Row) -> float:
    return numeric(row, "label")


GLUE = {name: functools.partial(_glue_task, name) for name in _GLUE}
