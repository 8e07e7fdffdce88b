"""Rows of a custom task, and the examples that they are."""

import json
from pathlib import Path

import pytest

from ivon_jax.train.data.task import Example
from ivon_jax.train.tasks.custom import custom_task

CUSTOM = custom_task("Text: {text} Topic:", ("sport", "art"))
ROWS = [
    {"text": "A late goal.", "label": "sport"},
    {"text": 'Öl, auf "Leinwand"\nund NA', "label": "1"},
    {"text": "NA", "label": "0"},
]
EXAMPLES = [
    Example("Text: A late goal. Topic:", 0),
    Example('Text: Öl, auf "Leinwand"\nund NA Topic:', 1),
    Example("Text: NA Topic:", 0),
]


def write_jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def message(call, *args, **kwargs) -> str:
    """The one line a ValueError carries."""
    with pytest.raises(ValueError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)
