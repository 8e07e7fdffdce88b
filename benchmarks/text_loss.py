"""Compiled temporary memory and time of the text loss, in blocks and at once.

    python -m benchmarks.text_loss --out runs/benchmarks/text_loss.json

The loss and its gradient of random hidden states against a random output matrix, on
one device. `temp_bytes` is what the compiled program needs besides its arguments and
results; the logits of all tokens at once are `logits_bytes`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Float

from benchmarks.timing import interleave, machine, summary, write
from ivon_jax.train.objectives.token_losses import token_log_probs

# Vocabulary and width of SmolLM2-135M, and of Qwen2.5-0.5B.
MODELS = {"smollm2-135m": (49152, 576), "qwen2.5-0.5b": (151936, 896)}


def whole(
    hidden: Float[Array, "r q d"], matrix: Float[Array, "v d"], targets: Any
) -> Float[Array, ""]:
    """Sums the log-probabilities from the logits of all tokens at once."""
    log_probs = jax.nn.log_softmax(hidden @ matrix.T)
    return jnp.sum(jnp.take_along_axis(log_probs, targets[..., None], axis=-1))


def in_blocks(
    hidden: Float[Array, "r q d"], matrix: Float[Array, "v d"], targets: Any
) -> Float[Array, ""]:
    """Sums them in blocks."""
    return jnp.sum(token_log_probs(lambda h: h @ matrix.T, hidden, targets)[..., 0])


def measure(name: str, rows: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Measures both losses on a model's sizes.

    Args:
        name: one of `MODELS`.
        rows: rows of the batch.
        tokens: learnt tokens of a row.
        rounds: timed repetitions; 0 for memory only.
    """
    vocabulary, width = MODELS[name]
    shapes = ((rows, tokens, width), (vocabulary, width))
    hidden, matrix = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    targets = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    compiled: dict[str, Any] = {
        fn.__name__: jax.jit(jax.value_and_grad(fn))
        .lower(hidden, matrix, targets)
        .compile()
        for fn in (whole, in_blocks)
    }
    rows_of: dict[str, dict[str, Any]] = {
        loss: {
            "model": name,
            "loss": loss,
            "logits_bytes": 4 * rows * tokens * vocabulary,
            "temp_bytes": program.memory_analysis().temp_size_in_bytes,
        }
        for loss, program in compiled.items()
    }
    if rounds:
        ones = [jnp.ones(x.shape, x.dtype) for x in (hidden, matrix, targets)]
        calls: dict[str, Callable[[], None]] = {
            loss: functools.partial(_run, program, ones)
            for loss, program in compiled.items()
        }
        for loss, seconds in interleave(calls, rounds).items():
            rows_of[loss] |= summary(seconds)
    return list(rows_of.values())


def _run(program: Any, args: list[Any]) -> None:
    jax.block_until_ready(program(*args))


def main(out: Path, rows: int = 8, tokens: int = 200, rounds: int = 3) -> None:
    """Measures the loss and writes the numbers.

    Args:
        out: JSON file to write.
        rows: rows of the batch.
        tokens: learnt tokens of a row.
        rounds: timed repetitions; 0 for memory only.
    """
    results = [row for name in MODELS for row in measure(name, rows, tokens, rounds)]
    write(out, {"machine": machine(), "results": results})


if __name__ == "__main__":
    tyro.cli(main)
