"""Predictions of a posterior, and the numbers that judge them."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PyTree

from ivon_jax import metrics, regression
from ivon_jax.ensemble import average
from ivon_jax.posterior import Posterior
from ivon_jax.train.data.batches import eval_batches
from ivon_jax.train.data.encoding import common_prefix_length
from ivon_jax.train.pod.sharding import BATCH_AXES, local_rows, put_batch, put_whole
from ivon_jax.train.prepare import Problem
from ivon_jax.train.runs.progress import progress
from ivon_jax.train.step import predict_batch


@dataclasses.dataclass(frozen=True)
class Prediction:
    """How to predict from a posterior.

    Attributes:
        samples: number of posterior samples; 0 predicts with the mean.
        tau: temperature: the variance is divided by it.
        prune: share of entries set to zero, lowest signal-to-noise first.
    """

    samples: int = 10
    tau: float = 1.0
    prune: float = 0.0

    def __post_init__(self) -> None:
        """Checks each field."""
        if self.samples < 0:
            raise ValueError(f"samples: {self.samples} is not >= 0")
        # Infinity is no JSON; samples=0 is the same.
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau: {self.tau} is not a number > 0")
        if not 0 <= self.prune < 1:
            raise ValueError(f"prune: {self.prune} is not in [0, 1)")

    @property
    def name(self) -> str:
        """Spells what differs from the whole posterior, for the name of a file.

        >>> Prediction(10, tau=2.0, prune=0.25).name
        '10-tau2.0-prune0.25'
        """
        tau = f"-tau{self.tau}" if self.samples and self.tau != 1 else ""
        prune = f"-prune{self.prune}" if self.prune else ""
        return f"{self.samples or 'mean'}{tau}{prune}"

    def of(self, posterior: Posterior) -> tuple[Posterior, int]:
        """Returns the posterior to draw from and how many draws to average."""
        tau = self.tau if self.samples else math.inf
        return posterior.prune(self.prune).temper(tau), max(self.samples, 1)


def check_counts(**counts: int) -> None:
    """Checks numbers of samples that the user chose.

    Raises:
        ValueError: one is below 1.
    """
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name}: {count} is not >= 1")


def predict(
    problem: Problem,
    posterior: Posterior,
    how: Prediction,
    key: Key[Array, ""],
    batch_size: int = 32,
    chunk_size: int | None = 1,
    show: bool = True,
) -> Float[np.ndarray, "s n c"]:
    """Computes log-probabilities of the classes, or numbers, for every example.

    The tokens that all prompts begin with are run once a batch and sample.

    Args:
        problem: the model and the examples.
        posterior: of the adapters.
        how: what to average over.
        key: of the posterior samples, each one the same for all examples.
        batch_size: examples at a time, rounded up to what the mesh can split.
        chunk_size: posterior samples at a time; None for all.
        show: whether to show progress.

    Returns:
        Predictions of each sample, in the evaluation examples' order.

    Raises:
        ValueError: the posterior is one of other adapters, or has no precision to
            prune by.
    """
    shapes = [
        jax.tree.map(lambda leaf: leaf.shape, tree)
        for tree in (posterior.mean, problem.adapters)
    ]
    if shapes[0] != shapes[1]:
        raise ValueError("posterior: its adapters are not those of the model")
    if how.prune and not posterior.precision:
        raise ValueError("prune: the method has no posterior to choose entries by")
    posterior, samples = how.of(posterior)
    # A decoder's alone are the same whatever comes after.
    length = 0 if problem.answers is None else common_prefix_length(problem.eval)
    mesh = problem.mesh
    prefix = put_whole(problem.eval.tokens[0][:length], mesh)
    rest = dataclasses.replace(
        problem.eval, tokens=tuple(ids[length:] for ids in problem.eval.tokens)
    )
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    batch_size = -(-batch_size // shards) * shards
    rows = local_rows(mesh, batch_size)
    out = np.zeros((samples, len(rest), problem.task.outputs), np.float32)
    with (
        jax.set_mesh(mesh),
        progress("evaluate", len(rest), every=len(rest), show=show) as report,
    ):
        for batch, indices in eval_batches(rest, batch_size):
            mine = jax.tree.map(lambda part: part[rows], batch)
            predictions = predict_batch(
                problem.model,
                problem.params,
                posterior,
                problem.answers,
                prefix,
                put_batch(mine, mesh, batch_size),
                key,
                samples,
                chunk_size,
            )
            out[:, indices] = np.asarray(predictions)[:, : len(indices)]
            report(len(indices), f"{samples} samples")
    return out


def validate(
    problem: Problem, adapters: PyTree, key: Key[Array, ""]
) -> dict[str, float]:
    """Scores adapters on the evaluation examples, as a run goes.

    Args:
        problem: the model and the examples.
        adapters: the mean of a posterior.
        key: of nothing; there are no samples.

    Returns:
        Metrics by the names they have in ``metrics.jsonl``.
    """
    how = Prediction(0)
    predictions = predict(problem, Posterior.point(adapters), how, key, show=False)
    row = score("", how, predictions, problem.eval.labels, problem.task.metrics)
    names = ("nll", "accuracy", "ece", "mse", *problem.task.metrics)
    return {f"eval_{name}": row[name] for name in names if name in row}


def score(
    method: str,
    how: Prediction,
    predictions: Float[np.ndarray, "s n c"],
    labels: Int[np.ndarray, " n"] | Float[np.ndarray, " n"],
    extra: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Makes one row of a results table.

    Args:
        method: name of the method.
        how: how the predictions were made.
        predictions: of each sample: log-probabilities of the classes, or numbers.
        labels: the right classes, or numbers.
        extra: metrics besides the usual ones, by name.

    Returns:
        The row; accuracy and calibration errors as fractions. Probabilities are
        averaged over samples, and so are numbers.
    """

    def summary(predictions: Array, labels: Array) -> dict[str, Array]:
        if jnp.issubdtype(labels.dtype, jnp.floating):
            return regression.summary(predictions[..., 0].mean(axis=0), labels)
        log_probs = average(predictions)
        own = {name: getattr(metrics, name)(log_probs, labels) for name in extra}
        return metrics.summary(log_probs, labels) | own

    # Compiled whole: one by one its small operations take seconds to compile.
    values = jax.jit(summary)(jnp.asarray(predictions), jnp.asarray(labels))
    return {
        "method": method,
        "predict": "samples" if how.samples else "mean",
        "samples": how.samples,
        "tau": how.tau,
        "prune": how.prune,
        **{name: float(value) for name, value in values.items()},
    }
