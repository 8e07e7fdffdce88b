"""Tasks: conversion of a raw row to a prompt and a class, and the source of rows.

A decoder reads the prompt and is compared by the next-token logits of
`Task.label_words`, or by the probability of each choice's text, `Task.choices`. An
encoder reads the texts, and its head returns a logit for each class, or, for a task
without label words, a number. A text task has exchanges instead, and a decoder learns
to write their completions.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from ivon_jax.train.data.exchanges import Exchange, Row
from ivon_jax.train.data.fields import text

Split = Literal["train", "eval"]
Learn = Literal["completion", "assistant", "last", "all"]


class Choice(NamedTuple):
    """The text of a choice, after the prompt.

    Attributes:
        given: its beginning, which is not scored.
        scored: the rest.
    """

    given: str
    scored: str


class Example(NamedTuple):
    """One question and its answer.

    Attributes:
        prompt: input of a decoder; empty if the task is for encoders only.
        label: index of the right word in `Task.label_words`, or the right number.
        texts: input of an encoder, one text or two; if empty, the prompt.
        choices: the text of each class, if that is what a decoder is compared by.
    """

    prompt: str
    label: int | float
    texts: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()

    @property
    def parts(self) -> list[Any]:
        """Everything it holds, as JSON."""
        return [self.prompt, self.label, *self.texts, *self.choices]

    @property
    def asked(self) -> list[Any]:
        """What it asks, without the answer."""
        return [self.prompt, *self.texts, *self.choices]


AnyExample = Example | Exchange


@dataclasses.dataclass(frozen=True)
class Source:
    """The source of a task's rows, on the hub and in a local data folder.

    Attributes:
        hub: data set id on the Hugging Face hub.
        config: its configuration; None if it has only one.
        train: file of training rows below the data folder, without suffix.
        eval: file of evaluation rows below the data folder, without suffix.
        hub_train: training split of the hub data set.
        hub_eval: evaluation split of the hub data set; the official test splits have no
            labels, so it is the validation split.
        streaming: whether rows of the hub are read while they are downloaded.
    """

    hub: str
    config: str | None
    train: str
    eval: str
    hub_train: str = "train"
    hub_eval: str = "validation"
    streaming: bool = False


def _keep_all(row: Row) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Task:
    """A classification task, a regression task without label words, or a text task.

    Attributes:
        name: value of `--task`.
        preset: preset of the hyper-parameters.
        prompt: maps a raw row to the prompt; None if there is none.
        target: maps a raw row to the class index, or to the number; None for text.
        label_words: words in class order, without leading blank.
        inputs: fields of an encoder's texts; if empty, it reads the prompt.
        choices: maps a raw row to the text of each class, by which a decoder is then
            compared, not by the label words; None if the classes have none.
        leading_space: whether the answer token is that of " word" (which follows
            "Answer:") or of the bare word.
        other_space: whether `leading_space` is inverted for a tokenizer that only then
            has every word as a single token.
        keep: whether to keep a row; the published protocol drops some.
        source: hub and local location; None if rows come from elsewhere.
        rows: builds the rows of a split, for a task that needs no files.
        balanced: whether a subsample takes equally many of every class.
        metrics: the headline metrics, by their names in `ivon_jax.metrics`.
        exchange: text tasks: maps a raw row to an exchange.
        parse: text tasks: reads the answer in a completion, written or generated; None
            if it has none. Answers are compared as text. None if there are no answers.
        learn: text tasks: the tokens to learn, see `encode_exchanges`.
        max_length: text tasks: limit of an exchange's tokens; None for the model's.
        drop_long: text tasks: whether longer ones are left out; else an error.
    """

    name: str
    preset: Literal["commonsense", "glue", "custom", "text"]
    prompt: Callable[[Row], str] | None = None
    target: Callable[[Row], int | float] | None = None
    label_words: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    choices: Callable[[Row], tuple[Choice, ...]] | None = None
    leading_space: bool = True
    other_space: bool = False
    keep: Callable[[Row], bool] = _keep_all
    source: Source | None = None
    rows: Callable[[Split], list[dict[str, str]]] | None = None
    balanced: bool = False
    metrics: tuple[str, ...] = ("accuracy",)
    exchange: Callable[[Row], Exchange] | None = None
    parse: Callable[[str], str | None] | None = None
    learn: Learn = "completion"
    max_length: int | None = None
    drop_long: bool = False

    @property
    def answer(self) -> Literal["class", "number", "text"]:
        """The kind of answer that the task asks for."""
        if self.exchange:
            return "text"
        return "class" if self.label_words else "number"

    @property
    def outputs(self) -> int:
        """Number of outputs: one for each class, or one for a number.

        For text it is two for each token, see `Text`.
        """
        if self.exchange:
            return 2
        return len(self.label_words) or 1

    @property
    def answer_outputs(self) -> int | None:
        """Number of outputs; None where tokens of the texts are scored instead."""
        return None if self.exchange or self.choices else self.outputs

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields that a question is made of; empty if not known."""
        named = self.inputs + tuple(getattr(self.prompt, "names", ()))
        return tuple(dict.fromkeys(named))

    def question(self, row: Row) -> Example:
        """Converts a row without its answer, in whose place there is a zero.

        Raises:
            ValueError: a field is missing or has an illegal value; or the task is one
                of text.
        """
        if self.exchange:
            raise ValueError(f"task {self.name} asks for text, not a class or a number")
        texts = tuple(text(row, name) for name in self.inputs)
        prompt = self.prompt(row) if self.prompt else ""
        choices = self.choices(row) if self.choices else ()
        return Example(prompt, 0 if self.label_words else 0.0, texts, choices)

    def example(self, row: Row) -> AnyExample | None:
        """Converts a row to an example; None if the task drops it.

        Raises:
            ValueError: a field is missing or has an illegal value.
        """
        if not self.keep(row):
            return None
        if self.exchange:
            return self.exchange(row)
        assert self.target is not None
        return self.question(row)._replace(label=self.target(row))
