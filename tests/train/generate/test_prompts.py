"""Prompts are the tokens that training has seen; every end token ends an answer."""

import json

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax.train.data.exchanges import Exchange, Message
from ivon_jax.train.data.text_encoding import exchange_tokens
from ivon_jax.train.generate.prompts import encode_prompts, read_prompts, stop_tokens


def wrapped(bos=False, template=None):
    """The tiny tokenizer with BOS [PAD] and EOS "no"."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = tiny.tokenizer()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="[PAD] $A", special_tokens=[("[PAD]", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="[PAD]",
        unk_token="[UNK]",
        eos_token="no",
        chat_template=template,
    )


CHAT = (
    "{{ bos_token }}{% for m in messages %}Text: {{ m.content }}"
    "{% if m.role == 'assistant' %}yes{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("text", ["Text: red", "[PAD]Text: red"])
def test_bos_is_there_once_at_most(bos, text):
    (ids,) = encode_prompts(wrapped(bos), [text])
    assert (ids == 0).sum() == (1 if bos or "PAD" in text else 0)
    assert ids[-2:].tolist() == encode_prompts(wrapped(), ["Text: red"])[0].tolist()


def test_bos_of_a_template_is_not_repeated():
    (ids,) = encode_prompts(wrapped(True, CHAT), [[Message("user", "red")]])
    assert (ids == 0).sum() == 1
    twice = "{{ bos_token }}" + CHAT
    with pytest.raises(ValueError, match=r"prompt 1: the chat begins with '\[PAD\]' t"):
        encode_prompts(wrapped(True, twice), [[Message("user", "red")]])


def test_messages_may_be_objects():
    tokenizer = wrapped(template=CHAT)
    named, plain = encode_prompts(
        tokenizer, [[Message("user", "red")], [{"role": "user", "content": "red"}]]
    )
    assert named.tolist() == plain.tolist()


@given(words=st.lists(st.sampled_from(sorted(tiny.tokenizer().get_vocab()))))
def test_a_prompt_is_what_training_puts_before_the_completion(words):
    prompt = "Text: red" + " ".join(word for word in words if word != "[PAD]")
    tokenizer = wrapped(True)
    (ids,) = encode_prompts(tokenizer, [prompt])
    trained, learnt = exchange_tokens(tokenizer, Exchange(prompt, " yes"), "completion")
    assert trained[: learnt[0]] == ids.tolist()


def test_every_end_token_is_found(tmp_path):
    assert stop_tokens(wrapped()) == (4,)
    tokenizer = wrapped(template=CHAT)
    tokenizer.add_special_tokens({"additional_special_tokens": ["yes"]})
    assert stop_tokens(tokenizer) == (3, 4)  # what the template ends a reply with
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    values = {"eos_token_id": [4, 8]}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    assert stop_tokens(wrapped(), tmp_path) == (4, 7, 8)


def test_a_model_without_end_tokens_has_none():
    tokenizer = wrapped()
    tokenizer.eos_token = None
    assert stop_tokens(tokenizer) == ()


def test_a_row_without_id_has_its_number_which_no_other_may_have(tmp_path):
    rows = [{"id": "a", "prompt": "red"}, {"prompt": "big"}, {"id": 7, "prompt": "old"}]
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    assert [prompt.id for prompt in read_prompts(path, chat=False)] == ["a", 2, 7]
    tiny.write_rows(path, [{"id": 2, "prompt": "red"}, {"prompt": "big"}])
    message = "rows.jsonl:2: id 2 occurs twice, once as the number of a row without"
    with pytest.raises(ValueError, match=message):
        read_prompts(path, chat=False)
