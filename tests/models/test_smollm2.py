"""The real pretrained model, as everyone else's reader computes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax.models import load
from ivon_jax.models.cache import fetch
from ivon_jax.models.known import KNOWN

PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def path():
    return fetch("smollm2-135m-instruct")


@pytest.fixture(scope="module")
def pretrained(path):
    return load(str(path))


def logits(pretrained, tokens, mask=None):
    @jax.jit
    def compute(params):
        hidden = pretrained.model.apply({"params": params}, tokens, mask=mask)
        return pretrained.model.apply({"params": params}, hidden, method="unembed")

    return np.asarray(compute(pretrained.params))


def test_the_capital_of_france(pretrained):
    assert pretrained.fingerprint == KNOWN["smollm2-135m-instruct"].sha256
    tokens = jnp.asarray(pretrained.tokenizer(PROMPT)["input_ids"])[None]
    for _ in range(3):
        best = logits(pretrained, tokens)[:, -1].argmax(-1)
        tokens = jnp.append(tokens, jnp.asarray(best, tokens.dtype)[None], axis=1)
    text = pretrained.tokenizer.decode(tokens[0])
    assert text.startswith(PROMPT + " Paris")


def test_logits_equal_those_of_transformers(path, pretrained):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    prompts = [PROMPT, "Question: On which continent is the city of Lima? Answer:"]
    tokenizer = pretrained.tokenizer
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, padding=True, return_tensors="np")
    mask = batch["attention_mask"].astype(bool)
    tokens = batch["input_ids"]
    with torch.no_grad():
        out = theirs(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask).long(),
            position_ids=torch.tensor(np.maximum(mask.cumsum(1) - 1, 0)),
        )
    got = logits(pretrained, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask))[mask]
    expected = out.logits.numpy()[mask]
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
