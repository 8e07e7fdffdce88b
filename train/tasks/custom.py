"""The task of a user's own prompt, labels and files."""

from ivon_jax.train.data.fields import Template, class_index, field, shown
from ivon_jax.train.data.task import Row, Source, Task
from ivon_jax.train.tasks.spacing import blank_follows


def custom_task(
    prompt: str,
    labels: tuple[str, ...],
    *,
    label_field: str = "label",
    leading_space: bool | None = None,
    source: Source | None = None,
) -> Task:
    """Makes a task of a user's prompt template and label words.

    Args:
        prompt: template with `{field}` placeholders, `{{` for a brace.
        labels: the label words in class order.
        label_field: field of a row's class: one of `labels`, or its index. If a label
            is itself a number, indices are not accepted.
        leading_space: see `Task`; None to decide by the prompt's end, the words' script
            and the tokenizer.
        source: a data set of the hub; None for files.

    Raises:
        ValueError: the template is malformed, has no field, has the label in it, or
            ends in a blank before words with a leading one; there are fewer than two
            labels, or one is empty or repeated.

    >>> task = custom_task("Text: {text} Topic:", ("sport", "art"))
    >>> task.example({"text": "A late goal.", "label": "sport"})
    Example(prompt='Text: A late goal. Topic:', label=0, texts=(), choices=())
    """
    words = tuple(label.strip() for label in labels)
    if len(words) < 2 or not all(words) or len(set(words)) != len(words):
        raise ValueError(
            f"labels {shown(list(labels))}: at least two, distinct and not empty"
        )
    template = Template(prompt)
    if not template.names:
        raise ValueError(f"prompt {shown(prompt)} has no {{field}} placeholder")
    if label_field in template.names:
        raise ValueError(f"prompt {shown(prompt)} shows the answer, {{{label_field}}}")
    blank = prompt.endswith(" ")
    space = leading_space
    if space is None:
        space = blank_follows(prompt.rstrip(" "), words)
    if space and blank:
        raise ValueError(
            f"prompt {shown(prompt)} ends in a blank, but every label word starts "
            "with one; drop the prompt's"
        )

    def target(row: Row) -> int:
        return class_index(field(row, label_field), words)

    return Task(
        "custom",
        "custom",
        template,
        target,
        words,
        leading_space=space,
        other_space=leading_space is None and not blank,
        source=source,
    )
