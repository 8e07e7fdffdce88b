"""The tokenizer of a GGUF file, with the token ids of llama.cpp and of HF's folder.

Byte-level BPE is built here from the parts of `tokenizers`: a file names llama.cpp's
pre-tokenizer only, which also decides whether BOS comes first. Files of sentencepiece
are read by transformers.
"""

import dataclasses
from pathlib import Path
from typing import Any

from ivon_jax.errors import one_line
from ivon_jax.models.gguf_io import read_fields

_PREFIX = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4  # types of tokens that are never split
_SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


@dataclasses.dataclass(frozen=True)
class _Cut:
    """A pre-tokenizer of llama.cpp.

    Attributes:
        pattern: regex of a piece; GPT-2's if empty.
        single_digits: whether digits are split first, each a piece.
        bos: whether BOS comes first if the file does not say.
        whole: whether a piece in the vocabulary is one token, without merging.
        nfc: whether text is normalised to NFC first, which llama.cpp omits.
    """

    pattern: str = ""
    single_digits: bool = False
    bos: bool = False
    whole: bool = False
    nfc: bool = False


# From the models' tokenizer.json files.
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LLAMA_3 = _WORDS + r"|\p{N}{1,3}" + _SIGNS + _SPACES
_QWEN_2 = _WORDS + r"|\p{N}" + _SIGNS + _SPACES
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
)
CUTS = {
    **dict.fromkeys(("gpt-2", "mellum", "a.x-4.0"), _Cut()),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "minerva-7b"), _Cut(single_digits=True)
    ),
    **dict.fromkeys(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"),
        _Cut(_LLAMA_3, bos=True, whole=True),
    ),
    "smaug-bpe": _Cut(_LLAMA_3),
    "tekken": _Cut(_TEKKEN, bos=True, whole=True),
    "qwen2": _Cut(_QWEN_2, nfc=True),
    "deepseek-r1-qwen": _Cut(_QWEN_2),
}


def read_tokenizer(path: Path) -> Any:
    """Builds the tokenizer of a GGUF file: a fast tokenizer of transformers.

    Raises:
        ValueError: the file is damaged, or its tokenizer incomplete or not implemented.
        OSError: the file cannot be opened.
    """
    arrays = {_PREFIX + part for part in ("tokens", "merges", "token_type")}
    fields = {
        name.removeprefix(_PREFIX): value
        for name, value in read_fields(path, arrays).items()
    }
    model, name = fields.get("model"), fields.get("pre")
    if model == "llama":
        return _sentencepiece(path, fields)
    if model != "gpt2":
        raise ValueError(f"{_PREFIX}model is {model!r:.80}, expected 'gpt2' or 'llama'")
    if not isinstance(name, str) or name not in CUTS:
        raise ValueError(
            f"{_PREFIX}pre is {name!r:.80}, expected one of {', '.join(CUTS)}; others"
            " are not implemented"
        )
    from transformers import PreTrainedTokenizerFast

    tokens, cut = _strings(fields, "tokens"), CUTS[name]
    special = {
        role: _token(tokens, name, fields[name])
        for role, name in _SPECIAL.items()
        if name in fields
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(fields, tokens, cut),
        chat_template=fields.get("tokenizer.chat_template"),
        **special,
        **_ends(fields, cut.bos),
    )


def _sentencepiece(path: Path, fields: dict[str, Any]) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    ends = _ends(fields, True)
    spaced = _flag(fields, "add_space_prefix", True)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # transformers may raise anything
        raise ValueError(one_line(error)) from error
    for name, value in ends.items():
        setattr(tokenizer, name, value)
    if not spaced:
        cut = tokenizer.backend_tokenizer.pre_tokenizer
        if not isinstance(cut, pre_tokenizers.Metaspace):
            raise ValueError(
                f"{_PREFIX}add_space_prefix is False, which is not implemented for"
                f" {type(cut).__name__}"
            )
        cut.prepend_scheme = "never"
    return tokenizer


def _ends(fields: dict[str, Any], bos: bool) -> dict[str, bool]:
    """Returns whether BOS comes first and EOS last, given the default for BOS."""
    if _flag(fields, "add_sep_token", False):
        raise ValueError(f"{_PREFIX}add_sep_token is True, which is not implemented")
    ends = {
        "add_bos_token": _flag(fields, "add_bos_token", bos),
        "add_eos_token": _flag(fields, "add_eos_token", False),
    }
    for name, value in ends.items():
        field = name.removeprefix("add_") + "_id"
        if value and field not in fields:
            said = "" if name in fields else ", as in llama.cpp where it is absent"
            raise ValueError(f"{_PREFIX}{field} is missing, and {name} is True{said}")
    return ends


def _flag(fields: dict[str, Any], name: str, default: bool) -> bool:
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{_PREFIX}{name} is {value!r:.40}, expected true or false")
    return value


def _byte_level(fields: dict[str, Any], tokens: list[str], cut: _Cut) -> Any:
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
    )

    merges: list[Any] = [tuple(m.split(" ")) for m in _strings(fields, "merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pieces = {piece for merge in merges for piece in (*merge, "".join(merge))}
    if not pieces <= vocabulary.keys() or any(len(merge) != 2 for merge in merges):
        raise ValueError(
            "tokenizer.ggml.merges has tokens that tokenizer.ggml.tokens lacks"
        )
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=cut.whole))
    parts: list[Any] = []
    if cut.single_digits:
        parts.append(pre_tokenizers.Digits(individual_digits=True))
    if cut.pattern:
        parts.append(pre_tokenizers.Split(Regex(cut.pattern), behavior="isolated"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *parts,
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cut.pattern),
        ]
    )
    if cut.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    types = fields.get("token_type", [])
    if not isinstance(types, list):
        raise ValueError(f"{_PREFIX}token_type is {types!r:.40}, expected a list")
    for token, token_type in zip(tokens, types, strict=False):
        if token_type in (_CONTROL, _USER_DEFINED):
            special = token_type == _CONTROL
            added = AddedToken(token, special=special, normalized=False)
            tokenizer.add_tokens([added])
    return tokenizer


def _strings(fields: dict[str, Any], name: str) -> list[str]:
    value = fields.get(name)
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError(f"{_PREFIX}{name} is not a list of strings")
    return value


def _token(tokens: list[str], name: str, index: Any) -> str:
    if not isinstance(index, int) or not 0 <= index < len(tokens):
        raise ValueError(f"{_PREFIX}{name} is {index!r:.40}, expected a token id")
    return tokens[index]
