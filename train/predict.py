"""Predictions for examples, a batch at a time."""

import dataclasses
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import chain, pairwise
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from ivon_jax.kinds import Distribution
from ivon_jax.train.data.batches import Batch, eval_batches
from ivon_jax.train.data.encoding import Encoded
from ivon_jax.train.keys import Streams
from ivon_jax.train.pod.runtime import naming_memory
from ivon_jax.train.pod.sharding import local_rows, put_batch, row_shards, spread
from ivon_jax.train.predictors.base import Predictor
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import Problem
from ivon_jax.train.runs.progress import Report, progress
from ivon_jax.train.step import predict_batch


@dataclasses.dataclass(frozen=True)
class Forward:
    """A predictor's forward passes of any number of examples, a part at a time.

    Attributes:
        problem: the model.
        posterior: posterior of the trained parameters, as the predictor draws from it.
        program: the predictor without the settings that are in the posterior.
        streams: the run's keys; only ``ensemble`` is used.
        chunk_size: draws at a time; None for all.
    """

    problem: Problem
    posterior: Distribution
    program: Predictor
    streams: Streams
    chunk_size: int | None = 1

    @classmethod
    def of(
        cls,
        problem: Problem,
        posterior: Distribution,
        predictor: Predictor,
        streams: Streams,
        chunk_size: int | None = 1,
    ) -> "Forward":
        """Applies the predictor's settings to the posterior, and puts it on the mesh.

        Raises:
            ValueError: the posterior's parameters are not the model's, or the predictor
                cannot use it.
        """
        _check_shapes(posterior, problem)
        answer = problem.objective.answer
        if predictor.classes_only and answer != "class":
            raise ValueError(
                f"{predictor.kind}: only for classes, the task asks for a {answer}"
            )
        posterior, program = predictor.split(posterior, problem.network.dropout)
        posterior, streams = spread((posterior, streams), problem.mesh)
        return cls(problem, posterior, program, streams, chunk_size)

    def prefix(self, encoded: Encoded) -> Int[np.ndarray, " p"]:
        """Returns the examples' first tokens that may be computed once for all."""
        if not self.program.shares:
            return encoded.tokens[0][:0]
        return encoded.tokens[0][: self.problem.objective.prefix_length(encoded)]

    def __call__(
        self,
        encoded: Encoded,
        prefix: Int[np.ndarray, " p"],
        batch_size: int = 32,
        first: int = 0,
        report: Report = lambda count, text: None,
    ) -> Float[np.ndarray, "s n c"]:
        """Computes log-probabilities of the classes, or numbers, of each draw.

        Args:
            encoded: the examples.
            prefix: their common first tokens, computed once for each row and draw.
            batch_size: examples at a time, rounded up to a multiple that the mesh can
                split.
            first: index of the first batch among those of all parts.
            report: called with the number of examples done.

        Returns:
            Predictions of each draw, in the examples' order, not finished.
        """
        passes = self.program.passes
        rest = encoded.without_prefix(len(prefix))
        size = (passes, int(rest.answers.sum()), self.problem.task.outputs)
        parts = np.zeros(size, np.float32)
        ran: Iterator[Any] = self._run(rest, prefix, batch_size, first)
        # Each is fetched while the next one runs.
        for (batch, indices, made), _ in pairwise(chain(ran, [None])):
            real = batch.weights.reshape(-1) > 0
            with self._naming(batch):
                parts[:, rest.places(indices)] = np.asarray(made)[:, real]
            report(len(indices), f"{passes} passes")
        return parts

    def _run(
        self,
        rest: Encoded,
        prefix: Int[np.ndarray, " p"],
        batch_size: int,
        first: int,
    ) -> Iterator[tuple[Batch, Int[np.ndarray, " _"], jax.Array]]:
        """Yields batches, the indices of their examples, and what is computed."""
        mesh = self.problem.mesh
        fixed = self.problem.fixed(self.streams, prefix)
        shards = row_shards(mesh)
        batch_size = -(-batch_size // shards) * shards
        packs = self.program.packs and rest.second_starts is None
        num_rows = shards if packs else batch_size
        rows = local_rows(mesh, num_rows)
        batches = eval_batches(rest, batch_size, num_rows)
        for index, (batch, indices) in enumerate(batches, first):
            local = jax.tree.map(lambda part: part[rows], batch)
            with self._naming(batch), jax.set_mesh(mesh):
                made = predict_batch(
                    self.problem.network,
                    self.program,
                    fixed,
                    self.posterior,
                    put_batch(local, mesh, num_rows),
                    index,
                    self.chunk_size,
                )
            yield batch, indices, made

    def _naming(self, batch: Batch) -> AbstractContextManager[None]:
        rows, tokens = batch.tokens.shape
        return naming_memory(
            f"predictions of {rows} rows of {tokens} tokens,"
            f" {self.chunk_size or 'all'} draws at a time",
            "lower --chunk-size, or split more with --mesh",
        )


def draws(
    problem: Problem,
    encoded: Encoded,
    posterior: Distribution,
    predictor: Predictor,
    streams: Streams,
    batch_size: int = 32,
    chunk_size: int | None = 1,
    show: bool = True,
) -> Float[np.ndarray, "s n c"]:
    """Computes the predictions of each of a predictor's draws, for every example.

    Where the predictor allows it, the prompts' common prefix is computed once for each
    batch and draw.

    Args:
        problem: the model.
        encoded: the examples.
        posterior: posterior of the trained parameters.
        predictor: the predictor.
        streams: the run's keys; only ``ensemble`` is used.
        batch_size: examples at a time, rounded up to a multiple that the mesh can
            split.
        chunk_size: draws at a time; None for all.
        show: whether to show progress.

    Returns:
        Log-probabilities of the classes or, for text, of each learnt token, or numbers,
        in the examples' order; see `Predictor.finish`.

    Raises:
        ValueError: the posterior's parameters are not the model's, or the predictor
            cannot use it.
    """
    forward = Forward.of(problem, posterior, predictor, streams, chunk_size)
    total = len(encoded)
    show = show and jax.process_index() == 0
    with progress("evaluate", total, every=total, show=show) as report:
        return forward(encoded, forward.prefix(encoded), batch_size, report=report)


def predict(
    problem: Problem,
    encoded: Encoded,
    posterior: Distribution,
    predictor: Predictor,
    streams: Streams,
    **options: Any,
) -> Float[np.ndarray, "_ n c"]:
    """Predicts every example: `Predictor.finish` of the `draws`.

    Args:
        problem: the model.
        encoded: the examples.
        posterior: posterior of the trained parameters.
        predictor: the predictor.
        streams: the run's keys; only ``ensemble`` is used.
        **options: others of `draws`.

    Returns:
        Log-probabilities of the classes, or numbers, in the examples' order.

    Raises:
        ValueError: see `draws`.
    """
    found = draws(problem, encoded, posterior, predictor, streams, **options)
    return predictor.finish(found)


def _check_shapes(posterior: Distribution, problem: Problem) -> None:
    own, wanted = (
        jax.tree.map(lambda leaf: leaf.shape, tree)
        for tree in (posterior.mean, problem.shapes)
    )
    if own != wanted:
        raise ValueError("posterior: its parameters are not those of the model")


def score(
    problem: Problem,
    method: str,
    predictor: Predictor,
    predictions: Float[np.ndarray, "s n c"],
    encoded: Encoded,
) -> dict[str, Any]:
    """Computes one row of a results table.

    Args:
        problem: the task's objective.
        method: name of the method.
        predictor: the predictor of the predictions.
        predictions: log-probabilities of the classes, or numbers, of each draw.
        encoded: the examples.

    Returns:
        The row, of means over draws; accuracy and calibration errors are fractions.

    Raises:
        ValueError: a prediction is not finite.
    """
    bad = int((~np.isfinite(predictions)).any(axis=(0, 2)).sum())
    if bad:
        raise ValueError(
            f"predictions: not finite for {bad} of {len(encoded)} examples"
            f" ({predictor.name})"
        )
    values = problem.objective.score(predictions, encoded.labels)
    return predictor.row(method) | values


def validate(
    problem: Problem, encoded: Encoded, posterior: Distribution, streams: Streams
) -> dict[str, float]:
    """Scores the posterior mean, or the average of all members, during training.

    Args:
        problem: the task's objective.
        encoded: the examples.
        posterior: posterior of the current parameters.
        streams: the run's keys.

    Returns:
        Metrics by their names in ``metrics.jsonl``; they may be not finite.
    """
    # The average of members need not be a good one.
    how = Mean() if posterior.size is None else Samples(posterior.size)
    found = predict(problem, encoded, posterior, how, streams, show=False)
    values = problem.objective.score(found, encoded.labels)
    return {f"eval_{name}": values[name] for name in problem.objective.shown}
