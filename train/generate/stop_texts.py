"""The text of an output, which ends before the first of some stop texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int


def text_of(
    tokenizer: Any,
    tokens: Sequence[int] | Int[np.ndarray, " t"],
    until: Sequence[str] = (),
) -> str:
    """Returns the text of tokens, without special ones, before the first stop text.

    Args:
        tokenizer: a `transformers` tokenizer.
        tokens: the tokens.
        until: the stop texts.
    """
    return before(tokenizer.decode(tokens, skip_special_tokens=True), until)


def before(text: str, until: Sequence[str]) -> str:
    """Returns the text before the first of some others, or all of it.

    Example:
        >>> before("4, 5. Next: 6", ["Next:", "."])
        '4, 5'
    """
    starts = [text.find(stop) for stop in until]
    return text[: min((start for start in starts if start >= 0), default=len(text))]


def settled(text: str, until: Sequence[str]) -> str:
    """Returns the beginning of a growing text that no stop text can remove any more.

    Example:
        >>> settled("4, 5. Ne", ["Next:"])
        '4, 5. '
    """
    text = before(text, until)
    starts = {stop[:size] for stop in until for size in range(1, len(stop))}
    longest = max((s for s in starts if text.endswith(s)), key=len, default="")
    return text.removesuffix(longest)
