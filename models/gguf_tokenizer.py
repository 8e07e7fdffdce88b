"""The tokenizer inside a GGUF file, without torch.

transformers can read one too, but only where torch is installed. Byte-level BPE, which
SmolLM2 has, is therefore put together here from the `tokenizers` library's parts.
"""

from pathlib import Path
from typing import Any

from ivon_jax.models.gguf_io import read_fields

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4  # kinds of tokens that are never cut into pieces
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
# How text is cut before merging, by the file's name for it: whether digits stand alone.
_SINGLE_DIGITS = {"gpt-2": False, "smollm": True}


def read_tokenizer(path: Path) -> Any | None:
    """Build the tokenizer of a GGUF file.

    Args:
        path: The file.

    Returns:
        A fast tokenizer of transformers; `None` if it is of a kind that only
        transformers itself (with torch) can build.

    Raises:
        ValueError: If the file is damaged or its tokenizer incomplete.
        OSError: If the file cannot be opened.
    """
    fields = {
        name.removeprefix(_PREFIX): value
        for name, value in read_fields(
            path, {_PREFIX + part for part in ("tokens", "merges", "token_type")}
        ).items()
    }
    kind, cut = fields.get("model"), fields.get("pre")
    if kind != "gpt2" or cut not in _SINGLE_DIGITS or fields.get("add_bos_token"):
        return None
    from transformers import PreTrainedTokenizerFast

    tokens = _strings(fields, "tokens")
    special = {
        role: _token(tokens, name, fields[name])
        for role, name in _SPECIAL.items()
        if name in fields
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(fields, tokens, _SINGLE_DIGITS[cut]),
        chat_template=fields.get("tokenizer.chat_template"),
        **special,
    )


def _byte_level(fields: dict[str, Any], tokens: list[str], single_digits: bool) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    merges: list[Any] = [tuple(m.split(" ")) for m in _strings(fields, "merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pieces = {piece for merge in merges for piece in (*merge, "".join(merge))}
    if not pieces <= vocabulary.keys() or any(len(merge) != 2 for merge in merges):
        raise ValueError("tokenizer.ggml.merges joins what tokenizer.ggml.tokens lacks")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    parts = [pre_tokenizers.Digits(individual_digits=True)] if single_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*parts, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields.get("token_type", [])
    if not isinstance(kinds, list):
        raise ValueError(f"{_PREFIX}token_type is {kinds!r:.40}, expected a list")
    for token, kind in zip(tokens, kinds, strict=False):
        if kind in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, special=kind == _CONTROL, normalized=False)
            tokenizer.add_tokens([added])
    return tokenizer


def _strings(fields: dict[str, Any], name: str) -> list[str]:
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError(f"{_PREFIX}{name} is no list of texts")
    return value


def _token(tokens: list[str], name: str, index: Any) -> str:
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise ValueError(f"{_PREFIX}{name} is {index!r:.40}, expected a token's number")
    return tokens[index]
