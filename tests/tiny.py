"""A tiny language model folder and data that such a model can learn."""

import io
import json
from pathlib import Path

from ivon_jax.testing.tiny import (
    LABELS,
    PROMPT,
    rows,
    tokenizer,
    write_data,
    write_model,
    write_rows,
)
from ivon_jax.train.config import DataConfig

__all__ = [
    "LABELS",
    "PROMPT",
    "rows",
    "tokenizer",
    "write_data",
    "write_model",
    "write_rows",
    "write_sentencepiece",
    "write_task",
]


def write_sentencepiece(folder: Path, texts: list[str], **options: object) -> None:
    """Write the tokenizer's files of microsoft/deberta-v3-base, trained on texts."""
    import sentencepiece

    special = {"pad": "[PAD]", "bos": "[CLS]", "eos": "[SEP]", "unk": "[UNK]"}
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        **{f"{name}_id": i for i, name in enumerate(special)},
        **{f"{name}_piece": piece for name, piece in special.items()},
        **options,
    )
    (folder / "spm.model").write_bytes(model.getvalue())
    values = {"do_lower_case": False, "vocab_type": "spm"}
    (folder / "tokenizer_config.json").write_text(json.dumps(values))


def write_task(
    folder: Path, layers: int, evaluation: int = 40
) -> tuple[str, DataConfig]:
    """Write a model and its data; return what a `TrainConfig` says of them.

    Predictions of 40 examples are two batches, and so two programs; of 32 they are one.
    """
    model = write_model(folder / "model", layers=layers)
    files = write_data(folder / "data", evaluation=evaluation)
    return str(model), DataConfig(
        task="custom",
        train_file=files / "train.jsonl",
        eval_file=files / "eval.jsonl",
        prompt=PROMPT,
        labels=LABELS,
    )
