"""Tasks: how a raw row becomes a prompt and a class, and where its rows live.

A decoder reads the prompt, and only the next-token logits of `Task.label_words`
count. An encoder reads the texts, and its head gives a logit for each class; or, for a
task without label words, the number asked for. The model decides which is used.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from ivon_jax.train.data.fields import text

Row = Mapping[str, Any]
Split = Literal["train", "eval"]


class Example(NamedTuple):
    """One question and its answer.

    Attributes:
        prompt: what a decoder reads; empty if the task is none for decoders.
        label: index of the right word in `Task.label_words`, or the right number.
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
        preset: "commonsense", "glue" or "custom"; chooses the presets.
        prompt: raw row to prompt; None if there is none.
        target: raw row to class index, or to the number asked for.
        label_words: in class order, without leading blank.
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
    preset: Literal["commonsense", "glue", "custom"]
    prompt: Callable[[Row], str] | None
    target: Callable[[Row], int | float]
    label_words: tuple[str, ...]
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
        return len(self.label_words) or 1

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
