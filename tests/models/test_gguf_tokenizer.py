"""The GGUF tokenizer built here, against transformers' own and on damaged files."""

import unicodedata
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ivon_jax.models import cache, load
from ivon_jax.models.gguf_tokenizer import CUTS, read_tokenizer

TOKENS = ["<|end|>", "a", "b", "c", "1", "2", "Ġ", "ab", "Ġa", "abc", "12", "<user>"]
MERGES = ["a b", "Ġ a", "ab c", "1 2"]


def write(
    path: Path,
    *,
    tokens=TOKENS,
    merges=MERGES,
    pre="gpt-2",
    end=0,
    model="gpt2",
    types=None,
    flags=(),
):
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    if types is None:
        writer.add_token_types([3] + [1] * (len(tokens) - 2) + [4])
    else:
        writer.add_uint32("tokenizer.ggml.token_type", types)
    writer.add_eos_token_id(end)
    for name, value in dict(flags).items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def tokens_of(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])


def test_merges_and_uncut_tokens(tmp_path):
    tokenizer = read_tokenizer(write(tmp_path / "t.gguf"))
    assert tokens_of(tokenizer, "abc a") == ["abc", "Ġa"]
    assert tokens_of(tokenizer, "ab<|end|>ab<user>") == [
        "ab",
        "<|end|>",
        "ab",
        "<user>",
    ]
    assert tokenizer.eos_token == "<|end|>" and tokenizer.all_special_ids == [0]


@pytest.mark.parametrize(("pre", "pieces"), [("gpt-2", ["12"]), ("smollm", ["1", "2"])])
def test_smollm_cuts_numbers_into_digits(tmp_path, pre, pieces):
    tokenizer = read_tokenizer(write(tmp_path / "t.gguf", pre=pre))
    assert tokens_of(tokenizer, "12") == pieces


# What llama.cpp does in a file that says nothing: whether BOS comes first, and whether
# a piece that is a token is taken whole.
DEFAULTS = {
    "llama-bpe": (True, True),
    "llama3": (True, True),
    "llama-v3": (True, True),
    "falcon3": (True, True),
    "pixtral": (True, True),
    "midm-2.0": (True, True),
    "tekken": (True, True),
    "smaug-bpe": (False, False),
    "qwen2": (False, False),
    "deepseek-r1-qwen": (False, False),
    "gpt-2": (False, False),
    "mellum": (False, False),
    "a.x-4.0": (False, False),
    "smollm": (False, False),
    "starcoder": (False, False),
    "refact": (False, False),
    "minerva-7b": (False, False),
}


@pytest.mark.parametrize("add_eos", [None, False, True])
@pytest.mark.parametrize("add_bos", [None, False, True])
@pytest.mark.parametrize("pre", CUTS)
def test_a_file_gives_the_tokens_of_llama_cpp(pre, add_bos, add_eos, tmp_path):
    tokens = [*TOKENS[:-1], "<s>", "cab", TOKENS[-1]]  # no merge makes "cab"
    flags = {"bos_token_id": tokens.index("<s>")}
    flags |= {} if add_bos is None else {"add_bos_token": add_bos}
    flags |= {} if add_eos is None else {"add_eos_token": add_eos}
    path = write(tmp_path / "t.gguf", tokens=tokens, pre=pre, flags=flags)
    bos, whole = DEFAULTS[pre]
    first = ["<s>"] if (bos if add_bos is None else add_bos) else []
    middle = ["cab"] if whole else ["c", "ab"]
    last = ["<|end|>"] if add_eos else []
    read = read_tokenizer(path)
    assert tokens_of(read, "cab") == [*first, *middle, *last]
    assert read("cab", add_special_tokens=False)["input_ids"] == [
        tokens.index(token) for token in middle
    ]
    read.save_pretrained(tmp_path / "folder")  # as an export does
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert again("cab")["input_ids"] == read("cab")["input_ids"]


def every_byte():
    """The 256 tokens of byte-level BPE, and a few of more bytes with their merges."""
    letters = list(bytes_to_unicode().values())
    merges = ["1 2", "12 3", "Ġ a", "a b", "A b", "Ġ !", "! Ċ", "! /", "' S", "Ċ Ċ"]
    merges += ["Ġ Ġ", "Ã ©", "e Ì", "eÌ ģ", "s '", "c a", "ca b"]
    return [*letters, *("".join(merge.split(" ")) for merge in merges)], merges


ANY = st.characters(exclude_categories=("Cs",))
# Of those with a pattern: whether text is composed.
WITH_PATTERN = {"llama-bpe": False, "smaug-bpe": False, "tekken": False}
WITH_PATTERN |= {"qwen2": True, "deepseek-r1-qwen": False}


