"""Loading and splitting of a task's examples.

Only `subsample` and `validation_split` draw random numbers, from the seed they are
given.
"""

import hashlib
import itertools
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ivon_jax.errors import one_line
from ivon_jax.train.data.fields import check_unicode
from ivon_jax.train.data.rows import SUFFIXES, read_rows
from ivon_jax.train.data.task import AnyExample, Row, Source, Split, Task

DATA_DIR_VARIABLE = "IVON_JAX_DATA"

Kind = TypeVar("Kind", bound=AnyExample)
Rows = Iterable[tuple[str, Row]]


def data_folder(option: Path | None = None) -> Path | None:
    """Returns the folder of local data: the option, `$IVON_JAX_DATA` or None."""
    named = os.environ.get(DATA_DIR_VARIABLE)
    return option or (Path(named) if named else None)


def load_examples(
    task: Task,
    split: Split,
    *,
    data_dir: Path | None = None,
    train_file: Path | None = None,
    eval_file: Path | None = None,
    limit: int | None = None,
) -> list[AnyExample]:
    """Loads the examples of one split, in the source's order, with repeats.

    The source is the split's file if given, else the task's own rows, else `data_dir`,
    else the hub.

    Args:
        task: the task.
        split: "train" or "eval".
        data_dir: local data sets with the hub's fields (see `data_folder`).
        train_file: JSONL, CSV or parquet file of training rows.
        eval_file: the same for evaluation.
        limit: number of examples after which to stop reading; None for all.

    Raises:
        ValueError: no data, or a row that is malformed, lacks a field or has an illegal
            label; one line that names file and line.
    """
    file = train_file if split == "train" else eval_file
    place = "the rows"
    rows: Rows
    if file is not None:
        place, rows = str(file), read_rows(file)
    elif task.rows is not None:
        built = task.rows(split)
        rows = ((f"{task.name} row {i}", row) for i, row in enumerate(built, 1))
    elif task.source is None:
        raise ValueError(f"task {task.name!r} has no {split} data; pass --{split}-file")
    elif data_dir is not None:
        path = _local_file(task.name, task.source, split, data_dir)
        place, rows = str(path), read_rows(path)
    else:
        place, rows = f"hub data set {task.source.hub}", _hub_rows(task.source, split)
    examples = list(itertools.islice(_examples(task, rows), limit))
    if not examples:
        raise ValueError(f"{place}: no rows for task {task.name!r} ({split})")
    return examples


def _examples(task: Task, rows: Rows) -> Iterator[AnyExample]:
    for place, row in rows:
        example = converted(task.example, place, row)
        if example is not None:
            yield example


def converted(
    convert: Callable[[Row], Kind | None], place: str, row: Row
) -> Kind | None:
    """Converts a row, and names its place in errors.

    Args:
        convert: `Task.example` or `Task.question`.
        place: file and line.
        row: the row.

    Raises:
        ValueError: a field is missing or illegal, or a text is not valid Unicode.
    """
    try:
        example = convert(row)
        if example is not None:
            check_unicode(example.parts)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return example


