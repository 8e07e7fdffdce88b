"""Log-likelihoods of continuations under the average of posterior samples."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from ivon_jax.train.data.layout import bucket
from ivon_jax.train.generate.writers import Writer
from ivon_jax.train.pod.sharding import put_batch, replicate, row_shards
from ivon_jax.train.runs.progress import progress

# Positions whose logits of the whole vocabulary are in memory at a time, where a
# single continuation is not longer.
POSITIONS = 256


class Pair(NamedTuple):
    """A continuation to score.

    Attributes:
        context: tokens before it, at least one.
        continuation: its tokens.
    """

    context: Sequence[int]
    continuation: Sequence[int]


class Scores(NamedTuple):
    """The scores of pairs.

    Attributes:
        log_probs: log-probability of each continuation under each model, in nats.
        greedy: whether the models' average would write it, token by token.
    """

    log_probs: Float[np.ndarray, "s n"]
    greedy: Bool[np.ndarray, " n"]


class _Batch(NamedTuple):
    tokens: Int[Any, "b s"]
    positions: Int[Any, "b q"]  # of the states that predict
    targets: Int[Any, "b q"]
    real: Bool[Any, "b q"]  # False for padding


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores pairs by each posterior sample, or by the mean.

    Attributes:
        writer: the model.
        models: number of posterior samples; 0 for the mean.
        tau: temperature of the samples.
        prune: share of entries set to zero.
        batch_size: pairs at a time, fewer if they are long.
    """

    writer: Writer
    models: int
    tau: float = 1.0
    prune: float = 0.0
    batch_size: int = 8

    def __call__(self, pairs: Sequence[Pair], *, show: bool = False) -> Scores:
        """Scores pairs; of what is too long the first tokens are cut off.

        The average of models is that of whole texts: it weighs a model's next token by
        the probability that the model gave to the tokens before.

        Args:
            pairs: contexts and continuations.
            show: whether to show progress.

        Raises:
            ValueError: a continuation is empty, or longer than the model's context.
        """
        for pair in pairs:
            if not 0 < len(pair.continuation) <= self.writer.context:
                raise ValueError(
                    f"continuation: {len(pair.continuation)} tokens are not in [1,"
                    f" {self.writer.context}], the model's context"
                )
        ids: list[int | None] = [*range(self.models)] or [None]
        draw = self.writer.drawing(self.models, self.tau, self.prune)
        log_probs = np.zeros((len(ids), len(pairs)))
        greedy = np.zeros(len(pairs), bool)
        # Models are drawn again for each batch: memory holds one of them.
        with (
            jax.set_mesh(self.writer.mesh),
            progress("score", len(pairs), len(pairs), show=show) as report,
        ):
            for group in self._batches(pairs):
                batch, joint = self._collate([pairs[i] for i in group]), None
                for row, model in enumerate(ids):
                    own, joint = _score(self.writer.module, draw(model), batch, joint)
                    log_probs[row, group] = np.asarray(own)[: len(group)]
                greedy[group] = np.asarray(_likeliest(joint, batch))[: len(group)]
                report(len(group), f"{len(ids)} models")
        return Scores(log_probs, greedy)

    def _batches(self, pairs: Sequence[Pair]) -> list[list[int]]:
        """Groups pairs of similar length, the longest first: if they fit, all do."""

        def length(index: int) -> tuple[int, int]:
            pair = pairs[index]
            return len(pair.context) + len(pair.continuation), len(pair.continuation)

        groups: list[list[int]] = []
        for index in sorted(range(len(pairs)), key=length, reverse=True):
            group = groups[-1] if groups else []
            more = [*group, index]
            size = len(more) * max(len(pairs[i].continuation) for i in more)
            if group and size <= POSITIONS and len(more) <= self.batch_size:
                group.append(index)
            else:
                groups.append([index])
        return groups

    def _collate(self, pairs: Sequence[Pair]) -> _Batch:
        """Pads the tokens that are read, and those that are predicted, on the right."""
        rows = [self._cut(pair) for pair in pairs]
        width = bucket(max(len(ids) - 1 for ids, _ in rows))
        # Powers of two, so that few programs are compiled.
        across = 1 << (max(count for _, count in rows) - 1).bit_length()
        shards = row_shards(self.writer.mesh)
        shape = (-(-(1 << (len(rows) - 1).bit_length()) // shards) * shards, across)
        tokens = np.zeros((shape[0], width), np.int32)
        positions, targets = np.zeros((2, *shape), np.int32)
        real = np.zeros(shape, bool)
        for row, (ids, count) in enumerate(rows):
            tokens[row, : len(ids) - 1] = ids[:-1]
            first = len(ids) - 1 - count
            positions[row, :count] = np.arange(first, first + count)
            targets[row, :count] = ids[-count:]
            real[row, :count] = True
        batch: _Batch = put_batch(
            _Batch(tokens, positions, targets, real), self.writer.mesh, shape[0]
        )
        return batch

    def _cut(self, pair: Pair) -> tuple[list[int], int]:
        """Returns what fits of a pair's tokens, and the number of those to predict."""
        ids = [*pair.context, *pair.continuation][-(self.writer.context + 1) :]
        return ids, len(pair.continuation)


@functools.partial(jax.jit, static_argnums=0)
def _score(
    module: nn.Module,
    variables: PyTree,
    batch: _Batch,
    joint: Float[Array, "b q v"] | None,
) -> tuple[Float[Array, " b"], Float[Array, "b q v"]]:
    """Scores a batch by one model.

    Args:
        module: the model.
        variables: its parameters.
        batch: the pairs.
        joint: log of the sum over the models before of the probability of the tokens
            up to a position, with each token of the vocabulary there.

    Returns:
        The log-probability of each continuation, and the sum with this model.
    """
    hidden: Any = module.apply(variables, batch.tokens)
    states = jnp.take_along_axis(hidden, batch.positions[..., None], axis=1)
    base = getattr(module, "base", module)
    params = {"params": variables["params"]}
    logits: Any = base.apply(params, states, method="unembed")
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)[..., 0]
    own = jnp.where(batch.real, own, 0)
    before = jnp.cumsum(own, axis=-1) - own
    now = log_probs + before[..., None]
    total = now if joint is None else jnp.logaddexp(joint, now)
    return replicate(jnp.sum(own, axis=-1)), total


@jax.jit
def _likeliest(joint: Float[Array, "b q v"], batch: _Batch) -> Bool[Array, " b"]:
    """Returns whether every token is the likeliest at its position."""
    best = jnp.argmax(joint, axis=-1)
    return replicate(jnp.all((best == batch.targets) | ~batch.real, axis=-1))
