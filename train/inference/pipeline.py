"""Predictions of questions, in parts, by one predictor."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int

from ivon_jax.ensemble import pool
from ivon_jax.errors import prefixed
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.data.examples import converted
from ivon_jax.train.data.fields import check_unicode, field, shown
from ivon_jax.train.data.task import Example, Row, Task
from ivon_jax.train.inference.calibration import Calibration
from ivon_jax.train.inference.results import ClassResults, NumberResults, Results
from ivon_jax.train.keys import Streams
from ivon_jax.train.predict import Forward
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.sources import Source

SHOWN = 6  # rows that cannot be read, of those named
# Examples at a time in memory, and in a batch of the model.
PART, BATCH = 512, 32
Item = TypeVar("Item")


class Question(NamedTuple):
    """A row to predict.

    Attributes:
        place: its file and line, for messages.
        row: the row.
        example: the prompt or texts that are made of it.
    """

    place: str
    row: Row
    example: Example


def questions(
    task: Task, rows: Iterable[tuple[str, Row]], keep: Sequence[str] = ()
) -> Iterator[Question]:
    """Makes questions of rows, of which only the fields of the prompt are read.

    Args:
        task: the task.
        rows: rows with their places.
        keep: further fields that every row must have.

    Raises:
        ValueError: a field is missing or has an illegal value.
    """
    for place, row in rows:
        with prefixed(place):
            # Not of the prompt, and written nevertheless.
            check_unicode([row.get("id"), *(field(row, name) for name in keep)])
        example = converted(task.question, place, row)
        assert example is not None
        yield Question(place, row, example)


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """A run or adapter with a predictor, and with its calibration if there is one.

    Attributes:
        source: the run or adapter.
        predictor: the predictor.
        calibration: its calibration.
        chunk_size: draws at a time.
    """

    source: Source
    predictor: Predictor
    calibration: Calibration | None = None
    chunk_size: int | None = 1

    @functools.cached_property
    def forward(self) -> Forward:
        """The forward passes."""
        return Forward.of(
            self.source.problem,
            self.source.posterior,
            self.predictor,
            Streams.from_seed(self.source.config.seed),
            self.chunk_size,
        )

    def predict(
        self, asked: Iterable[Question], start: int = 0
    ) -> Iterator[tuple[list[Question], Results]]:
        """Predicts questions, in parts of `PART`.

        A part's numbers depend on its own questions and those of the first part only.

        Args:
            asked: the questions.
            start: number of the first part to predict.

        Yields:
            The questions and predictions of each part.

        Raises:
            ValueError: a question is too long, a prediction is not finite, or `asked`
                raises it, after the questions before have been yielded.
        """
        prefix: Int[np.ndarray, " p"] = np.zeros(0, np.int32)
        for number, part in enumerate(parts(asked, PART)):
            if 0 < number < start:
                continue
            encoded = self._encode(part)
            if number == 0 and len(part) > BATCH:  # a first row may be odd
                prefix = self.forward.prefix(encoded)
            if number >= start:
                shared = prefix if _begin_with(encoded, prefix) else prefix[:0]
                draws = self.forward(
                    encoded,
                    shared,
                    min(BATCH, 1 << (len(part) - 1).bit_length()),
                    number * (PART // BATCH),
                )
                _check_finite(part, draws)
                yield part, self._results(draws, encoded)

    def check(self, asked: Iterable[Question]) -> None:
        """Checks that the model can read all questions, before any is predicted.

        Raises:
            ValueError: one is too long, or has no tokens; or see `questions`.
        """
        wrong = []
        for part in parts(asked, PART):
            try:
                self._encode(part)
            except ValueError:
                for question in part:
                    try:
                        self._encode([question])
                    except ValueError as error:
                        wrong.append((question.place, error))
        if wrong:
            others = ", ".join(place for place, _ in wrong[1:SHOWN])
            more = f"; {len(wrong) - 1} more, as {others}" if others else ""
            raise ValueError(f"{wrong[0][1]}{more}")

    def _encode(self, part: Sequence[Question]) -> Encoded:
        problem = self.source.problem
        try:
            return problem.encode([question.example for question in part])
        except ValueError:
            for question in part:  # which it was
                with prefixed(question.place):
                    problem.encode([question.example])
            raise

    def _results(self, draws: Float[np.ndarray, "s n c"], encoded: Encoded) -> Results:
        if self.source.problem.objective.answer != "class":
            return NumberResults(self.predictor.finish(draws)[..., 0])
        results = ClassResults.of(
            self.source.problem.task.label_words,
            pool(self.predictor.finish(draws)),
            self.predictor.base.finish(draws),
        )
        calibration = self.calibration
        if calibration and calibration.abstention:
            threshold = calibration.abstention.confidence
            results = results._replace(accepted=results.confidence > threshold)
        if calibration and calibration.conformal:
            sets = calibration.conformal.sets(results.probs, noise_of(encoded))
            results = results._replace(sets=sets)
        return results


def parts(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields lists of items; if the source fails, first those that came before."""
    part: list[Item] = []
    try:
        for item in items:
            part.append(item)
            if len(part) == size:
                yield part
                part = []
    except ValueError:
        if part:
            yield part
        raise
    if part:
        yield part


def noise_of(encoded: Encoded) -> Float[np.ndarray, " n"]:
    """Draws uniform numbers for prediction sets, by hashes of the token ids.

    The same text then always has the same set.
    """
    heads = (
        hashlib.sha256(np.asarray(ids, np.int64).tobytes()).digest()[:8]
        for ids in encoded.tokens
    )
    return np.array([int.from_bytes(head, "little") / 2**64 for head in heads])


def _begin_with(encoded: Encoded, prefix: Int[np.ndarray, " p"]) -> bool:
    """Returns whether all texts begin with a prefix and are longer."""
    count = len(prefix)
    return all(
        len(ids) > count and np.array_equal(ids[:count], prefix)
        for ids in encoded.tokens
    )


def _check_finite(part: Sequence[Question], draws: Float[np.ndarray, "s n c"]) -> None:
    bad = np.flatnonzero(~np.isfinite(draws).all(axis=(0, 2)))
    if len(bad):
        raise ValueError(
            f"{part[bad[0]].place}: the prediction is not finite, of"
            f" {shown(part[bad[0]].example.prompt)}"
        )
