"""The task of a user's own texts, prompts with completions, or chats."""

from collections.abc import Sequence

from ivon_jax.train.data.exchanges import exchange_reader
from ivon_jax.train.data.task import Source, Task


def text_task(columns: Sequence[str] = (), source: Source | None = None) -> Task:
    """Makes a task of rows with text, a prompt and a completion, or messages.

    Args:
        columns: see `exchange_reader`.
        source: a data set of the hub; None for files.

    Raises:
        ValueError: a column mapping of another form.

    Example:
        >>> task = text_task(("completion=answer",))
        >>> task.example({"prompt": "2 + 2 =", "answer": " 4"})
        Exchange(prompt='2 + 2 =', completion=' 4')
    """
    return Task("text", "text", source=source, exchange=exchange_reader(columns))
