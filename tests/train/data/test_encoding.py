"""Answer words, tokens, and what prompts share."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ivon_jax.models.cache import fetch
from ivon_jax.models.gguf_tokenizer import read_tokenizer
from ivon_jax.train.data.answers import answer_tokens, fitting_space
from ivon_jax.train.data.encoding import Encoded, common_prefix_length, encode
from ivon_jax.train.data.task import Example
from ivon_jax.train.pod.processes import divide
from ivon_jax.train.tasks.registry import TASKS, get_task


class FakeTokenizer:
    """Known pieces are one token, everything else one token a character."""

    bos = 1
    unk_token_id = None

    def __init__(self, *pieces: str):
        self.ids = {piece: 1000 + i for i, piece in enumerate(pieces)}

    def pieces(self, text: str) -> list[str]:
        return re.findall("|".join([*map(re.escape, self.ids), "."]), text, re.DOTALL)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        ids = [self.ids.get(p, ord(p[0])) for p in self.pieces(text)]
        return [self.bos, *ids] if add_special_tokens else ids

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        named = {i: piece for piece, i in self.ids.items()}
        return [named.get(i, chr(i)) for i in ids]

    def __call__(
        self,
        texts: list[str],
        add_special_tokens: bool,
        padding: bool,
        truncation: bool,
    ) -> dict:
        assert not padding and not truncation
        return {"input_ids": [self.encode(text, add_special_tokens) for text in texts]}


# Answer words.


def test_answer_tokens_in_class_order():
    tokenizer = FakeTokenizer(" yes", " no", "yes")
    np.testing.assert_array_equal(
        answer_tokens(tokenizer, ("no", "yes"), True), [1001, 1000]
    )


@pytest.mark.parametrize(
    ("pieces", "words", "leading_space", "message"),
    [
        (
            (" no", " y", "es"),
            ("no", "yes"),
            True,
            r"' yes' is 2 tokens.*' y', 'es'\]$",
        ),
        (
            ("no", "yes"),
            ("no", "yes"),
            True,
            r"' no' is 2 .* without a leading space \(no\)$",
        ),
        ((" no", " yes"), ("no", "yes"), False, r"'no' is 2 .* with one \(yes\)$"),
        (("no", "yes"), ("yes", "yes"), False, r"'yes' is the same token as 'yes'"),
        (("no",), ("no", ""), False, r"'' is 0 tokens"),
        # The colon before the word is part of its token, and so is the line's end.
        ((":no", "\nno", "yes"), ("no", "yes"), False, r"'no' is 0 tokens"),
    ],
)
def test_answer_words_that_are_not_single_tokens(pieces, words, leading_space, message):
    with pytest.raises(ValueError, match=message):
        answer_tokens(FakeTokenizer(*pieces), words, leading_space)


@pytest.mark.parametrize(
    ("pieces", "words", "with_blank", "without"),
    [
        ((" no", " yes", "no", "yes"), ("no", "yes"), True, False),
        ((" no", " yes"), ("no", "yes"), True, True),
        (("no", "yes"), ("no", "yes"), False, False),
        ((" no", "yes"), ("no", "yes"), True, False),  # neither will do
        ((), ("好", "坏"), False, False),
    ],
)
def test_the_blank_that_the_tokenizer_allows(pieces, words, with_blank, without):
    tokenizer = FakeTokenizer(*pieces)
    assert fitting_space(tokenizer, words, True) is with_blank
    assert fitting_space(tokenizer, words, False) is without


def test_a_word_that_joins_the_colon_before_it():
    tokenizer = FakeTokenizer(":A", "A", ":B")
    assert answer_tokens(tokenizer, ("A", "B"), False).tolist() == [1001, ord("B")]
    # ":no" begins with another token than ":" does: "o" is not what answers.
    tokenizer = FakeTokenizer(":n", "no", "yes")
    assert answer_tokens(tokenizer, ("no", "yes"), False).tolist() == [1001, 1002]


UNKNOWING = {
    "WordLevel": lambda ids: models.WordLevel(ids, unk_token="[UNK]"),
    "WordPiece": lambda ids: models.WordPiece(ids, unk_token="[UNK]"),
    "BPE": lambda ids: models.BPE(ids, [("▁", "A"), ("▁", "B")], unk_token="[UNK]"),
    "Unigram": lambda ids: models.Unigram([(word, -1.0) for word in ids], unk_id=0),
}


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("kind", UNKNOWING)
def test_answer_words_that_the_tokenizer_does_not_know(kind, told):
    """Whether or not the settings beside the tokenizer's file name the token."""
    words = ["[UNK]", ":", "▁", "A", "B", "▁A", "▁B"]
    model = UNKNOWING[kind]({word: i for i, word in enumerate(words)})
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    named = {"unk_token": "[UNK]"} if told else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    assert answer_tokens(tokenizer, ("A", "B"), True).tolist() == [5, 6]
    for unknown in (("A", "好"), ("好", "坏")):
        message = r"' 好' is unknown to this tokenizer: \[.*'\[UNK\]'\]$"
        with pytest.raises(ValueError, match=message):
            answer_tokens(tokenizer, unknown, True)


