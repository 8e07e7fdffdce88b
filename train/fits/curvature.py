"""The exact Fisher information of the training examples, summed a batch at a time."""

import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ivon_jax._tree import by_path
from ivon_jax.train.data.batches import Batch, eval_batches
from ivon_jax.train.fits.base import Work
from ivon_jax.train.keys import Streams
from ivon_jax.train.pod.interrupts import RESUME_HINT, Interrupted, interruptible
from ivon_jax.train.pod.runtime import naming_memory
from ivon_jax.train.pod.sharding import (
    local_rows,
    put_batch,
    replicate,
    row_shards,
    spread,
)
from ivon_jax.train.predictors.base import Outputs
from ivon_jax.train.predictors.linearised import with_jacobian
from ivon_jax.train.runs.progress import progress
from ivon_jax.train.sources import Source
from ivon_jax.train.step import Fixed, Network

# Seconds between two saves of an unfinished sum.
SAVE_EVERY = 60


class Total(NamedTuple):
    """Sums over the examples so far.

    Attributes:
        curvature: a sum, or the sums of two factors, by path of the matrix.
        tokens: number of tokens.
        examples: number of examples.
        log_likelihood: of the right classes, in nats.
    """

    curvature: dict[str, Any]
    tokens: Float[Array, ""]
    examples: Float[Array, ""]
    log_likelihood: Float[Array, ""]

    @classmethod
    def zero(cls, adapters: PyTree, like: Callable[..., Any] = jnp.zeros) -> "Total":
        """Starts with ``like(shape)`` for each matrix of adapters."""
        sums = {
            name: like(leaf.shape)
            for name, leaf in by_path(adapters).items()
            if name.rpartition("/")[2] in ("a", "b")
        }
        return cls(sums, *(jnp.zeros([]) for _ in range(3)))

    def add(
        self, curvature: dict[str, Any], log_probs: Float[Array, "b c"], batch: Batch
    ) -> "Total":
        """Puts in new sums, and counts a batch."""
        weights = batch.weights.reshape(-1)
        lengths = batch.lengths.reshape(-1).astype(weights.dtype)
        labels = batch.labels.reshape(-1, 1)
        right = jnp.take_along_axis(log_probs, labels, axis=1)[:, 0]
        total = Total(
            curvature,
            self.tokens + jnp.sum(weights * lengths),
            self.examples + jnp.sum(weights),
            self.log_likelihood + jnp.sum(weights * right),
        )
        return replicate(total)


# add(fixed, parameters, sums so far, batch)
Add = Callable[[Fixed, PyTree, Total, Batch], Total]


def over_training_data(
    source: Source, total: Total, add: Add, work: Work, batch_size: int
) -> Total:
    """Sums over the training examples of a run, at its posterior mean.

    Args:
        source: the run; its problem has the split "train".
        total: zero.
        add: adds a batch, jitted.
        work: keeps an unfinished sum.
        batch_size: examples at a time, rounded up to what the mesh can split.

    Returns:
        The sums.

    Raises:
        Interrupted: by a signal; the sum so far is kept.
        ValueError: a sum is not finite.
    """
    problem, mesh = source.problem, source.problem.mesh
    encoded = problem.splits["train"]
    shards = row_shards(mesh)
    batch_size = -(-batch_size // shards) * shards
    rows = local_rows(mesh, batch_size)
    done, total = work.partial.load(total) or (0, total)
    streams = Streams.from_seed(source.config.seed)
    params, streams, total = spread((source.posterior.mean, streams, total), mesh)
    fixed = problem.fixed(streams)
    saved = time.monotonic()
    with (
        interruptible() as interrupted,
        jax.set_mesh(mesh),
        progress("fit", len(encoded), every=len(encoded), done=done) as report,
    ):
        # One text a row: the curvature is that of each.
        batches = eval_batches(encoded, batch_size, batch_size)
        for batch, indices in itertools.islice(batches, done // batch_size, None):
            if interrupted():
                break
            local = jax.tree.map(lambda part: part[rows], batch)
            with naming_memory(
                f"the curvature of {batch_size} rows of {batch.tokens.shape[1]} tokens",
                "split more with --mesh",
            ):
                placed = put_batch(local, mesh, batch_size)
                total = jax.block_until_ready(add(fixed, params, total, placed))
            done += len(indices)
            report(len(indices), "")
            if time.monotonic() - saved > SAVE_EVERY:
                work.partial.save(done, total)
                saved = time.monotonic()
    if interrupted():
        work.partial.save(done, total)
        message = f"interrupted after {done} of {len(encoded)} examples; {RESUME_HINT}"
        raise Interrupted(message, interrupted.signum)
    _check_finite(total)
    return total


def _check_finite(total: Total) -> None:
    for name, sums in total.curvature.items():
        for leaf in jax.tree.leaves(sums):
            if not np.all(np.isfinite(leaf)):
                raise ValueError(f"curvature: of {name} is not finite")


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def add_diagonal(
    network: Network, fixed: Fixed, params: PyTree, total: Total, batch: Batch
) -> Total:
    """Adds the diagonal of a batch's Fisher information, without dropout.

    That of an example is the sum over classes c of p_c (d log p_c / d theta)^2, of the
    derivative of all its tokens together. All of the batch's are held at a time.

    Args:
        network: the model.
        fixed: frozen parameters and objective.
        params: the parameters at which it is taken.
        total: the sums so far.
        batch: the examples, one a row; those of weight 0 do not count.
    """

    def forward(params: PyTree, batch: Batch, dropout: None) -> Float[Array, "b c"]:
        model = network.bind(params, fixed.frozen, {})
        return jax.nn.log_softmax(fixed.objective.outputs(model, batch))

    def row(log_probs: Callable[[PyTree], Float[Array, " c"]]) -> Any:
        values, jacobian = with_jacobian(log_probs, params)
        leaves, p = by_path(jacobian), jnp.exp(values)
        return values, {
            name: jnp.einsum("c,c...->...", p, jnp.square(leaves[name]))
            for name in total.curvature
        }

    values, found = Outputs(forward, batch).map_rows(row, len(batch.lengths))
    weights = batch.weights.reshape(-1)
    sums = {
        name: total.curvature[name] + jnp.einsum("b,b...->...", weights, leaf)
        for name, leaf in found.items()
    }
    return total.add(sums, values, batch)