def _local_file(name: str, source: Source, split: Split, data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise ValueError(f"data folder {data_dir}: no such folder")
    stem = source.train if split == "train" else source.eval
    for suffix in SUFFIXES:
        path = data_dir / f"{stem}{suffix}"
        if path.is_file():
            return path
    raise ValueError(
        f"data folder {data_dir} has no {stem}.jsonl (nor .csv, .parquet), the "
        f"{split} rows of task {name!r}; pass --{split}-file, or no data folder to "
        f"read {source.hub} from the hub"
    )


def _hub_rows(source: Source, split: Split) -> Iterator[tuple[str, Row]]:
    part = source.hub_train if split == "train" else source.hub_eval
    name = f"hub data set {source.hub} ({source.config or 'default'}, {part})"
    try:
        # Slow to import, and not needed for local files.
        import datasets

        options = {"streaming": True} if source.streaming else {}
        rows = datasets.load_dataset(source.hub, source.config, split=part, **options)
        # Of a stream, the rows come over the network too.
        for number, row in enumerate(rows, 1):
            yield f"{name} row {number}", row
    # The type of a network error depends on the HTTP client.
    except Exception as error:
        raise ValueError(
            f"{name} cannot be read; pass --data-dir or set {DATA_DIR_VARIABLE} to use "
            f"local files: {one_line(error)}"
        ) from error


def class_counts(task: Task, examples: Sequence[AnyExample]) -> dict[str, int]:
    """Counts the examples of each class, also of those without any.

    Args:
        task: a task of label words.
        examples: its examples.
    """
    found = Counter(example.label for example in examples)
    return {word: found[i] for i, word in enumerate(task.label_words)}


def shared(examples: Sequence[AnyExample], others: Iterable[AnyExample]) -> int:
    """Counts the examples that ask what others ask, whatever their answers."""
    known = {str(other.asked) for other in others}
    return sum(str(example.asked) in known for example in examples)


def absent_classes(task: Task, examples: Sequence[AnyExample]) -> str:
    """Names the classes without an example, as the first rows of a sorted file have.

    Args:
        task: a task of classes or numbers.
        examples: its examples; of none, no class is named.
    """
    counts = class_counts(task, examples) if examples else {}
    return ", ".join(word for word, count in counts.items() if not count)


def _by_class(
    examples: Sequence[AnyExample], rng: np.random.Generator
) -> list[list[int]]:
    """Returns the shuffled indices of each class present, in class order."""
    columns: dict[float, list[int]] = {}
    for i in rng.permutation(len(examples)).tolist():
        columns.setdefault(examples[i].label, []).append(i)
    return [columns[label] for label in sorted(columns)]


def subsample(
    examples: Sequence[AnyExample], n: int, seed: int, *, balanced: bool = False
) -> list[AnyExample]:
    """Draws `n` examples without replacement, in random order.

    For one seed a smaller draw is the beginning of a larger one, so curves over the
    number of examples compare nested sets.

    Args:
        examples: the examples.
        n: number of examples to draw.
        seed: any non-negative integer.
        balanced: take the classes in turn, until each is used up, instead of drawing
            from all at once.

    Raises:
        ValueError: `n` is not in 1 .. number of examples.
    """
    if not 1 <= n <= len(examples):
        raise ValueError(f"cannot take {n} examples of {len(examples)}")
    rng = np.random.default_rng(seed)
    if balanced:
        turns = [
            (turn, label, i)
            for label, column in enumerate(_by_class(examples, rng))
            for turn, i in enumerate(column)
        ]
        order = [i for *_, i in sorted(turns)]
    else:
        order = rng.permutation(len(examples)).tolist()
    return [examples[i] for i in order[:n]]


def validation_split(
    examples: Sequence[AnyExample], n: int, seed: int
) -> tuple[list[AnyExample], list[AnyExample]]:
    """Splits a validation part off training examples.

    It is stratified by class, rounded by largest remainder.

    Args:
        examples: the training examples.
        n: size of the validation part.
        seed: any non-negative integer.

    Returns:
        The remaining training examples and the validation examples, each in the
        order they had.

    Raises:
        ValueError: one of the parts would be empty.
    """
    total = len(examples)
    if not 1 <= n < total:
        raise ValueError(
            f"cannot set {n} of {total} training examples aside for validation; "
            f"legal: 1 to {total - 1}"
        )
    columns = _by_class(examples, np.random.default_rng(seed))
    quotas = [len(column) * n // total for column in columns]
    # Integers, so that equal remainders are equal: ties go to the first class.
    remainders = [len(column) * n % total for column in columns]
    for i in np.argsort([-r for r in remainders], kind="stable")[: n - sum(quotas)]:
        quotas[i] += 1
    chosen = {i for column, q in zip(columns, quotas, strict=True) for i in column[:q]}
    rest = [e for i, e in enumerate(examples) if i not in chosen]
    return rest, [examples[i] for i in sorted(chosen)]


def fingerprint(examples: Iterable[AnyExample]) -> str:
    """Returns the SHA-256 of texts and labels in order.

    >>> from ivon_jax.train.data.task import Example
    >>> fingerprint([Example("a", 0)]) == fingerprint([Example("a", 1)])
    False
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(example.parts).encode() + b"\n")
    return digest.hexdigest()
