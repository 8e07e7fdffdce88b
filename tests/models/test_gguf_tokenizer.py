"""The GGUF tokenizer built here, against transformers' own and on damaged files."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax.models import known, load
from ivon_jax.models.gguf_tokenizer import read_tokenizer

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
):
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_merges(merges)
    if types is None:
        writer.add_token_types([3] + [1] * (len(TOKENS) - 2) + [4])
    else:
        writer.add_uint32("tokenizer.ggml.token_type", types)
    writer.add_eos_token_id(end)
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


@pytest.mark.parametrize("change", [{"pre": "default"}, {"model": "llama"}])
def test_other_kinds_are_left_to_transformers(tmp_path, change):
    assert read_tokenizer(write(tmp_path / "t.gguf", **change)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"merges": ["a z"]}, "merges joins what"),
        ({"merges": ["abc"]}, "merges joins what"),
        ({"end": 12}, "eos_token_id is 12"),
        ({"types": 3}, "token_type is 3, expected a list"),
    ],
)
def test_incomplete_tokenizers_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        read_tokenizer(write(tmp_path / "t.gguf", **change))


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return known.fetch("smollm2-135m-instruct")


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
