"""Exchanges as token ids, and which of them are learnt."""

import json
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ivon_jax.testing.tiny import CHAT_TEMPLATE, text_tokenizer
from ivon_jax.train.data.exchanges import Exchange, Message
from ivon_jax.train.data.text_encoding import (
    encode_exchanges,
    exchange_tokens,
    prompt_tokens,
)
from ivon_jax.train.generate.prompts import stop_tokens

END = "<|im_end|>"
CHARACTERS = string.ascii_lowercase + string.digits + " \n.?#"
words = st.text(CHARACTERS, min_size=1, max_size=12)
replies = words.filter(str.strip)


def make(template: str | None = CHAT_TEMPLATE, **settings) -> PreTrainedTokenizerFast:
    """A tokenizer whose end token pads too, as in SmolLM2."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=text_tokenizer(),
        **{"eos_token": END, "pad_token": END, "unk_token": "[UNK]"} | settings,
    )
    made.chat_template = template
    return made


TOKENIZER = make()


def chat(*turns: str, first: str = "user") -> tuple[Message, ...]:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns))


def learnt_texts(exchange, learn="completion", tokenizer=TOKENIZER) -> list[str]:
    """The learnt text, a piece for each run of positions."""
    ids, learnt = exchange_tokens(tokenizer, exchange, learn)
    runs = np.split(learnt, np.flatnonzero(np.diff(learnt) != 1) + 1)
    return [tokenizer.decode(np.take(ids, run)) for run in runs]


# Text.


@given(words, replies)
def test_a_completion_and_its_end_are_learnt(prompt, completion):
    ids, learnt = exchange_tokens(TOKENIZER, Exchange(prompt, completion), "completion")
    assert ids[: len(ids) - len(learnt)] == prompt_tokens(TOKENIZER, prompt)
    assert learnt == list(range(ids.__len__() - len(learnt), len(ids)))
    assert TOKENIZER.decode(np.take(ids, learnt)) == completion + END


def test_text_is_learnt_but_for_what_nothing_precedes():
    assert learnt_texts(Exchange("", "abc")) == [f"bc{END}"]
    started = make(bos_token="<|im_start|>")
    add_bos(started)
    assert learnt_texts(Exchange("", "abc"), tokenizer=started) == [f"abc{END}"]
    assert learnt_texts(Exchange("", "<|im_start|>abc"), tokenizer=started) == [
        f"abc{END}"
    ]


def test_all_of_an_exchange_is_learnt():
    assert learnt_texts(Exchange("ab", "cd"), "all") == [f"bcd{END}"]


def test_an_end_token_is_not_written_twice():
    assert learnt_texts(Exchange("ab", f"cd{END}")) == [f"cd{END}"]


def add_bos(tokenizer) -> None:
    from tokenizers.processors import TemplateProcessing

    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )


def test_a_start_token_is_there_once():
    started = make(bos_token="<|im_start|>")
    add_bos(started)
    start = started.bos_token_id
    for prompt in ("ab", "<|im_start|>ab"):
        ids, _ = exchange_tokens(started, Exchange(prompt, "c"), "completion")
        assert ids.count(start) == 1
        assert ids[0] == start


def test_a_tokenizer_that_puts_a_blank_before_every_text():
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {w: i for i, w in enumerate(["</s>", "[UNK]", "▁a", "▁b", "b", "a"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    llama2 = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    ids, learnt = exchange_tokens(llama2, Exchange("a", " b"), "completion")
    assert llama2.convert_ids_to_tokens(ids) == ["▁a", "▁b", "</s>"]
    assert learnt == [1, 2]
    with pytest.raises(ValueError, match="tokens of the prompt 'a' are not those"):
        exchange_tokens(llama2, Exchange("a", "b"), "completion")


# Chats.


TALK = chat("hi", "yes", "why?", "no")


@pytest.mark.parametrize(
    ("learn", "wanted"),
    [
        ("completion", [f"yes{END}", f"no{END}"]),
        ("assistant", [f"yes{END}", f"no{END}"]),
        ("last", [f"no{END}"]),
    ],
)
def test_what_is_learnt_of_messages(learn, wanted):
    assert learnt_texts(Exchange((), TALK), learn) == wanted


@pytest.mark.parametrize(
    ("learn", "wanted"),
    [
        ("completion", [f"no{END}"]),
        ("assistant", [f"yes{END}", f"no{END}"]),
        ("last", [f"no{END}"]),
    ],
)
def test_what_is_learnt_of_a_completion_of_messages(learn, wanted):
    assert learnt_texts(Exchange(TALK[:2], TALK[2:]), learn) == wanted


def test_all_of_a_chat_is_learnt():
    (text,) = learnt_texts(Exchange((), TALK), "all")
    assert "<|im_start|>" + text == TOKENIZER.apply_chat_template(
        [m._asdict() for m in TALK], tokenize=False
    )


# The template of the model with the tags that transformers reads masks from.
TAGGED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    # A line break after a tag is removed, but not a written one.
    "{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@given(st.lists(replies, min_size=2, max_size=6))
def test_masks_are_those_of_generation_tags(turns):
    # Jinja's environment removes a line break after a tag, hence the written one above.
    tagged, messages = make(TAGGED), chat(*turns)
    wanted = tagged.apply_chat_template(
        [message._asdict() for message in messages],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    for tokenizer in (tagged, TOKENIZER):
        ids, learnt = exchange_tokens(tokenizer, Exchange((), messages), "assistant")
        assert ids == wanted["input_ids"]
        assert learnt == np.flatnonzero(wanted["assistant_masks"]).tolist()


@given(st.lists(replies, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2))
def test_a_prompt_has_the_tokens_that_its_reply_followed(turns):
    prompt = chat(*turns)
    ids, learnt = exchange_tokens(
        TOKENIZER, Exchange(prompt, chat("a", first="assistant")), "completion"
    )
    assert ids[: learnt[0]] == prompt_tokens(TOKENIZER, prompt)
    assert TOKENIZER.decode(ids[: learnt[0]]).endswith("<|im_start|>assistant\n")


# What goes wrong for users: they learn too much, or no end. Here they do not.

LOOP = "{% for m in messages %}"
THOUGHT = CHAT_TEMPLATE.replace("assistant\n", "assistant\n--\n").replace(
    "{{ message.content }}",
    "{% if message.role == 'assistant' %}--\n{% endif %}{{ message.content }}",
)
TROUBLES = {
    "the end token also pads": make(),
    "a turn ends otherwise than a text": make(eos_token="#"),
    "a turn is opened with an empty thought": make(THOUGHT),
    "the template writes a blank after a turn": make(
        CHAT_TEMPLATE.replace("<|im_end|>\n{%", "<|im_end|>\n {%")
    ),
    "the template ends in its last turn": make(
        CHAT_TEMPLATE.replace("<|im_end|>\n{%", "<|im_end|>{%")
    ),
}


@pytest.mark.parametrize("tokenizer", TROUBLES.values(), ids=TROUBLES)
def test_a_reply_and_its_end_alone_are_learnt(tokenizer):
    for learn in ("assistant", "completion"):
        found = learnt_texts(Exchange((), TALK), learn, tokenizer)
        assert found == [f"yes{END}", f"no{END}"]
    # And what is learnt last ends an answer.
    ends = stop_tokens(tokenizer)
    for exchange in (Exchange((), TALK), Exchange("a", "b")):
        ids, learnt = exchange_tokens(tokenizer, exchange, "completion")
        assert ids[learnt[-1]] in ends


# What goes wrong for users: each is one line.

BAD_CHATS = {
    "no template": (None, TALK, "the tokenizer has no chat template"),
    "unknown role": (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}"
        "{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}",
        (Message("robot", "a"),),
        "refuses messages of the roles 'robot': only user and assistant",
    ),
    "role left out": (
        LOOP
        + "{% if m.role != 'tool' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
        (Message("tool", "five"), *TALK),
        "leaves out a message of role 'tool': 'five'",
    ),
    "broken template": ("{% for", TALK, "the chat template refuses"),
    "doubled start": (
        "<|im_start|><|im_start|>" + CHAT_TEMPLATE,
        TALK,
        "begins with '<|im_start|>' twice",
    ),
    "no end of turn": (
        LOOP + "{{ m.role }} {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}",
        TALK,
        "message 2: .* without a special token",
    ),
    "earlier turns written otherwise": (
        LOOP
        + "<|im_start|>{{ m.role }}{{ messages | length }}{{ m.content }}<|im_end|>"
        "{% endfor %}",
        TALK,
        "message 2: the chat template writes the turns before it otherwise",
    ),
    "only questions": (CHAT_TEMPLATE, TALK[:1], "no token to learn"),
}


@pytest.mark.parametrize(
    ("template", "messages", "message"), BAD_CHATS.values(), ids=BAD_CHATS
)
def test_bad_chats(template, messages, message):
    tokenizer = make(template, bos_token="<|im_start|>")
    with pytest.raises(ValueError, match=f"^example 2: .*{message}") as caught:
        good = Exchange("a", "b")
        encode_exchanges(tokenizer, [good, Exchange((), messages)], "assistant")
    assert "\n" not in str(caught.value)


def test_a_prompt_whose_tokens_change_within_the_chat():
    """A merge across the border of the turns."""
    from tokenizers import Tokenizer, models

    letters = ["a", "b", "\n", "E"]
    vocabulary = {w: i for i, w in enumerate([*letters, "\nb"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocabulary, [("\n", "b")])), eos_token="E"
    )
    tokenizer.chat_template = (
        LOOP
        + "a\n{{ m.content }}E{% endfor %}{% if add_generation_prompt %}a\n{% endif %}"
    )
    with pytest.raises(ValueError, match="message 2: .* try --learn last"):
        exchange_tokens(tokenizer, Exchange((), chat("a", "b")), "assistant")


def test_a_tokenizer_without_an_end_token():
    tokenizer = make(eos_token=None)
    with pytest.raises(ValueError, match="no end token"):
        encode_exchanges(tokenizer, [Exchange("a", "b")])


# Batches of examples.


EXCHANGES = [Exchange("a", "bc"), Exchange("abc", "d" * 9), Exchange("", "ab")]


def test_labels_are_the_learnt_tokens_with_their_example():
    encoded = encode_exchanges(TOKENIZER, EXCHANGES)
    assert encoded.answers.tolist() == [3, 10, 2]
    wanted = [
        (ids[at], i)
        for i, (ids, learnt) in enumerate(
            zip(encoded.tokens, encoded.learnt, strict=True)
        )
        for at in learnt
    ]
    assert encoded.labels.tolist() == [list(pair) for pair in wanted]
    assert encoded.places(np.array([2, 0])).tolist() == [13, 14, 0, 1, 2]


def test_long_examples_are_an_error_or_left_out():
    with pytest.raises(ValueError, match="1 of 3 .* limit of 12 .* example 2, has 13"):
        encode_exchanges(TOKENIZER, EXCHANGES, max_length=12)
    encoded = encode_exchanges(TOKENIZER, EXCHANGES, max_length=12, drop_long=True)
    assert encoded.answers.tolist() == [3, 2]
    assert encoded.labels[:, 1].tolist() == [0, 0, 0, 1, 1]
    with pytest.raises(ValueError, match="3 of 3"):
        encode_exchanges(TOKENIZER, EXCHANGES, max_length=1, drop_long=True)


def test_exchanges_are_json():
    exchange = Exchange(TALK[:1], TALK[1:])
    assert json.loads(json.dumps(exchange.parts))[0] == [["user", "hi"]]
