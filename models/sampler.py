"""How the next token is drawn from a model's logits."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ivon_jax.checks import NOT_NEGATIVE, RATIO, SHARE, Rule, check

# Below the lowest, differences of logits would overflow.
_TEMPERATURE = Rule("0, or a number >= 1e-6", lambda x: x == 0 or 1e-6 <= x < math.inf)
_BLOCK = 256  # entries whose weights are summed before one of them is chosen


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Settings of the draw; the defaults sample from the model itself.

    The filters are applied after the temperature, in this order, each to what the one
    before has left, as in transformers. Tokens of equal logits are kept or removed
    together.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keep this many of the most likely tokens; 0 for all.
        top_p: keep the fewest most likely tokens whose probabilities sum to this much
            (Holtzman et al. 2020, arXiv:1904.09751).
        min_p: keep tokens of at least this share of the highest probability (Nguyen et
            al. 2024, arXiv:2407.01082).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Checks each field."""
        check("temperature", self.temperature, _TEMPERATURE)
        check("top_k", self.top_k, NOT_NEGATIVE)
        check("top_p", self.top_p, SHARE)
        check("min_p", self.min_p, RATIO)

    def filtered(self, logits: Float[Array, "r v"]) -> Float[Array, "r v"]:
        """Returns the logits to draw by, -inf where removed; the highest is 0.

        Args:
            logits: the model's.

        Example:
            >>> sampler = Sampler(temperature=0.5, top_k=2)
            >>> sampler.filtered(jnp.array([[1.0, 3.0, 2.0]])).tolist()
            [[-inf, 0.0, -2.0]]
        """
        highest = jnp.max(logits, axis=-1, keepdims=True)
        kept = (logits - highest) / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            lowest = jax.lax.top_k(kept, self.top_k)[0][:, -1:]
            kept = _at_least(lowest, kept)
        if self.top_p < 1:
            kept = _at_least(_nucleus(kept, self.top_p), kept)
        if self.min_p > 0:
            kept = _at_least(math.log(self.min_p), kept)
        return kept

    def pick(
        self,
        logits: Float[Array, "r v"],
        keys: Key[Array, " o"],
        rows: Int[Array, " o"] | None = None,
    ) -> tuple[Int[Array, " o"], Float[Array, " o"]]:
        """Draws tokens.

        Args:
            logits: the model's.
            keys: a key for each token; not used at temperature 0.
            rows: the row of logits that each token is drawn from; None for one of each.

        Returns:
            The tokens, and their log-probabilities under the model: without
            temperature and filters.
        """
        rows = jnp.arange(len(logits)) if rows is None else rows
        if self.temperature == 0:
            tokens = jnp.argmax(logits, axis=-1)[rows]
        else:
            tokens = _draw(jnp.exp(self.filtered(logits)), keys, rows)
        tokens = tokens.astype(jnp.int32)
        return tokens, logits[rows, tokens] - jax.nn.logsumexp(logits, axis=-1)[rows]


def _at_least(
    threshold: Float[Array, "r 1"] | float, logits: Float[Array, "r v"]
) -> Float[Array, "r v"]:
    return jnp.where(logits >= threshold, logits, -jnp.inf)


def _nucleus(logits: Float[Array, "r v"], top_p: float) -> Float[Array, "r 1"]:
    """Finds the highest threshold above which there is a mass of `top_p`.

    By bisection, for XLA's sort of a vocabulary costs more than a small model's step.
    Logits closer than 2^-32 of their range count as equal.
    """
    probs = jax.nn.softmax(logits, axis=-1)
    high = jnp.full((len(logits), 1), jnp.finfo(logits.dtype).tiny)  # just above all
    low = jnp.min(
        logits, axis=-1, keepdims=True, where=logits > -jnp.inf, initial=jnp.inf
    )

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) / 2
        mass = jnp.sum(probs, axis=-1, keepdims=True, where=logits >= middle)
        enough = mass >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    return jax.lax.fori_loop(0, 32, halve, (low, high))[0]


def _draw(
    weights: Float[Array, "r v"], keys: Key[Array, " o"], rows: Int[Array, " o"]
) -> Int[Array, " o"]:
    """Draws an index in proportion to its weight: a block, then an entry of it.

    Two uniform numbers a token cost a thirtieth of the vocabulary's Gumbel noise.
    """
    missing = -weights.shape[-1] % _BLOCK
    blocks = jnp.pad(weights, ((0, 0), (0, missing)))
    blocks = blocks.reshape(len(weights), -1, _BLOCK)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (2, 1)))(keys)
    block = _choose(jnp.sum(blocks, axis=-1)[rows], uniform[:, 0])
    return block * _BLOCK + _choose(blocks[rows, block], uniform[:, 1])


def _choose(
    weights: Float[Array, "r n"], uniform: Float[Array, "r 1"]
) -> Int[Array, " r"]:
    """Returns the first index whose cumulative weight exceeds a share of the total."""
    # Sums are rounded in any order, so one may rise where nothing was added.
    sums = jnp.where(weights > 0, jnp.cumsum(weights, axis=-1), -1.0)
    total = jnp.max(sums, axis=-1, keepdims=True)
    return jnp.argmax(sums > uniform * total, axis=-1)
