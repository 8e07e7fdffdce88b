"""What a training step needs, without a run."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Method
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.objectives.label_words import LabelWords
from ivon_jax.train.step import Fixed


def make_method(name: str, **hyper: Any) -> Method:
    """Makes a method as for a run without end, its learning rate at the peak.

    Args:
        name: of `METHODS`.
        **hyper: hyper-parameters other than the preset's.
    """
    kind = METHODS[name]
    wanted = kind.hyper_type(steps=10**6, warmup=1, **hyper)
    return kind.make(wanted.resolve("commonsense", num_examples=1), shards=1)


def make_fixed(frozen: PyTree) -> Fixed:
    """Puts a base together with a choice of its first four tokens as the answer."""
    objective = LabelWords(jnp.arange(4), metrics=(), max_length=2**31 - 1)
    return Fixed(frozen, objective, Streams.from_seed(0))
