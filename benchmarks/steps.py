"""The arguments of a training step, without a run."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

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


def make_fixed(frozen: PyTree) -> Fixed:
    """Combines a base with an objective whose label ids are the first four tokens."""
    objective = LabelWords(jnp.arange(4), metrics=(), max_length=2**31 - 1)
    return Fixed(frozen, objective, Streams.from_seed(0))
