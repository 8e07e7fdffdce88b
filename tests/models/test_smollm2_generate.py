"""What the real pretrained model writes, and what transformers' `generate` does."""

import collections

import pytest

from ivon_jax.models.cache import fetch
from ivon_jax.models.sampler import Sampler
from ivon_jax.train.generate import Options, generate, open_model
from ivon_jax.train.tasks.registry import get_task

# Small models do so in test_decode.py; the real one reads in test_smollm2.py.
pytestmark = pytest.mark.slow

NAME = "smollm2-135m-instruct"
GREEDY = Sampler(temperature=0.0)


@pytest.fixture(scope="module")
def writer():
    return open_model(NAME)


def questions(count):
    task = get_task("sums")
    return [task.exchange(row).prompt for row in task.rows("eval")[:count]]


def test_the_capital_of_france(writer):
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    (output,) = generate(writer, [chat], Options(max_tokens=16, sampler=GREEDY))
    assert output.finish == "stop"
    assert "Paris" in writer.tokenizer.decode(output.tokens)


def test_greedy_tokens_equal_those_of_transformers(writer):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    path = fetch(NAME)
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    length, prompts = 48, questions(50)
    prompts[1] = [{"role": "user", "content": prompts[1]}]
    ours = generate(writer, prompts, Options(max_tokens=length, sampler=GREEDY))
    groups = collections.defaultdict(list)  # by length, so that neither pads
    for prompt, output in zip(prompts, ours, strict=True):
        if isinstance(prompt, str):
            ids = writer.tokenizer(prompt)["input_ids"]
        else:
            ids = writer.tokenizer.apply_chat_template(
                prompt, add_generation_prompt=True, return_dict=False
            )
        groups[len(ids)].append((ids, output.tokens.tolist()))
    for width, pairs in groups.items():
        ids = torch.tensor([ids for ids, _ in pairs])
        found = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=length,
            eos_token_id=list(writer.stops),
            pad_token_id=writer.stops[0],
        )
        for row, (_, tokens) in zip(found[:, width:].tolist(), pairs, strict=True):
            assert row[: len(tokens)] == tokens
            assert len(tokens) == length or tokens[-1] in writer.stops
