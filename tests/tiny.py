"""A tiny language model folder and data that such a model can learn."""

import io
import json
from pathlib import Path

import numpy as np
import tiny_models

from ivon_jax.train.config import DataConfig

GOOD, BAD = ("red", "green", "blue"), ("one", "two", "three")
FILLER = ("big", "small", "old", "new")
PROMPT = "Text: {text} Answer:"
LABELS = ("no", "yes")


def tokenizer():
    """Words with their leading blank are tokens, as in most models' vocabularies.

    The first word of a text carries no blank, so "yes" and " yes" are two tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "Text:", "yes", "no", "▁yes", "▁no", "▁Answer:"]
    words += [f"▁{word}" for word in GOOD + BAD + FILLER]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return tokenizer


def write_model(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """Write a random Llama with its tokenizer in HF's layout."""
    weights = tiny_models.tensors(layers, seed)
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            tensor[:] = 1
        elif "embed" not in name:
            tensor /= np.sqrt(np.float32(tensor.shape[1]))
    tiny_models.write_folder(folder, weights, num_hidden_layers=layers)
    tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


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


def rows(count: int, seed: int, longest: int = 6) -> list[dict[str, str]]:
    """Texts of at most so many words; a colour among them means yes, a number no."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        label = int(rng.integers(2))
        words = list(rng.choice(FILLER, rng.integers(0, longest)))
        key = str(rng.choice(GOOD if label else BAD))
        words.insert(int(rng.integers(len(words) + 1)), key)
        out.append({"text": " ".join(words), "label": LABELS[label]})
    return out


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_data(
    folder: Path, train: int = 64, evaluation: int = 40, longest: int = 6
) -> Path:
    """Write `train.jsonl` and `eval.jsonl`; up to 6 words pad to one length, 8."""
    folder.mkdir(exist_ok=True)
    write_rows(folder / "train.jsonl", rows(train, 1, longest))
    write_rows(folder / "eval.jsonl", rows(evaluation, 2, longest))
    return folder


def write_task(folder: Path, layers: int) -> tuple[str, DataConfig]:
    """Write a model and its data; return what a `TrainConfig` says of them."""
    model = write_model(folder / "model", layers=layers)
    files = write_data(folder / "data")
    return str(model), DataConfig(
        task="custom",
        train_file=files / "train.jsonl",
        eval_file=files / "eval.jsonl",
        prompt=PROMPT,
        labels=LABELS,
    )
