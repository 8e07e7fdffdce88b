"""The token ids of label words.

Shapes: c classes. All arrays are NumPy.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ivon_jax.train.data.fields import shown

# A private-use character; byte-level vocabularies encode it as four tokens.
_IN_NO_VOCABULARY = "\U0010fffd"


def fitting_space(tokenizer: Any, words: Sequence[str], preferred: bool) -> bool:
    """Decides whether label words are taken with a leading blank.

    Args:
        tokenizer: a `transformers` tokenizer.
        words: the label words in class order.
        preferred: the result unless only its opposite makes them single tokens.
    """
    unknown = _unknown(tokenizer)
    fits = {
        space: _problem(words, _pieces(tokenizer, words, space), unknown) is None
        for space in (True, False)
    }
    return preferred if fits[preferred] or not fits[not preferred] else not preferred


def answer_tokens(
    tokenizer: Any, words: Sequence[str], leading_space: bool
) -> Int[np.ndarray, " c"]:
    """Returns the token id of each label word.

    Args:
        tokenizer: a `transformers` tokenizer.
        words: the label words in class order.
        leading_space: whether to take the token of " word" or of "word".

    Raises:
        ValueError: a word is not a single token that the tokenizer knows, or two
            words share one. The message names the other setting if it would do.
    """
    pieces, unknown = _pieces(tokenizer, words, leading_space), _unknown(tokenizer)
    problem = _problem(words, pieces, unknown)
    if problem is None:
        return np.array([ids[0] for ids in pieces], np.int32)
    index, why = problem
    space = " " if leading_space else ""
    others = _pieces(tokenizer, words, not leading_space)
    other = _problem(words, others, unknown) is None
    hint = "without a leading space (no)" if leading_space else "with one (yes)"
    named = tokenizer.convert_ids_to_tokens(pieces[index])
    raise ValueError(
        f"answer word {shown(space + words[index])} {why}: {shown(list(named))}"
        + (f"; leading_space: all words are single tokens {hint}" if other else "")
    )


def _pieces(
    tokenizer: Any, words: Sequence[str], leading_space: bool
) -> list[list[int]]:
    """Returns the tokens of each word as the continuation of a prompt.

    They may differ at the start of a text, where the tokenizers of Llama 2 and Mistral
    add a blank.
    """
    space = " " if leading_space else ""
    return [_after_a_prompt(tokenizer, space + word) for word in words]


def _after_a_prompt(tokenizer: Any, text: str) -> list[int]:
    # A colon and what follows may be a single token, as ":A" is in some vocabularies;
    # a line's end and a word hardly are.
    for prompt in (":", "\n"):
        first, whole = (
            tokenizer.encode(part, add_special_tokens=False)
            for part in (prompt, prompt + text)
        )
        if whole[: len(first)] == first:
            return whole[len(first) :]
    return []


def _unknown(tokenizer: Any) -> set[int]:
    """Returns the ids of a tokenizer's unknown tokens."""
    found = set() if tokenizer.unk_token_id is None else {tokenizer.unk_token_id}
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    if model is not None:
        # A tokenizer's file may have one that its settings do not name.
        with contextlib.suppress(Exception):  # it has none, and refuses the text
            pieces = model.tokenize(_IN_NO_VOCABULARY)
            found |= {piece.id for piece in pieces if len(pieces) == 1}
    return found


def _problem(
    words: Sequence[str], pieces: Sequence[Sequence[int]], unknown: set[int]
) -> tuple[int, str] | None:
    """Returns the index of the first word that is not one token, and the reason."""
    seen: dict[int, str] = {}
    for i, (word, ids) in enumerate(zip(words, pieces, strict=True)):
        if unknown.intersection(ids):
            return i, "is unknown to this tokenizer"
        if len(ids) != 1:
            return i, f"is {len(ids)} tokens, not one, for this tokenizer"
        if ids[0] in seen:
            return i, f"is the same token as {shown(seen[ids[0]])}"
        seen[ids[0]] = word
    return None
