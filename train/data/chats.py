"""Chats as token ids, by the tokenizer's own template.

Masks come from the lengths of the chat written turn by turn. The template need not mark
what the assistant says, which few do, and padding is never looked at.
"""

from collections.abc import Sequence
from typing import Any

from ivon_jax.errors import one_line
from ivon_jax.train.data.encoding import token_ids
from ivon_jax.train.data.exchanges import Message
from ivon_jax.train.data.fields import shown
from ivon_jax.train.data.task import Learn


def chat_ids(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Returns the tokens of messages, up to where the assistant's turn begins.

    Raises:
        ValueError: there is no template, or it refuses the messages.
    """
    return _ids(tokenizer, _written(tokenizer, messages, reply=True))


def chat_tokens(
    tokenizer: Any,
    prompt: Sequence[Message],
    completion: Sequence[Message],
    learn: Learn,
) -> tuple[list[int], list[int]]:
    """Returns a chat's tokens, and the positions of those to learn.

    Of an assistant's turn the tokens from after the template's opening to its end token
    are learnt, this included; not what the template writes after it.

    Args:
        tokenizer: a `transformers` tokenizer with a chat template.
        prompt: messages that are given.
        completion: messages that follow.
        learn: see `encode_exchanges`.

    Raises:
        ValueError: the template refuses or leaves out a message, its turns do not build
            on each other, or a turn has no end token.
    """
    messages = [*prompt, *completion]
    first = len(prompt) if learn == "completion" else 0
    turns = [i for i, message in enumerate(messages) if message.role == "assistant"]
    turns = [i for i in turns if i >= first]
    if learn == "last":
        turns = turns[-1:]
    text = _written(tokenizer, messages)
    _check_complete(text, messages)
    ids = _ids(tokenizer, text)
    learnt: list[int] = []
    for turn in turns:
        start, stop = (
            _length(tokenizer, part, text, ids, turn + 1)
            for part in (
                _written(tokenizer, messages[:turn], reply=True),
                _written(tokenizer, messages[: turn + 1]),
            )
        )
        learnt += range(start, _end(tokenizer, ids, start, stop, turn + 1))
    return ids, learnt


def _written(
    tokenizer: Any, messages: Sequence[Message], *, reply: bool = False
) -> str:
    """Writes a chat; with `reply`, up to where the assistant's turn begins."""
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "messages: the tokenizer has no chat template; give a prompt and a"
            " completion as text"
        )
    try:
        return tokenizer.apply_chat_template(
            [message._asdict() for message in messages],
            tokenize=False,
            add_generation_prompt=reply,
        )
    except Exception as error:  # a template's code may raise anything
        roles = ", ".join(message.role for message in messages) or "none"
        raise ValueError(
            f"the chat template refuses messages of the roles {shown(roles)}:"
            f" {one_line(error)}"
        ) from None


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenises a written chat: the template has its special tokens already."""
    (ids,) = token_ids(tokenizer, [text], add_special_tokens=False)
    start = tokenizer.bos_token_id
    if start is not None and ids[:2] == [start, start]:
        raise ValueError(
            f"the chat begins with {shown(tokenizer.bos_token)} twice; remove it from"
            " the template or the first message"
        )
    return ids


def _check_complete(text: str, messages: Sequence[Message]) -> None:
    """Checks that no message was left out; replies may be cut."""
    place = 0
    for message in messages:
        content = message.content.strip()
        if message.role == "assistant":
            continue
        found = text.find(content, place)
        if found < 0:
            raise ValueError(
                f"the chat template leaves out a message of role {shown(message.role)}:"
                f" {shown(content)}"
            )
        place = found + len(content)


def _length(tokenizer: Any, part: str, text: str, ids: Sequence[int], turn: int) -> int:
    """Returns the number of tokens of a chat's beginning."""
    begun = _ids(tokenizer, part) if text.startswith(part) else None
    if begun is None or list(ids[: len(begun)]) != begun:
        raise ValueError(
            f"message {turn}: the chat template writes the turns before it otherwise"
            " than within the whole chat, so that what is learnt cannot be told; try"
            " --learn last"
        )
    return len(begun)


def _end(tokenizer: Any, ids: Sequence[int], start: int, stop: int, turn: int) -> int:
    """Returns the position after a turn's end token."""
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    ends = [i for i in range(start, stop) if ids[i] in special]
    if not ends or tokenizer.decode(ids[ends[-1] + 1 : stop]).strip():
        raise ValueError(
            f"message {turn}: the chat template ends the assistant's turn without a"
            " special token, so that no stop would be learnt"
        )
    return ends[-1] + 1
