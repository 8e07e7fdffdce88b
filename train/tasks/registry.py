"""The one place that knows the tasks by name."""

from collections.abc import Callable

from ivon_jax.train.data.fields import shown
from ivon_jax.train.data.task import Task
from ivon_jax.train.tasks.cities import CITIES
from ivon_jax.train.tasks.commonsense import COMMONSENSE
from ivon_jax.train.tasks.glue import GLUE

PROMPT_STYLES = ("paper_code", "paper_table")
# What makes each task of a prompt style.
TASKS: dict[str, Callable[[str], Task]] = {**CITIES, **COMMONSENSE, **GLUE}


def get_task(name: str, prompt_style: str = "paper_code") -> Task:
    """Looks a built-in task up.

    Args:
        name: one of `TASKS`.
        prompt_style: "paper_code" for the prompts of the code the paper's numbers
            come from, "paper_table" for those its Table 8 prints. They differ for
            WinoGrande only; the preprocessing of choices is the code's in both.

    Raises:
        ValueError: unknown name or style; the message lists the legal ones.

    >>> get_task("boolq").words
    ('False', 'True')
    """
    if prompt_style not in PROMPT_STYLES:
        legal = ", ".join(PROMPT_STYLES)
        raise ValueError(f"unknown prompt style {shown(prompt_style)}; legal: {legal}")
    if name not in TASKS:
        legal = ", ".join((*TASKS, "custom"))
        raise ValueError(f"unknown task {shown(name)}; legal: {legal}")
    return TASKS[name](prompt_style)
