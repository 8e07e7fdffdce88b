"""A random language model of two small layers, and data that it can learn.

Texts are colours and numbers among filler words; the answer is yes if there is a
colour. All are written in the usual file formats.
"""

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

# Rows are multiples of 32, the block length of GGUF's quantised types.
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
}
GOOD, BAD = ("red", "green", "blue"), ("one", "two", "three")
FILLER = ("big", "small", "old", "new")
# ChatML, as most instruction-tuned models have it.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPT = "Text: {text} Answer:"
LABELS = ("no", "yes")


def tensors(layers: int = 2, seed: int = 0) -> dict[str, Float[np.ndarray, "..."]]:
    """Draws normal weights for `CONFIG` by HF's names, linear ones (out, in)."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (50, 32),
        "model.norm.weight": (32,),
    }
    for i in range(layers):
        shapes |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (32,),
                "self_attn.q_proj": (32, 32),
                "self_attn.k_proj": (16, 32),
                "self_attn.v_proj": (16, 32),
                "self_attn.o_proj": (32, 32),
                "post_attention_layernorm": (32,),
                "mlp.gate_proj": (64, 32),
                "mlp.up_proj": (64, 32),
                "mlp.down_proj": (32, 64),
            }.items()
        }
    rng = np.random.default_rng(seed)
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_folder(folder: Path, weights: Mapping[str, Any], **changes: object) -> Path:
    """Writes weights, and `CONFIG` with changes, to a folder in HF's layout."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(dict(weights), folder / "model.safetensors")
    return folder


def tokenizer() -> Any:
    """Makes a tokenizer of whole words; as in most, " yes" and "yes" are two tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["[PAD]", "[UNK]", "Text:", "yes", "no", "▁yes", "▁no", "▁Answer:"]
    words += [f"▁{word}" for word in GOOD + BAD + FILLER]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    return tokenizer


def text_tokenizer() -> Any:
    """Makes a tokenizer of single characters, with the marks of `CHAT_TEMPLATE`."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    marks = ["[UNK]", "<|im_start|>", "<|im_end|>"]
    letters = [*string.ascii_lowercase, *string.digits, *" \n.,?#+=-"]
    vocabulary = {word: i for i, word in enumerate(marks + letters)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    added = [AddedToken(mark, special=True, normalized=False) for mark in marks]
    tokenizer.add_special_tokens(added)
    return tokenizer


def write_model(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """Writes a random Llama with its tokenizer in HF's layout.

    Args:
        folder: created if it does not exist.
        seed: seed of the weights.
        layers: number of layers.

    Returns:
        The folder, for `ivon_jax.models.load` or ``--model``.
    """
    settings = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    return _write_model(folder, tokenizer(), settings, seed, layers)


def write_text_model(folder: Path, seed: int = 0, layers: int = 2) -> Path:
    """Writes the same model with a tokenizer of single characters and a chat template.

    It reads lower-case letters, digits and a little punctuation. Its end token,
    ``<|im_end|>``, also pads.

    Args:
        folder: created if it does not exist.
        seed: seed of the weights.
        layers: number of layers.

    Returns:
        The folder.
    """
    end = "<|im_end|>"
    settings = {"eos_token": end, "pad_token": end, "unk_token": "[UNK]"}
    settings["chat_template"] = CHAT_TEMPLATE
    return _write_model(folder, text_tokenizer(), settings, seed, layers)


def _write_model(
    folder: Path, tokenizer: Any, settings: dict[str, str], seed: int, layers: int
) -> Path:
    weights = tensors(layers, seed)
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            tensor[:] = 1
        elif "embed" not in name:
            tensor /= np.sqrt(np.float32(tensor.shape[1]))
    write_folder(folder, weights, num_hidden_layers=layers)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def rows(count: int, seed: int, longest: int = 6) -> list[dict[str, str]]:
    """Draws texts with their labels.

    Args:
        count: number of texts.
        seed: seed of the draws.
        longest: maximal number of words of a text.

    Returns:
        Rows with the fields "text" and "label".
    """
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        label = int(rng.integers(2))
        words = list(rng.choice(FILLER, rng.integers(0, longest)))
        key = str(rng.choice(GOOD if label else BAD))
        words.insert(int(rng.integers(len(words) + 1)), key)
        out.append({"text": " ".join(words), "label": LABELS[label]})
    return out


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as JSONL and returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_data(
    folder: Path, train: int = 64, evaluation: int = 40, longest: int = 6
) -> Path:
    """Writes ``train.jsonl`` and ``eval.jsonl``, for `PROMPT` and `LABELS`.

    Args:
        folder: created if it does not exist.
        train: number of training examples.
        evaluation: number of evaluation examples.
        longest: maximal number of words; up to 6, all prompts pad to one length.

    Returns:
        The folder.
    """
    folder.mkdir(exist_ok=True)
    write_rows(folder / "train.jsonl", rows(train, 1, longest))
    write_rows(folder / "eval.jsonl", rows(evaluation, 2, longest))
    return folder
