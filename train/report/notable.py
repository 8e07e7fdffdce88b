"""The examples that a page shows: those that are least certain, and wrong ones."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ivon_jax.ensemble import average
from ivon_jax.train.data.exchanges import Exchange, Message
from ivon_jax.train.data.task import AnyExample
from ivon_jax.train.inference.results import ClassResults
from ivon_jax.train.objectives.text import text_terms
from ivon_jax.train.report.evaluated import Evaluated, Labels
from ivon_jax.train.splits import (
    example_metadata,
    find_examples,
    find_task,
    scored_split,
)

SHOWN, LONGEST = 10, 1000

Table = dict[str, Any]


def scored_examples(run: Evaluated, *, test: bool) -> Sequence[AnyExample]:
    """Loads the examples that a run was evaluated on, in their order.

    Args:
        run: the run.
        test: see `scored_split`.

    Raises:
        ValueError: they are missing, illegal, or others than were evaluated.
    """
    data = run.config.data
    split = scored_split(data, test=test)
    found = find_examples(find_task(data), data, run.config.seed, [split])
    now = example_metadata(found)["eval_fingerprint"]
    if now != run.about.get("eval_fingerprint"):
        raise ValueError(
            f"{run.folder}: the examples have changed since its evaluation"
        )
    return found[split]


def notable(run: Evaluated, *, test: bool) -> list[Table]:
    """Returns tables of notable examples by the run's main predictor.

    Args:
        run: the run.
        test: see `scored_split`.

    Raises:
        ValueError: see `scored_examples`.
    """
    examples = scored_examples(run, test=test)
    predictions, labels = run.predictions(run.main)
    words = find_task(run.config.data).label_words
    if words:
        return classes(words, predictions, labels, examples)
    if isinstance(examples[0], Exchange):
        return texts(predictions, labels, examples)
    return numbers(predictions, labels, examples)


def classes(
    words: Sequence[str],
    predictions: Float[np.ndarray, "s n c"],
    labels: Labels,
    examples: Sequence[AnyExample],
) -> list[Table]:
    """Returns the examples of highest entropy, and wrong ones of highest confidence.

    Args:
        words: label words in class order.
        predictions: log-probabilities of each draw.
        labels: the right classes.
        examples: the examples.
    """
    mean = np.asarray(average(jnp.asarray(predictions)))
    found = ClassResults.of(tuple(words), mean, predictions)
    wrong = found.indices != labels
    several = len(predictions) > 1  # of one draw there is no mutual information
    head = ["example", "right", "predicted", "confidence", "entropy"]
    head += ["mutual inf."] * several

    def row(i: int) -> list[Any]:
        return [
            {"text": shown_text(examples[i])},
            words[int(labels[i])],
            words[int(found.indices[i])] + (" ✗" if wrong[i] else " ✓"),
            f"{100 * found.confidence[i]:.1f} %",
            f"{found.entropy[i]:.3f}",
            *[f"{found.mutual_information[i]:.3f}"] * several,
        ]

    # Right ones are below any confidence.
    confident = highest(np.where(wrong, found.confidence, -1.0))[: int(wrong.sum())]
    none = {"empty": "No example was predicted wrong."}
    return [
        table("Most uncertain", head, row, highest(found.entropy)),
        table("Most confidently wrong", head, row, confident) | none,
    ]


def numbers(
    predictions: Float[np.ndarray, "s n 1"],
    labels: Labels,
    examples: Sequence[AnyExample],
) -> list[Table]:
    """Returns the examples of widest predictions, and those of largest error.

    Args:
        predictions: the number of each draw.
        labels: the right numbers.
        examples: the examples.
    """
    draws = predictions[..., 0].astype(np.float64)
    mean, spread = draws.mean(axis=0), draws.std(axis=0)
    error = np.abs(mean - labels)
    head = ["example", "right", "predicted", "std. dev.", "error"]

    def row(i: int) -> list[Any]:
        numbers = (labels[i], mean[i], spread[i], error[i])
        return [{"text": shown_text(examples[i])}, *(f"{x:.3f}" for x in numbers)]

    uncertain = table("Most uncertain", head, row, highest(spread))
    wrong = table("Largest error", head, row, highest(error))
    return [*[uncertain] * (len(draws) > 1), wrong]


def texts(
    predictions: Float[np.ndarray, "s t 2"],
    labels: Labels,
    examples: Sequence[AnyExample],
) -> list[Table]:
    """Returns the completions of highest NLL a token.

    Args:
        predictions: log-probabilities of each token and draw.
        labels: tokens, with the index of their example.
        examples: the examples.

    Raises:
        ValueError: some were left out as too long, so it is not known which are which.
    """
    tokens, nll, _, right, _ = text_terms(predictions, labels).T
    if len(tokens) != len(examples):
        raise ValueError(
            f"{len(examples) - len(tokens)} of {len(examples)} examples were too long,"
            " and only a tokenizer knows which"
        )

    def row(i: int) -> list[Any]:
        return [
            {"text": shown_text(examples[i])},
            f"{nll[i] / tokens[i]:.3f}",
            f"{100 * right[i] / tokens[i]:.1f} %",
            f"{int(tokens[i])}",
        ]

    head = ["example", "NLL a token", "tokens right", "tokens"]
    return [table("Least expected completions", head, row, highest(nll / tokens))]


def table(
    caption: str,
    head: Sequence[str],
    row: Callable[[int], list[Any]],
    places: Sequence[int],
) -> Table:
    """Returns a table of the examples at some places."""
    return {"caption": caption, "head": head, "rows": list(map(row, places))}


def highest(values: Float[np.ndarray, " n"]) -> list[int]:
    """Returns the places of the highest values, as many as are shown."""
    return [int(i) for i in np.argsort(-values, kind="stable")[:SHOWN]]


def shown_text(example: AnyExample) -> str:
    """Returns an example's text, cut where it is long."""
    if isinstance(example, Exchange):
        text = "\n→ ".join(_plain(part) for part in example if part)
    else:
        text = "\n".join(example.texts) or example.prompt
    return text if len(text) <= LONGEST else text[: LONGEST - 2].rstrip() + " …"


def _plain(part: str | tuple[Message, ...]) -> str:
    if isinstance(part, str):
        return part
    return "\n".join(f"{message.role}: {message.content}" for message in part)
