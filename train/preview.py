"""A task's examples, as a model will read them, on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from ivon_jax.models.pretrained import load_config, load_tokenizer
from ivon_jax.train.config import RunConfig
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.data.examples import class_counts, shared
from ivon_jax.train.data.task import Example, Task
from ivon_jax.train.data.text_encoding import summary
from ivon_jax.train.objectives.registry import objective_of
from ivon_jax.train.splits import find_examples, find_task, run_splits

SHOWN = 3


def show(config: RunConfig) -> None:
    """Prints how many examples there are, and the first of them.

    Args:
        config: the run; for a text task its model's tokenizer is loaded.

    Raises:
        ValueError: the data or the tokenizer are missing or illegal.
    """
    task = find_task(config.data)
    examples = find_examples(task, config.data, config.seed, run_splits(config))
    if task.exchange:
        _show_text(config, task, examples)
    else:
        _show_questions(task, examples)
    if notes := repeats(examples):
        print("\n".join(notes))


def repeats(examples: Mapping[str, Sequence[Any]]) -> list[str]:
    """Tells how many examples come twice, within a split or in both.

    Args:
        examples: those to train on, and perhaps those to score.
    """
    notes = []
    for split, part in examples.items():
        name = "training" if split == "train" else "evaluation"
        if count := len(part) - len({str(example.asked) for example in part}):
            notes.append(f"{count} of {len(part)} {name} examples repeat another one")
        if split != "train" and (count := shared(part, examples["train"])):
            notes.append(
                f"{count} of {len(part)} {name} examples are training examples, too:"
                " their scores tell little of new ones"
            )
    return notes


def _show_questions(task: Task, examples: Mapping[str, Sequence[Any]]) -> None:
    """Prints the counts, and the first training examples."""
    train, scored = examples.values()
    counts = class_counts(task, train).items()
    answers = ", ".join(f"{word} ({count})" for word, count in counts) or "numbers"
    print(
        f"{task.name}: {len(train)} training examples,"
        f" {len(scored)} evaluation examples; answers {answers}\n"
    )
    for example in train[:SHOWN]:
        assert isinstance(example, Example)
        if example.choices:
            for index, choice in enumerate(example.choices):
                right = " <" if index == example.label else ""
                print(f"{example.prompt}{choice.given}[{choice.scored}]{right}")
            print()
        elif isinstance(example.label, int):
            space = " " if task.leading_space else ""
            print(f"{example.prompt}[{space}{task.label_words[example.label]}]\n")
        else:
            print(*example.texts, f"[{example.label:g}]\n", sep="\n")


def _show_text(
    config: RunConfig, task: Task, examples: Mapping[str, Sequence[Any]]
) -> None:
    """Prints the counts of each split, and the first training example."""
    tokenizer = load_tokenizer(config.model)
    objective = objective_of(task, load_config(config.model), tokenizer, config.model)
    encoded = {k: objective.encode(tokenizer, part) for k, part in examples.items()}
    for split, part in encoded.items():
        print(f"{task.name}, {split}: {summary(examples[split], part)}")
    print()
    Console(highlight=False).print(marked(tokenizer, encoded["train"]), soft_wrap=True)


def marked(tokenizer: Any, encoded: Encoded, index: int = 0) -> Text:
    """Returns an example's text, with what is learnt in colour and in brackets.

    Args:
        tokenizer: the tokenizer that encoded it.
        encoded: examples of a text task.
        index: which of them.
    """
    assert encoded.learnt is not None
    ids = encoded.tokens[index]
    learnt = np.isin(np.arange(len(ids)), encoded.learnt[index])
    runs = np.split(np.arange(len(ids)), np.flatnonzero(np.diff(learnt)) + 1)
    text = Text()
    for run in runs:
        piece = tokenizer.decode(ids[run])
        if learnt[run[0]]:
            text.append(f"[{piece}]", "bold green")
        else:
            text.append(piece)
    return text
