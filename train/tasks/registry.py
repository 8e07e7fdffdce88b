"""The registry of tasks."""

from collections.abc import Callable

from ivon_jax.train.data.fields import shown
from ivon_jax.train.data.task import Task
from ivon_jax.train.tasks.cities import CITIES
from ivon_jax.train.tasks.commonsense import COMMONSENSE
from ivon_jax.train.tasks.glue import GLUE
from ivon_jax.train.tasks.gsm8k import GSM8K
from ivon_jax.train.tasks.letters import LETTERS
from ivon_jax.train.tasks.sums import SUMS

PROMPT_STYLES = ("paper_code", "paper_table", "choice_text")
# Functions from the prompt style to the task.
TASKS: dict[str, Callable[[str], Task]] = {
    **CITIES,
    **COMMONSENSE,
    **GLUE,
    **GSM8K,
    **SUMS,
    **LETTERS,
}


def get_task(name: str, prompt_style: str = "paper_code") -> Task:
    """Returns a built-in task.

    Args:
        name: one of `TASKS`.
        prompt_style: "paper_code" for the prompts of the code behind the paper's
            numbers, "paper_table" for those of its Table 8. They differ for WinoGrande
            only; choices are preprocessed as in the code in both. "choice_text" for the
            choices' texts instead of letters.

    Raises:
        ValueError: unknown name or style; the message lists the legal ones. Or a task
            whose classes have no texts.

    >>> get_task("boolq").label_words
    ('False', 'True')
    """
    if prompt_style not in PROMPT_STYLES:
        legal = ", ".join(PROMPT_STYLES)
        raise ValueError(f"unknown prompt style {shown(prompt_style)}; legal: {legal}")
    if name not in TASKS:
        legal = ", ".join((*TASKS, "custom", "text"))
        raise ValueError(f"unknown task {shown(name)}; legal: {legal}")
    task = TASKS[name](prompt_style)
    if prompt_style == "choice_text" and not task.choices:
        raise ValueError(f"prompt_style: the classes of {name} have no choice_text")
    return task
