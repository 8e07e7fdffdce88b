"""Prompts to generate from, and the tokens that end an answer."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from ivon_jax.errors import prefixed
from ivon_jax.train.data.chats import chat_tokens
from ivon_jax.train.data.exchanges import Message, read_messages
from ivon_jax.train.data.fields import check_unicode, shown, text
from ivon_jax.train.data.rows import read_rows
from ivon_jax.train.data.text_encoding import prompt_tokens

# Text to continue, or a chat that the assistant is to answer: messages, or objects
# with the fields "role" and "content".
Content = str | Sequence[Message | Mapping[str, str]]


class Prompt(NamedTuple):
    """A prompt and its name among others."""

    id: str | int
    content: Content


def read_prompts(path: Path, *, chat: bool) -> list[Prompt]:
    """Reads a file of rows with ``messages`` or ``prompt``, and an ``id`` or a number.

    Args:
        path: JSONL, CSV or parquet.
        chat: whether a row's ``prompt`` is a user's message in a chat.

    Raises:
        ValueError: the file or a row is malformed, an id occurs twice, or there are
            no rows.
    """
    found: dict[str | int, Prompt] = {}
    for number, (place, row) in enumerate(read_rows(path), 1):
        with prefixed(place):
            name = row.get("id", number)
            if not isinstance(name, str | int) or isinstance(name, bool):
                raise ValueError(f"field 'id' must be text or a number, not {name!r}")
            if name in found:
                default = "" if "id" in row else ", once as the number of a row without"
                raise ValueError(f"id {shown(name)} occurs twice{default}")
            content: Content
            if "messages" in row:
                content = read_messages(row["messages"], "messages")
            else:
                content = text(row, "prompt")
                content = as_chat(content) if chat else content
            check_unicode([name, content])
        found[name] = Prompt(name, content)
    if not found:
        raise ValueError(f"{path}: has no rows")
    return list(found.values())


def as_chat(prompt: str) -> tuple[Message, ...]:
    """Returns a chat in which a user says the prompt."""
    return (Message("user", prompt),)


def encode_prompts(
    tokenizer: Any, contents: Iterable[Content]
) -> list[Int[np.ndarray, " _"]]:
    """Tokenises prompts as training does.

    Args:
        tokenizer: a `transformers` tokenizer.
        contents: texts and chats.

    Raises:
        ValueError: a text without tokens; messages of another form, or no chat
            template, or one that refuses them.
    """
    found = []
    for number, content in enumerate(contents, 1):
        with prefixed(f"prompt {number}"):
            if not isinstance(content, str):
                chat = [m._asdict() if isinstance(m, Message) else m for m in content]
                content = read_messages(chat, "messages")
            ids = prompt_tokens(tokenizer, content)
            if not ids:
                raise ValueError("has no tokens")
        found.append(np.array(ids, np.int32))
    return found


def stop_tokens(tokenizer: Any, folder: Path | None = None) -> tuple[int, ...]:
    """Returns every token that ends an answer.

    They are the tokenizer's end token, those of ``generation_config.json`` and
    ``config.json``, and the one that the chat template writes after a reply.

    Args:
        tokenizer: a `transformers` tokenizer.
        folder: the model's folder in HF's layout, if it has one.
    """
    found = [tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        if folder is not None and (folder / name).is_file():
            values = json.loads((folder / name).read_text()).get("eos_token_id")
            found += values if isinstance(values, list) else [values]
    try:
        reply = (Message("assistant", "reply"),)
        ids, learnt = chat_tokens(tokenizer, as_chat("prompt"), reply, "last")
        found.append(ids[learnt[-1]])
    except ValueError:  # no template, or one for other chats
        pass
    return tuple(sorted({token for token in found if type(token) is int}))
