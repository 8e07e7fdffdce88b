"""From exchanges to token ids and the positions of learnt tokens.

All arrays are NumPy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from ivon_jax.errors import prefixed
from ivon_jax.train.data.chats import chat_ids, chat_tokens
from ivon_jax.train.data.encoding import (
    Encoded,
    special_tokens_around,
    token_ids,
)
from ivon_jax.train.data.exchanges import Exchange
from ivon_jax.train.data.fields import shown
from ivon_jax.train.data.task import Learn
from ivon_jax.train.pod.processes import divide


def encode_exchanges(
    tokenizer: Any,
    exchanges: Sequence[Exchange],
    learn: Learn = "completion",
    max_length: int | None = None,
    *,
    drop_long: bool = False,
) -> Encoded:
    """Tokenises exchanges and finds the tokens to learn.

    Text is tokenised apart from its prompt, and ends in the tokenizer's end token,
    which is learnt. Chats are written by the tokenizer's template; see `chat_tokens`.

    Each of several processes tokenises its share, and all return the whole.

    Args:
        tokenizer: a `transformers` tokenizer.
        exchanges: at least one.
        learn: the tokens to learn: of the completion, in a chat its assistant's turns;
            of every assistant's turn; of the last one; or all. Text has one turn.
        max_length: limit of the tokens of an exchange; None for no limit.
        drop_long: whether to leave longer ones out, instead of an error.

    Raises:
        ValueError: no exchanges; one beyond the limit, or without a token to learn; no
            end token, or a chat that the template cannot write turn by turn.
    """
    if not exchanges:
        raise ValueError("no examples to encode")
    numbered = list(enumerate(exchanges, 1))

    def tokenise(share: Sequence[tuple[int, Exchange]]) -> list[list[int]]:
        rows = []
        for number, exchange in share:
            with prefixed(f"example {number}"):
                ids, learnt = exchange_tokens(tokenizer, exchange, learn)
                if not learnt:
                    raise ValueError(f"no token to learn, with --learn {learn}")
            rows.append([len(ids), *ids, *learnt])
        return rows

    pairs = [
        (row[1 : row[0] + 1], row[row[0] + 1 :]) for row in divide(tokenise, numbered)
    ]
    lengths = np.array([len(ids) for ids, _ in pairs])
    long = np.flatnonzero(lengths > (max_length or lengths.max()))
    if long.size and (not drop_long or long.size == len(pairs)):
        longest = int(lengths.argmax())
        raise ValueError(
            f"{long.size} of {len(pairs)} examples are longer than the limit of"
            f" {max_length} tokens; the longest, example {longest + 1}, has"
            f" {lengths[longest]}: {shown(exchanges[longest].completion)}"
            + ("" if drop_long else "; --too-long drop leaves them out")
        )
    for index in long[::-1]:
        del pairs[index]
    tokens, learnt = zip(*pairs, strict=True)
    return Encoded(tokens, _labels(tokens, learnt), learnt=learnt)


def summary(exchanges: Sequence[Any], encoded: Encoded) -> str:
    """Describes a split: its examples, their format, and what there is to learn.

    Args:
        exchanges: the examples.
        encoded: the same, some perhaps left out.
    """
    total, formats = len(exchanges), {exchange.format for exchange in exchanges}
    dropped = f", {total - len(encoded)} too long" if len(encoded) < total else ""
    return (
        f"{len(encoded)} of {total} examples{dropped}; format"
        f" {', '.join(sorted(formats))}; {encoded.lengths.sum()} tokens an epoch, of"
        f" which {encoded.answers.sum()} are learnt"
    )


def _labels(
    tokens: Sequence[Int[np.ndarray, " _"]], learnt: Sequence[Int[np.ndarray, " _"]]
) -> Int[np.ndarray, "t 2"]:
    """Returns each learnt token with the index of its example."""
    pairs = enumerate(zip(tokens, learnt, strict=True))
    return np.concatenate(
        [np.stack([ids[at], np.full_like(at, i)], axis=1) for i, (ids, at) in pairs]
    )


def exchange_tokens(
    tokenizer: Any, exchange: Exchange, learn: Learn
) -> tuple[list[int], list[int]]:
    """Returns an exchange's tokens, and the positions of those to learn.

    Raises:
        ValueError: see `encode_exchanges`.
    """
    prompt, completion = exchange
    if not isinstance(prompt, str) or not isinstance(completion, str):
        ids, learnt = chat_tokens(tokenizer, *exchange, learn)  # type: ignore[arg-type]
    else:
        ids = prompt_tokens(tokenizer, prompt)
        start = len(ids)
        ids += _continuation(tokenizer, prompt, completion)
        end = tokenizer.eos_token_id
        if end is None:
            raise ValueError("the tokenizer has no end token (eos_token) to learn")
        if ids[-1] != end:
            ids.append(end)
        learnt = list(range(start, len(ids)))
    # Nothing comes before the first token.
    return ids, list(range(1, len(ids))) if learn == "all" else [x for x in learnt if x]


def prompt_tokens(tokenizer: Any, prompt: Any) -> list[int]:
    """Returns the tokens of an exchange's prompt, as they are before its completion.

    Args:
        tokenizer: a `transformers` tokenizer.
        prompt: text, or messages, which a turn of the assistant is to follow.

    Raises:
        ValueError: the chat template refuses the messages.
    """
    if not isinstance(prompt, str):
        return chat_ids(tokenizer, prompt)
    (ids,) = token_ids(tokenizer, [prompt], add_special_tokens=False)
    before, _ = special_tokens_around(tokenizer, [prompt])
    return ids if ids[: len(before)] == before else [*before, *ids]


def _continuation(tokenizer: Any, prompt: str, completion: str) -> list[int]:
    """Returns the tokens of a text after its prompt."""
    if not prompt or not _starts_with_blank(tokenizer):
        (ids,) = token_ids(tokenizer, [completion], add_special_tokens=False)
        before, _ = special_tokens_around(tokenizer, [completion])
        # Those of an empty prompt are there already.
        repeated = before and not prompt and ids[: len(before)] == before
        return ids[len(before) :] if repeated else ids
    # A blank of its own would come between them.
    first, whole = token_ids(
        tokenizer, [prompt, prompt + completion], add_special_tokens=False
    )
    if whole[: len(first)] != first:
        raise ValueError(
            f"the tokens of the prompt {shown(prompt)} are not those that its text with"
            " the completion begins with; move the blank between them to the completion"
        )
    return whole[len(first) :]


def _starts_with_blank(tokenizer: Any) -> bool:
    """Returns whether a tokenizer puts a blank before every text, as Llama 2's does."""
    (ids,) = token_ids(tokenizer, ["a"], add_special_tokens=False)
    return str(tokenizer.convert_ids_to_tokens(ids[:1])[0:1]).startswith(("['▁", "['Ġ"))
