"""The arguments of a training step, without a run."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ivon_jax.models.packed import Packed
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Method
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.objectives.label_words import LabelWords
from ivon_jax.train.step import Fixed


def make_method(name: str, **hyper: Any) -> Method:
    """Makes a method of a practically endless run, at its peak learning rate.

    Args:
        name: name in `METHODS`.
        **hyper: hyper-parameters other than the preset's.
    """
    method = METHODS[name]
    wanted = method.hyper_type(steps=10**6, warmup=1, **hyper)
    return method.make(wanted.resolve("commonsense", num_examples=1), shards=1)


def full_batch(rows: int, texts: int, length: int) -> Batch:
    """Makes a batch of prompts of one length.

    Args:
        rows: number of rows.
        texts: prompts in a row.
        length: tokens of a prompt.
    """
    lengths = np.full((rows, texts), length, np.int32)
    return Batch(
        np.ones((rows, texts * length), np.int32),
        lengths,
        0 * lengths,
        np.ones(lengths.shape, np.float32),
        packed=Packed.of(lengths, texts * length, length),
    )


def make_fixed(frozen: PyTree) -> Fixed:
    """Combines a base with an objective whose label ids are the first four tokens."""
    objective = LabelWords(jnp.arange(4), metrics=(), max_length=2**31 - 1)
    return Fixed(frozen, objective, Streams.from_seed(0))
