"""Runs with the tokenizers that models come with: what is read, and what answers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from ivon_jax.lora import LoraConfig
from ivon_jax.posterior import Posterior
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.evaluate import Prediction, predict
from ivon_jax.train.prepare import prepare

UNSET = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)


def added(token: str, index: int) -> dict:
    return {"id": index, "content": token, "special": True, **UNSET}


def template(*parts: str) -> dict:
    """A post-processor that puts special tokens around a text, "$A"."""
    special = {part: i for i, part in enumerate(("[PAD]", "[UNK]")) if part in parts}
    single = [
        {"SpecialToken": {"id": part, "type_id": 0}}
        if part in special
        else {"Sequence": {"id": "A", "type_id": 0}}
        for part in parts
    ]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {
            part: {"id": part, "ids": [i], "tokens": [part]}
            for part, i in special.items()
        },
    }


ROWS = tiny.rows(9, seed=4)
BEGIN, END = "[PAD]", "[UNK]"  # two tokens that the model has embeddings for
# What the tokenizer's files have, the prompt's beginning, and what is read before it.
CASES = {
    "nothing special": ({}, "", []),
    "padding without an embedding": (
        {"added_tokens": [added("<pad>", 50)], "pad_token": "<pad>"},
        "",
        [],
    ),
    "padding is switched on": (
        {
            "padding": {
                "strategy": {"Fixed": 20},
                "direction": "Left",
                "pad_to_multiple_of": None,
                "pad_id": 0,
                "pad_type_id": 0,
                "pad_token": "[PAD]",
            }
        },
        "",
        [],
    ),
    "begins": ({"post_processor": template(BEGIN, "$A")}, "", [0]),
    "ends": ({"post_processor": template("$A", END)}, "", []),
    "begins and ends": ({"post_processor": template(BEGIN, "$A", END)}, "", [0]),
    "begins, and so does the prompt": (
        {
            "post_processor": template(BEGIN, "$A"),
            "added_tokens": [added(BEGIN, 0)],
        },
        BEGIN,
        [0],
    ),
}


def problem_of(folder: Path, files: dict, start: str, **data):
    model = tiny.write_model(folder / "model", layers=1)
    changes = dict(files)
    for name, own in (
        ("tokenizer_config.json", ("pad_token",)),
        ("tokenizer.json", files),
    ):
        values = json.loads((model / name).read_text())
        values |= {k: changes.pop(k) for k in own if k in changes}
        (model / name).write_text(json.dumps(values))
    rows = tiny.write_rows(folder / "rows.jsonl", ROWS)
    options = {
        "prompt": start + tiny.PROMPT,
        "labels": tiny.LABELS,
        "train_file": rows,
        "eval_file": rows,
    }
    data = DataConfig("custom", **options | data)
    return prepare(TrainConfig(str(model), data=data, lora=LoraConfig(rank=2)))


def at_the_base(problem):
    """Predictions of adapters that change nothing."""
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), problem.adapters)
    return predict(
        problem, Posterior.point(zero), Prediction(0), jax.random.key(0), show=False
    )[0]


@pytest.mark.parametrize("case", CASES)
def test_the_answer_follows_the_prompt(case, tmp_path):
    """As with transformers, given the prompt's tokens and what comes before them."""
    torch = pytest.importorskip("torch")
    import transformers

    files, start, before = CASES[case]
    problem = problem_of(tmp_path, files, start)
    folder = str(tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = tiny.tokenizer()
    answers = torch.tensor([tokenizer.token_to_id(f"▁{w}") for w in tiny.LABELS])
    wanted = []
    for row in ROWS:
        ids = before + tokenizer.encode(tiny.PROMPT.format(**row)).ids
        with torch.no_grad():
            last = theirs(torch.tensor([ids])).logits[0, -1]
        wanted.append(torch.log_softmax(last[answers], -1).numpy())
    np.testing.assert_allclose(at_the_base(problem), wanted, rtol=1e-4, atol=1e-5)