@pytest.mark.parametrize("pre", WITH_PATTERN)
def test_text_is_cut_as_in_the_models_folder(pre, tmp_path):
    """Against the `tokenizers` library with the pattern that transformers has."""
    splits = pytest.importorskip(
        "transformers.integrations.gguf.gguf_tokenizer_mapping",
        reason="transformers has its patterns elsewhere",
    ).GGUF_PRE_TOKENIZER_SPLITS
    tokens, merges = every_byte()
    ours = read_tokenizer(
        write(
            tmp_path / "t.gguf",
            tokens=[*tokens, "<s>", "<user>"],
            merges=merges,
            pre=pre,
            end=len(tokens),
            flags={"bos_token_id": len(tokens), "add_bos_token": False},
        )
    )
    pairs = [tuple(merge.split(" ")) for merge in merges]
    theirs = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {token: i for i, token in enumerate(tokens)},
            pairs,
            ignore_merges=DEFAULTS[pre][1],
        )
    )
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(splits[pre]), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    apart, composed = ours("e\u0301")["input_ids"], ours("\u00e9")["input_ids"]
    assert (apart == composed) == WITH_PATTERN[pre]

    @given(st.text(st.sampled_from("ab AB12'sS!/\n\r é中²\u0301") | ANY))
    @settings(max_examples=200, deadline=None)
    def check(text):
        if WITH_PATTERN[pre]:
            wanted = theirs.encode(unicodedata.normalize("NFC", text)).ids
        else:
            wanted = theirs.encode(text).ids
        assert ours(text)["input_ids"] == wanted

    check()


# Of sentencepiece's tokenizers llama.cpp's default is BOS and a blank before the text.
PIECES = [
    ({}, ["<s>", "▁ab", "▁a"]),
    ({"add_bos_token": False}, ["▁ab", "▁a"]),
    ({"add_eos_token": True}, ["<s>", "▁ab", "▁a", "</s>"]),
    ({"add_space_prefix": True}, ["<s>", "▁ab", "▁a"]),
    ({"add_space_prefix": False}, ["<s>", "ab", "▁a"]),
]


@pytest.mark.filterwarnings("default")  # of transformers' GGUF reader
@pytest.mark.parametrize(("flags", "wanted"), PIECES)
def test_sentencepiece_as_llama_cpp_has_it(flags, wanted, tmp_path):
    pytest.importorskip("torch")
    from gguf import GGUFWriter

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words = ["▁", "a", "b", "▁a", "ab", "▁ab"]
    writer = GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*pieces, *words])
    writer.add_token_scores(
        [0.0] * len(pieces) + [-10.0, -11.0, -12.0, -1.0, -2.0, -3.0]
    )
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(words))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert tokens_of(read_tokenizer(tmp_path / "t.gguf"), "ab a") == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merges": ["a z"]}, "merges has tokens that"),
        ({"merges": ["abc"]}, "merges has tokens that"),
        ({"end": 12}, "eos_token_id is 12"),
        ({"types": 3}, "token_type is 3, expected a list"),
        ({"pre": "default"}, "ggml.pre is 'default', expected one of gpt-2, "),
        ({"pre": None}, "ggml.pre is None, expected one of gpt-2, "),
        ({"model": "bert"}, "ggml.model is 'bert', expected 'gpt2' or 'llama'"),
        (
            {"pre": "llama-bpe"},
            "bos_token_id is missing, and add_bos_token is True, as",
        ),
        ({"flags": {"add_bos_token": True}}, "missing, and add_bos_token is True$"),
        ({"flags": {"add_bos_token": 1}}, "add_bos_token is 1, expected true or false"),
        ({"flags": {"add_sep_token": True}}, "add_sep_token is True, which is not"),
    ],
)
def test_incomplete_tokenizers_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_tokenizer(write(tmp_path / "t.gguf", **change))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return cache.fetch("smollm2-135m-instruct")


def test_the_real_model_needs_nothing_of_transformers_gguf(smollm2, monkeypatch):
    from transformers import AutoTokenizer

    # Its reader imports torch, which is no dependency.
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", None)
    assert load(str(smollm2)).tokenizer("Paris")["input_ids"]


@pytest.mark.filterwarnings("default")  # of transformers' GGUF reader
def test_equals_transformers_on_the_real_model(smollm2):
    pytest.importorskip("torch")
    from transformers import AutoTokenizer

    ours = read_tokenizer(smollm2)
    theirs = AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template

    # Its reader leaves numbers in one piece, which SmolLM2 and llama.cpp do not.
    @given(st.text(st.characters(exclude_categories=("Cs", "Nd", "Nl", "No"))))
    @settings(max_examples=300, deadline=None)
    def check(text):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]

    check()
