"""A tiny encoder without a head, and data of a task of each kind of answer."""

from pathlib import Path

import tiny

from benchmarks.glue import SHAPE, make_tokenizer, write_model
from ivon_jax.models import DebertaConfig
from ivon_jax.train.config import DataConfig

SMALL = DebertaConfig.from_hf(
    SHAPE.to_hf()
    | {
        "hidden_size": 16,
        "pooler_hidden_size": 16,
        "embedding_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "type_vocab_size": 2,
    }
)


def write_task(folder: Path, task: str = "mrpc") -> tuple[str, DataConfig]:
    """Write a model and its data; return what a `TrainConfig` says of them.

    The first text tells the label: a colour means 1, a number 0.
    """
    folder.mkdir(exist_ok=True)
    rows = tiny.rows(48, seed=0, longest=1)  # a word: all padded to one length
    texts = [row["text"] for row in rows]
    write_model(folder / "encoder", SMALL, make_tokenizer(texts, 60))
    kind = {"mrpc": int, "stsb": float}[task]
    pairs = [
        {
            "sentence1": row["text"],
            "sentence2": other,
            "label": kind(tiny.LABELS.index(row["label"])),
        }
        for row, other in zip(rows, reversed(texts), strict=True)
    ]
    (folder / task).mkdir()
    tiny.write_rows(folder / task / "train.jsonl", pairs)
    tiny.write_rows(folder / task / "validation.jsonl", pairs[:9])
    return str(folder / "encoder"), DataConfig(task=task, data_dir=folder)
