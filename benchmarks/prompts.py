"""Prompts of a benchmark, in a file that every contestant reads.

Nothing of JAX is imported before it is used: PEFT's contestants do without.
"""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from ivon_jax.train.data.encoding import Encoded

MODEL = "smollm2-135m-instruct"


class Prompts(NamedTuple):
    """Tokenised prompts.

    Attributes:
        gguf: file of the model.
        task: a task with as many answers.
        tokens: token ids of each.
        labels: index of its answer.
        answers: token id of each answer.
        prefix: number of tokens that all begin with.
        batches: indices of the prompts of each training batch.
    """

    gguf: str
    task: str
    tokens: Sequence[Sequence[int]]
    labels: Sequence[int]
    answers: Sequence[int]
    prefix: int
    batches: Sequence[Sequence[int]]

    @classmethod
    def read(cls, path: str) -> "Prompts":
        """Reads a file of `write`."""
        return cls(*json.loads(Path(path).read_text()))

    def write(self, path: Path) -> None:
        """Writes a file for other processes."""
        path.write_text(json.dumps(self))

    def encoded(self) -> "Encoded":
        """Returns the prompts as training reads them."""
        from ivon_jax.train.data.encoding import Encoded

        tokens = tuple(np.array(ids, np.int32) for ids in self.tokens)
        return Encoded(tokens, np.array(self.labels, np.int32))


def find(
    source: str,
    data_dir: Path | None,
    batch_size: int,
    count: int,
    test: int | None = None,
) -> Prompts:
    """Finds prompts and the order of training batches.

    Args:
        source: a task; "instruction", 200 random tokens before 20 to 40 own ones; or
            batches of random prompts of one length, as 4x256.
        data_dir: the task's files; None for IVON_JAX_DATA.
        batch_size: prompts in a batch, of a task or "instruction".
        count: number of batches.
        test: number of the task's test examples; None for its training examples.
    """
    from ivon_jax.models.cache import fetch
    from ivon_jax.train.config import DataConfig, TrainConfig
    from ivon_jax.train.data.batches import train_batches
    from ivon_jax.train.data.encoding import Encoded, common_prefix_length
    from ivon_jax.train.data.layout import Layout
    from ivon_jax.train.problem import prepare

    rng = np.random.default_rng(0)
    task, answers = "city-continent", np.arange(4)
    rows, _, length = source.partition("x")
    if rows.isdecimal() and length.isdecimal():
        batch_size = int(rows)
        tokens: Any = rng.integers(5, 49000, (4 * batch_size, int(length)))
        encoded = _labelled(tokens, rng)
    elif source == "instruction":
        first = rng.integers(5, 49000, 200)
        sizes = rng.integers(20, 41, 512)
        own = [rng.integers(5, 49000, size) for size in sizes]
        encoded = _labelled([np.concatenate([first, ids]) for ids in own], rng)
    else:
        data = DataConfig(source, data_dir, eval_examples=test)
        split = "train" if test is None else "test"
        problem = prepare(TrainConfig(MODEL, data=data), [split])
        objective: Any = problem.objective
        task, answers = source, np.asarray(objective.label_ids)
        encoded = problem.splits[split]
    order = np.arange(len(encoded), dtype=np.int32)
    numbered = Encoded(encoded.tokens, order)
    layout = Layout.of(numbered, batch_size, rows=batch_size)
    drawn = islice(train_batches(numbered, layout, 0), count)
    return Prompts(
        str(fetch(MODEL)),
        task,
        [ids.tolist() for ids in encoded.tokens],
        encoded.labels.tolist(),
        answers.tolist(),
        common_prefix_length(encoded),
        [batch.labels[:, 0].tolist() for batch in drawn],
    )


def _labelled(tokens: Sequence[Any], rng: np.random.Generator) -> "Encoded":
    """Returns prompts with random labels."""
    from ivon_jax.train.data.encoding import Encoded

    labels = rng.integers(4, size=len(tokens)).astype(np.int32)
    return Encoded(tuple(ids.astype(np.int32) for ids in tokens), labels)
