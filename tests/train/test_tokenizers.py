"""Runs with the tokenizers that models come with: what is read, and what answers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from ivon_jax.lora import LoraConfig
from ivon_jax.models.pretrained import tokenizer_fingerprint
from ivon_jax.posterior import Posterior
from ivon_jax.train import cli
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import identity, run
from ivon_jax.train.splits import settled

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


def write_characters(folder: Path, *more: str) -> Path:
    """A model whose tokens are single characters, and a few pieces more."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    model = tiny.write_model(folder / "model", layers=1)
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", *CHINESE, *more])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    pieces = "|".join([*more, "."])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pieces), "isolated")
    tokenizer.save(str(model / "tokenizer.json"))
    return model


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
    zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), problem.shapes)
    test, streams = problem.splits["test"], Streams.from_seed(0)
    posterior = Posterior.point(zero)
    return predict(problem, test, posterior, Mean(), streams, show=False)[0]


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


CHINESE = "评价：这部电影很差精彩情感好坏: "
REVIEWS = [
    {"text": text, "label": label}
    for text, label in (("这部电影很精彩", "好"), ("很差", "坏"), ("电影很好", "好"))
]


@pytest.mark.parametrize(
    ("more", "space", "answers"),
    [
        ((), "auto", "好坏"),
        ((" 好", " 坏"), "auto", "好坏"),
        ((" 好", " 坏"), "yes", (" 好", " 坏")),
        ((), "no", "好坏"),
    ],
)
def test_labels_of_a_language_without_blanks(more, space, answers, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    folder = str(write_characters(tmp_path, *more))
    rows = tiny.write_rows(tmp_path / "rows.jsonl", REVIEWS)
    prompt = "评价：{text}情感："
    data = DataConfig(
        "custom",
        train_file=rows,
        eval_file=rows,
        prompt=prompt,
        labels=("好", "坏"),
        leading_space=space,
    )
    problem = prepare(TrainConfig(folder, data=data, lora=LoraConfig(rank=2)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    vocabulary = ["[PAD]", "[UNK]", *CHINESE, *more]
    ids = torch.tensor([vocabulary.index(answer) for answer in answers])
    wanted = []
    for row in REVIEWS:
        tokens = [vocabulary.index(c) for c in prompt.format(**row)]
        with torch.no_grad():
            last = theirs(torch.tensor([tokens])).logits[0, -1]
        wanted.append(torch.log_softmax(last[ids], -1).numpy())
    np.testing.assert_allclose(at_the_base(problem), wanted, rtol=1e-4, atol=1e-5)
    config = settled(TrainConfig(folder, data=data), problem.task)
    assert config.data.leading_space == ("no" if answers == "好坏" else "yes")


def test_runs_of_before_there_was_the_choice(tmp_path):
    """Their label words have a blank before them, and they go on as they were."""
    model = write_characters(tmp_path, " 好", " 坏")
    rows = tiny.write_rows(tmp_path / "rows.jsonl", REVIEWS)
    out = tmp_path / "run"
    data = DataConfig(
        "custom",
        train_file=rows,
        eval_file=rows,
        prompt="评价：{text}情感：",
        labels=("好", "坏"),
        leading_space="yes",
    )
    hyper = Hyper(steps=2, batch_size=2)
    config = TrainConfig(str(model), data=data, lora=LoraConfig(rank=2), hyper=hyper)
    cli.train(config, out)
    cli.evaluate(out, samples=2)
    before = load_file(out / "predictions-2.safetensors")["log_probs"]
    values = json.loads((out / run.CONFIG).read_text())
    recorded = identity.describe(*run.read_config(out))
    assert values["config"]["data"].pop("leading_space") == "yes"
    (out / run.CONFIG).write_text(json.dumps(values))
    cli.evaluate(out, samples=2)
    after = load_file(out / "predictions-2.safetensors")["log_probs"]
    np.testing.assert_array_equal(before, after)
    cli.train(config, out, resume=True)
    assert recorded.pop("data.leading_space") == "yes"
    now = identity.describe(*run.read_config(out))
    identity.check_same(out, recorded, now)
    with pytest.raises(ValueError, match="leading_space: is now no, .* with yes"):
        identity.check_same(out, recorded, now | {"data.leading_space": "no"})


def test_the_choice_is_recorded(tmp_path):
    model = tiny.write_model(tmp_path / "model", layers=1)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", ROWS)
    config = TrainConfig(
        str(model),
        data=DataConfig(
            "custom",
            train_file=rows,
            eval_file=rows,
            prompt=tiny.PROMPT,
            labels=tiny.LABELS,
        ),
        lora=LoraConfig(rank=2),
        hyper=Hyper(steps=1, batch_size=2),
    )
    cli.train(config, tmp_path / "run")
    recorded, _ = run.read_config(tmp_path / "run")
    assert recorded.data.leading_space == "yes"


def test_a_fingerprint_tells_tokenizers_apart():
    """By their vocabulary, what they do to letters, and what they put around a text."""
    from tokenizers import (
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    def made(words: str = "Is naïve YES yes", lower=False, around=None):
        vocabulary = {word: i for i, word in enumerate(["?", *words.split()])}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        if lower:
            tokenizer.normalizer = normalizers.Lowercase()
        if around:
            tokenizer.post_processor = processors.TemplateProcessing(
                single="? $A", special_tokens=[("?", 0)]
            )
        return tokenizer_fingerprint(
            PreTrainedTokenizerFast(tokenizer_object=tokenizer)
        )

    assert made() == made()
    others = {made("Is naïve yes YES"), made(lower=True), made(around=True)}
    assert len(others | {made()}) == 4
