"""Embeddings of texts by the base model: its hidden states, averaged over tokens."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ivon_jax.checks import AT_LEAST_ONE, check
from ivon_jax.train.data.layout import bucket
from ivon_jax.train.generate.prompts import encode_prompts
from ivon_jax.train.generate.writers import Writer


def embedder(
    writer: Writer, batch_size: int = 32
) -> Callable[[Sequence[str]], Float[np.ndarray, "n d"]]:
    """Returns the function from texts to vectors, for `ivon_jax.mbr.cosine`.

    Adapters are left out, so that the texts of all models of a posterior are compared
    in one space. Where the base itself is trained, it is the mean's.

    Args:
        writer: see `open_run`, `open_adapter` and `open_model`.
        batch_size: number of texts at a time.

    Returns:
        The function; it raises ValueError for a text without tokens.

    Raises:
        ValueError: the batch size is not positive.
    """
    check("batch_size", batch_size, AT_LEAST_ONE)
    module: Any = getattr(writer.module, "base", writer.module)
    params = {"params": writer.drawing(0)(None)["params"]}

    @jax.jit
    def average(
        params: Any, tokens: Int[Array, "b s"], lengths: Int[Array, " b"]
    ) -> Float[Array, "b d"]:
        # What follows a text changes no state of it.
        hidden = module.apply(params, tokens).astype(jnp.float32)
        real = jnp.arange(tokens.shape[1])[None, :, None] < lengths[:, None, None]
        total = jnp.sum(jnp.where(real, hidden, 0.0), axis=1)
        return total / lengths[:, None].astype(jnp.float32)

    def embed(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        ids = encode_prompts(writer.tokenizer, texts)
        found = []
        for start in range(0, len(ids), batch_size):
            part = ids[start : start + batch_size]
            tokens = np.zeros((batch_size, bucket(max(map(len, part)))), np.int32)
            lengths = np.ones(batch_size, np.int32)
            for row, own in enumerate(part):
                tokens[row, : len(own)], lengths[row] = own, len(own)
            with jax.set_mesh(writer.mesh):
                found.append(np.asarray(average(params, tokens, lengths))[: len(part)])
        return np.concatenate(found)

    return embed