@pytest.mark.parametrize("form", ["normalizer", "pre_tokenizer"])
def test_answers_of_tokenizers_that_begin_a_text_with_a_blank(form):
    """As those of Llama 2 and Mistral: in " A" they see two blanks."""
    pieces = ["<unk>", "▁", "▁A", "▁B", ":", "▁:", "A", "B", "▁▁"]
    merges = [("▁", "A"), ("▁", "B"), ("▁", ":"), ("▁", "▁")]
    model = models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>")
    tokenizer = Tokenizer(model)
    if form == "normalizer":
        blanks = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(blanks)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    for leading_space, wanted in ((True, ["▁A", "▁B"]), (False, ["A", "B"])):
        ids = answer_tokens(tokenizer, ("A", "B"), leading_space)
        assert tokenizer.convert_ids_to_tokens(ids) == wanted
        space = " " if leading_space else ""
        prompt, whole = (tokenizer.encode(f"A:{x}") for x in ("", f"{space}A"))
        assert whole == [*prompt, ids[0]]


@pytest.fixture(scope="module")
def smollm2():
    return read_tokenizer(fetch("smollm2-135m-instruct"))


@pytest.mark.parametrize("name", TASKS)
def test_every_task_has_single_tokens_on_smollm2(name, smollm2):
    task = get_task(name)
    ids = answer_tokens(smollm2, task.label_words, task.leading_space)
    assert [smollm2.decode([i]) for i in ids] == [
        f" {word}" for word in task.label_words
    ]


@pytest.mark.filterwarnings("default")
def test_smollm2_letters_with_and_without_space(smollm2):
    assert answer_tokens(smollm2, ("A",), False).tolist() == [49]
    assert answer_tokens(smollm2, ("A",), True).tolist() == [330]
    with pytest.raises(
        ValueError, match=r"'unacceptable' is 2 tokens.*with one \(yes\)"
    ):
        answer_tokens(smollm2, ("unacceptable", "acceptable"), False)


@pytest.mark.filterwarnings("default")
def test_smollm2_encodes_without_padding_or_cutting(smollm2):
    prompts = ["The capital of France is", "word " * 3000]
    result = encode(smollm2, [Example(p, 0) for p in prompts])
    for prompt, ids in zip(prompts, result.tokens, strict=True):
        assert smollm2.decode(ids) == prompt


# Encoding.


def test_encode_keeps_the_default_special_tokens():
    result = encode(FakeTokenizer(), [Example("ab", 1), Example("c", 0)])
    assert [ids.tolist() for ids in result.tokens] == [[1, 97, 98], [1, 99]]
    assert result.labels.tolist() == [1, 0]
    assert result.lengths.tolist() == [3, 2]
    assert {ids.dtype for ids in result.tokens} == {np.dtype(np.int32)}


