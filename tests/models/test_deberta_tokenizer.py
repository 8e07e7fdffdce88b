"""DeBERTa's tokenizer against sentencepiece itself, whose file it is read from."""

import json

import pytest
import sentencepiece
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax.models.deberta_tokenizer import read_tokenizer

TEXTS = [row["text"] for row in tiny.rows(40, seed=0)]
TEXTS += ["Find 1/2 of it, or 2.", "a hello to all TM", "where is a red word?"]
# What NFKC changes, blanks of every kind, and what no piece has.
ODD = ("½", "ﬁ", "…", "\uff28", "™", "²", "e\u0301", "é", "中", "😀", "[", "\u200b")
UNITS = (*"adeorw 12.,", "  ", "red", " big", "\t", "\n", "\u00a0", "\u3000", *ODD)
KINDS = {
    "as deberta-v3": {"byte_fallback": True},
    "as deberta-v2": {},
    "text as it is": {"normalization_rule_name": "identity"},
}


def write(folder, **options):
    """What the hub's folder has, but for the weights."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    tiny.write_sentencepiece(folder, TEXTS, vocab_size=400, **options)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """Our tokenizer and sentencepiece's, of one file."""
    folder = write(tmp_path_factory.mktemp("spm"), **KINDS[request.param])
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    return read_tokenizer(folder), model


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# Unique, since "aaa" is as probable as "aa" and "a" as it is as "a" and "aa".
@given(st.lists(st.sampled_from(UNITS), max_size=12, unique=True).map("".join))
@settings(max_examples=50, deadline=None)
def test_ids_are_those_of_sentencepiece(both, text):
    ours, theirs = both
    assert ids(ours, text) == theirs.encode(text)


def test_special_tokens_are_those_of_deberta(both):
    ours, theirs = both
    pair = ours("red", "big one")
    first, second = theirs.encode("red"), theirs.encode("big one")
    assert pair["input_ids"] == [1, *first, 2, *second, 2]
    assert pair["token_type_ids"] == [0] * (len(first) + 2) + [1] * (len(second) + 1)
    named = (ours.pad_token_id, ours.cls_token_id, ours.sep_token_id, ours.unk_token_id)
    assert named == (0, 1, 2, 3)
    assert ours.mask_token_id == len(theirs) == len(ours) - 1
    assert ids(ours, "red[SEP]big one") == [*first, 2, *second]


def test_a_saved_tokenizer_is_the_same(both, tmp_path):
    ours, theirs = both
    ours.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    text = " red ".join(ODD)
    again = read_tokenizer(tmp_path)
    assert ids(again, text) == ids(ours, text) == theirs.encode(text)
    assert again("red", "big") == ours("red", "big")


def test_lower_case(tmp_path):
    folder = write(tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    assert ids(read_tokenizer(folder), "RED ½") == model.encode("red ½")


def test_files_that_are_none(tmp_path):
    whole = (write(tmp_path) / "spm.model").read_bytes()
    for content in (b"", b"red", whole[:-3], whole[: len(whole) // 2]):
        (tmp_path / "spm.model").write_bytes(content)
        with pytest.raises(ValueError, match=r"^spm\.model is damaged: "):
            read_tokenizer(tmp_path)
    write(tmp_path, model_type="bpe")
    with pytest.raises(ValueError, match=r"^spm\.model has model_type BPE, expected"):
        read_tokenizer(tmp_path)
    (tmp_path / "spm.model").unlink()
    with pytest.raises(ValueError, match="tokenizer.json and spm.model are missing"):
        read_tokenizer(tmp_path)
