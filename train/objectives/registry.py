"""The objective of a task on a model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ivon_jax.models.families import family_of
from ivon_jax.train.data.answers import answer_tokens
from ivon_jax.train.data.task import Task
from ivon_jax.train.objectives.base import Objective
from ivon_jax.train.objectives.choice_text import ChoiceText
from ivon_jax.train.objectives.head import HeadClass, HeadNumber
from ivon_jax.train.objectives.label_words import LabelWords
from ivon_jax.train.objectives.text import Text

# Objectives of single tasks, by the task's name, in place of those for its kind of
# answer; they are called as `objective_of` is.
OBJECTIVES: dict[str, Callable[[Task, Any, Any, str], Objective]] = {}


def objective_of(task: Task, model_config: Any, tokenizer: Any, name: str) -> Objective:
    """Returns the objective of a task on a model.

    Args:
        task: the task.
        model_config: the model's configuration.
        tokenizer: the model's tokenizer.
        name: the model's name.

    Returns:
        The objective; its arrays are on the host.

    Raises:
        ValueError: the model does not support the task or its length, or a label word
            is not one token.
    """
    if own := OBJECTIVES.get(task.name):
        return own(task, model_config, tokenizer, name)
    limit = model_config.max_position_embeddings
    head = family_of(model_config).head
    if head and (task.exchange or task.choices):
        style = " with choice_text" if task.choices else ""
        raise ValueError(
            f"task: {task.name}{style} is for decoders, and {name} is an encoder"
        )
    if task.choices:
        return ChoiceText(task.metrics, limit)
    if task.exchange:
        if task.max_length and task.max_length > limit:
            raise ValueError(
                f"max_length: {task.max_length} is beyond {name}'s context of {limit}"
            )
        return Text(task.learn, task.max_length or limit, task.drop_long)
    if head:
        return HeadClass(task.metrics, limit) if task.label_words else HeadNumber(limit)
    if not task.label_words:
        raise ValueError(
            f"task: {task.name} asks for a number, which needs an encoder with a head"
            f" (as microsoft/deberta-v3-base); {name} is a decoder"
        )
    label_ids = answer_tokens(tokenizer, task.label_words, task.leading_space)
    return LabelWords(label_ids, task.metrics, limit)


def planned_objective(model_config: Any, outputs: int | None) -> Objective:
    """Returns the objective of a model that is not loaded, as shapes.

    Args:
        model_config: the model's configuration.
        outputs: number of classes; None for text.
    """
    limit = model_config.max_position_embeddings
    if outputs is None:
        return Text("all", limit, drop_long=False)
    if family_of(model_config).head:
        return HeadClass((), limit)
    label_ids = jax.ShapeDtypeStruct((outputs,), jnp.int32)
    return LabelWords(label_ids, (), limit)