BOS, EOS, SEP = 0, 1, 2
SPECIAL = {  # a post-processor's template: what is read of "a b"
    "$A": [],
    "<s> $A": [BOS],
    "$A </s>": [],
    "<s> $A </s>": [BOS],
    "<s> <sep> $A <sep> </s>": [BOS, SEP],
}


@pytest.mark.parametrize("template", SPECIAL)
def test_a_prompt_ends_with_its_own_last_token(template):
    """And begins with what the tokenizer adds, once if the prompt has it too."""
    names, before = ("<s>", "</s>", "<sep>"), SPECIAL[template]
    words = {word: i for i, word in enumerate((*names, "a", "b"))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.add_special_tokens(list(names))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [(name, words[name]) for name in names]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=special
    )
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    written = "".join(names[i] for i in before)
    prompts = {
        "a b": [*before, 3, 4],
        f"{written}a b": [*before, 3, 4],
        f"{written}{written}a": [*before, *before, 3] if before else [3],
        "a </s>": [*before, 3, EOS],  # the prompt's own
        "<sep> a": [*before, SEP, 3],
    }
    examples = [Example(prompt, 0) for prompt in prompts]
    found = [ids.tolist() for ids in encode(tokenizer, examples).tokens]
    assert found == list(prompts.values())


def test_a_tokenizer_without_a_colon():
    tokenizer = Tokenizer(models.BPE({"A": 0, "C": 1, "</s>": 2}, []))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    examples = [Example(prompt, 0) for prompt in ("::", "AC")]
    with pytest.raises(ValueError, match="example 1 has no tokens"):
        encode(tokenizer, examples)
    (ids,) = encode(tokenizer, examples[1:]).tokens
    assert ids.tolist() == [0, 1]


def test_long_prompts_are_refused_and_not_cut():
    examples = [Example("x" * n, 0) for n in (3, 9, 7)]
    assert len(encode(FakeTokenizer(), examples, max_length=10)) == 3
    message = "^2 of 3 prompts .* limit of 7 tokens; the longest, example 2, has 10:"
    with pytest.raises(ValueError, match=message):
        encode(FakeTokenizer(), examples, max_length=7)


def test_nothing_to_encode():
    with pytest.raises(ValueError, match="no examples"):
        encode(FakeTokenizer(), [])
    bare = FakeTokenizer()
    bare.encode = lambda text, add_special_tokens: []
    with pytest.raises(ValueError, match="example 1 has no tokens"):
        encode(bare, [Example("", 0)])


# Shared prefix.


@pytest.mark.parametrize(
    ("prompts", "length"),
    [
        (["abcd", "abxy", "abcz"], 2),
        (["abc", "abcd"], 2),  # the shorter one keeps a token
        (["abc"], 2),
        (["a", "b"], 0),
        (["abc", "abc"], 2),
    ],
)
def test_common_prefix(prompts, length):
    tokens = tuple(
        np.frombuffer(p.encode(), np.uint8).astype(np.int32) for p in prompts
    )
    data = Encoded(tokens, np.zeros(len(prompts), np.int32))
    assert common_prefix_length(data) == length


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=6), min_size=1))
def test_common_prefix_is_shared_and_longest(prompts):
    tokens = tuple(np.array(p, np.int32) for p in prompts)
    length = common_prefix_length(Encoded(tokens, np.zeros(len(prompts), np.int32)))
    assert len({tuple(p[:length]) for p in prompts}) == 1
    ends = length == min(map(len, prompts)) - 1
    assert ends or len({tuple(p[: length + 1]) for p in prompts}) > 1


def test_texts_are_tokenised_in_parts():
    """Lists of all tokens would take ten times the memory of the arrays."""
    asked = []

    def work(items):
        asked.append(len(items))
        return [[item, item + 1] for item in items]

    found = divide(work, range(5000))
    np.testing.assert_array_equal(found, [[i, i + 1] for i in range(5000)])
    assert max(asked) <= 1024
    assert divide(work, []) == []
