"""Exchanges: a prompt and what is to follow it, read from rows of several formats."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ivon_jax.train.data.fields import field, shown, text

Row = Mapping[str, Any]

# What a reader looks for in a row; `--columns` gives it another name.
NAMES = ("text", "prompt", "completion", "messages", "role", "content")
# ShareGPT's names of the roles.
_ROLES = {"human": "user", "gpt": "assistant"}


class Message(NamedTuple):
    """A turn of a chat."""

    role: str
    content: str


class Exchange(NamedTuple):
    """A prompt and its completion: both text, or both messages of a chat.

    Attributes:
        prompt: what is given; empty if all is to be learnt.
        completion: what follows.
    """

    prompt: str | tuple[Message, ...]
    completion: str | tuple[Message, ...]

    @property
    def label(self) -> int:
        """The class by which examples are stratified: all are alike."""
        return 0

    @property
    def parts(self) -> list[Any]:
        """Everything it holds, as JSON."""
        return list(self)

    @property
    def asked(self) -> Any:
        """What it asks, without the answer; all of it if there is no prompt."""
        return self.prompt or self.completion

    @property
    def format(self) -> str:
        """The fields that it was read from."""
        if isinstance(self.completion, str):
            return "prompt and completion" if self.prompt else "text"
        return "prompt and completion of messages" if self.prompt else "messages"


def exchange_reader(columns: Sequence[str] = ()) -> Callable[[Row], Exchange]:
    r"""Returns the function from a row to an exchange.

    A row has ``messages``, or ``prompt`` and ``completion``, or ``text``, in this order
    of preference. Messages are objects with ``role`` and ``content``; prompt and
    completion may both be lists of them.

    Args:
        columns: other names of these fields, as ``prompt=question``. Several fields
            joined by "+" are put together by line breaks, without the empty ones.

    Raises:
        ValueError: a mapping of another form.

    Example:
        >>> alpaca = exchange_reader(("prompt=instruction+input", "completion=output"))
        >>> alpaca({"instruction": "Add.", "input": "2, 3", "output": "5"})
        Exchange(prompt='Add.\n2, 3', completion='5')
    """
    names: dict[str, tuple[str, ...]] = {name: (name,) for name in NAMES}
    for column in columns:
        name, _, fields = column.partition("=")
        if name not in NAMES or not all(fields.split("+")):
            raise ValueError(
                f"columns: {shown(column)} is not of the form NAME=FIELD, with a name"
                f" among {', '.join(NAMES)}"
            )
        names[name] = tuple(fields.split("+"))
    roles = (names["role"][0], names["content"][0])

    def side(row: Row, name: str) -> str | tuple[Message, ...]:
        first, *others = names[name]
        if isinstance(row[first], list):
            return read_messages(row[first], first, *roles)
        found = [text(row, first), *(text(row, x) for x in others if row.get(x))]
        return "\n".join(part for part in found if part)

    def read(row: Row) -> Exchange:
        if names["messages"][0] in row:
            name = names["messages"][0]
            return Exchange((), read_messages(row[name], name, *roles))
        if all(names[name][0] in row for name in ("prompt", "completion")):
            exchange = Exchange(side(row, "prompt"), side(row, "completion"))
        elif names["text"][0] in row:
            exchange = Exchange("", text(row, names["text"][0]))
        else:
            there = ", ".join(shown(key) for key in row) or "none"
            raise ValueError(
                "no field 'messages', 'prompt' and 'completion', or 'text'; the fields"
                f" are {there}; --columns prompt=FIELD completion=FIELD names them"
            )
        if isinstance(exchange.prompt, str) != isinstance(exchange.completion, str):
            raise ValueError("prompt and completion: one is text, the other messages")
        if isinstance(exchange.completion, str) and not exchange.completion.strip():
            raise ValueError(f"the {exchange.format.split()[-1]} is empty")
        return exchange

    return read


def read_messages(
    value: Any, name: str, role: str = "role", content: str = "content"
) -> tuple[Message, ...]:
    """Reads a list of messages.

    Args:
        value: the list, from a field of a row.
        name: the field's name.
        role: name of a message's role.
        content: name of its text.

    Raises:
        ValueError: it is of another form, or a reply is empty.
    """
    if not isinstance(value, list) or not value:
        raise ValueError(f"field {shown(name)} must be a list of messages")
    found = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is not an object but {shown(message)}")
        parts = (field(message, role), field(message, content))
        for part, key in zip(parts, (role, content), strict=True):
            if not isinstance(part, str):
                raise ValueError(
                    f"message {number}: {shown(key)} must be text, not {shown(part)}"
                )
        known = _ROLES.get(parts[0], parts[0])
        if known == "assistant" and not parts[1].strip():
            raise ValueError(f"message {number}: the reply is empty")
        found.append(Message(known, parts[1]))
    return tuple(found)
