"""The texts of choices, against torch, and against each choice by itself."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_answers import command
from tiny_runs import batch_of, outputs_of

from ivon_jax import Posterior
from ivon_jax._tree import by_path
from ivon_jax.lora import LoraConfig
from ivon_jax.testing.tiny import text_tokenizer, write_rows, write_text_model
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.data.batches import collate, eval_batches, train_batches
from ivon_jax.train.data.choice_encoding import encode_choices
from ivon_jax.train.data.layout import Layout
from ivon_jax.train.data.task import Choice, Example
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.linearised import Linearised
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.problem import prepare, train_layout
from ivon_jax.train.tasks.registry import get_task

ARC = [
    ("what is 2+2?", ["four", "a", "2 and 2", "four or so"], "A"),
    ("hot?", ["no, it is as cold as ice", "yes", "yes, a bit", "x"], "C"),
    ("what is 2?", ["1", "3", "2", "4"], "3"),
]
FILLED = [
    ("ann beat bob since _ was fast.", "ann", "bob", "1"),
    ("the cat saw the dog and _ ran.", "the cat", "dog", "2"),
    ("_ is big.", "ann", "the dog", "2"),
]


def arc_rows():
    labels = [list("ABCD"), list("ABCD"), list("1234")]
    return [
        {
            "question": question,
            "choices": {"text": texts, "label": names},
            "answerKey": answer,
        }
        for (question, texts, answer), names in zip(ARC, labels, strict=True)
    ]


def filled_rows():
    names = ("sentence", "option1", "option2", "answer")
    return [dict(zip(names, row, strict=True)) for row in FILLED]


# The text before what is scored, and the scored text, of every choice of a row.
PIECES = {
    "arc_easy": [
        [(f"question: {question}\nanswer:", f" {text}") for text in texts]
        for question, texts, _ in ARC
    ],
    "winogrande_s": [
        [
            (sentence.split("_")[0] + option, " " + sentence.split("_")[1].strip())
            for option in options
        ]
        for sentence, *options, _ in FILLED
    ],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    place = tmp_path_factory.mktemp("choices")
    write_text_model(place / "model")
    for folder in ("ARC-Easy", "winogrande_s", "winogrande"):
        (place / folder).mkdir()
        rows = arc_rows() if folder == "ARC-Easy" else filled_rows()
        for split in ("train", "validation"):
            write_rows(place / folder / f"{split}.jsonl", rows)
    return place


@pytest.fixture(scope="module", params=["arc_easy", "winogrande_s"])
def problem(home, request):
    data = DataConfig(request.param, home, prompt_style="choice_text")
    lora = LoraConfig(rank=2, dropout=0.0)
    found = prepare(TrainConfig(str(home / "model"), data=data, lora=lora))
    # B starts at zero: gradients of A would vanish.
    params = found.network.trainable.fresh(found.network.module, jax.random.key(0))
    return found, jax.tree.map(lambda x: x + 0.1, params)


def test_logits_are_those_of_torch(problem, home):
    """Every choice in a row of its own, by HF's classes and tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found, params = problem
    params = jax.tree.map(jnp.zeros_like, params)
    model = transformers.AutoModelForCausalLM.from_pretrained(home / "model")
    tokenizer = text_tokenizer()
    for index, choices in enumerate(PIECES[found.task.name]):
        wanted, sizes = [], []
        for before, scored in choices:
            ids = tokenizer.encode(before + scored).ids
            start = len(tokenizer.encode(before).ids)
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            chosen = logits[range(start - 1, len(ids) - 1), ids[start:]]
            wanted.append(chosen.sum().item())
            sizes.append(len(scored.strip()))
        wanted = np.array(wanted) / sizes
        (got,) = outputs_of(found, params, batch_of(found, [index]))
        np.testing.assert_allclose(got, wanted, rtol=1e-4)


def test_labels_are_indices_of_the_right_texts(problem):
    found, _ = problem
    answers = {"arc_easy": [0, 2, 2], "winogrande_s": [0, 1, 1]}[found.task.name]
    assert found.splits["train"].labels.tolist() == answers


def test_questions_are_taken_with_their_choices(problem):
    found, _ = problem
    encoded = found.splits["train"]
    some = encoded.take(np.array([2, 0]))
    assert [ids.tolist() for ids in some.tokens] == [
        encoded.tokens[i].tolist() for i in (2, 0)
    ]
    for name in ("labels", "choices"):
        np.testing.assert_array_equal(
            getattr(some, name), getattr(encoded, name)[[2, 0]]
        )


@pytest.mark.parametrize("texts", [1, 3])
def test_rows_are_as_if_each_question_were_alone(problem, texts):
    """Logits and gradients, with the questions' common beginning computed once."""
    found, params = problem
    encoded = found.splits["train"]
    length = found.objective.prefix_length(encoded)
    assert (length > 0) == (found.task.name == "arc_easy")
    rest, prefix = encoded.without_prefix(length), encoded.tokens[0][:length]
    indices = np.array([2, 0, 1])

    def packed(params):
        batch = jax.device_put(collate(rest, indices.reshape(-1, texts)))
        return outputs_of(found, params, batch, jnp.asarray(prefix))

    def alone(params):
        rows = [outputs_of(found, params, batch_of(found, [i])) for i in indices]
        return jnp.concatenate(rows)

    def loss(params, outputs):
        logits = outputs(params)
        return jnp.sum(jnp.sin(logits) * jnp.arange(1.0, 4.0)[:, None]), logits

    (got, one), (wanted, two) = (
        jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, outputs)
        for outputs in (packed, alone)
    )
    np.testing.assert_allclose(one, two, rtol=1e-4)
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
    assert size > 1e-4
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=0, atol=1e-4 * size),
        got,
        wanted,
    )


def test_batches_score_each_token_once(problem):
    """Of training and of evaluation, whatever is in a batch and how it is padded."""
    found, _ = problem
    encoded = found.splits["train"]
    stream = train_batches(encoded, Layout.of(encoded, 2), seed=0)
    made = [next(stream) for _ in range(4)]
    made += [batch for batch, _ in eval_batches(encoded, 2, 1)]
    (choices,) = {batch.scored.sizes.shape[1:] for batch in made}
    for batch in made:
        owners = batch.scored.choice[0]
        assert owners.max() <= np.prod(choices)
        counts = np.bincount(owners, minlength=np.prod(choices))[: np.prod(choices)]
        # The tokenizer's tokens are characters; a blank is before the text of each.
        assert counts.tolist() == (batch.scored.sizes[0].reshape(-1) + 1).tolist()


def test_predictors_see_the_same_logits(problem):
    found, params = problem
    encoded, streams = found.splits["test"], Streams.from_seed(0)
    precision = jax.tree.map(jnp.ones_like, by_path(params))
    point = Posterior(params, precision, {})
    mean = predict(found, encoded, point, Mean(), streams, batch_size=2, show=False)
    wanted = [outputs_of(found, params, batch_of(found, [i]))[0] for i in range(3)]
    np.testing.assert_allclose(
        mean[0], jax.nn.log_softmax(jnp.stack(wanted)), rtol=1e-3, atol=1e-4
    )
    # Its rows hold one question each, and its Jacobians pass through the fork.
    narrow = point.temper(1e8)
    linear = predict(found, encoded, narrow, Linearised(), streams, show=False)
    np.testing.assert_allclose(linear, mean, rtol=1e-2, atol=1e-3)


def test_a_layout_fits_forked_texts(problem):
    found, _ = problem
    config = TrainConfig(method="adam", hyper=AdamHyper(steps=1, batch_size=2))
    prefix, layout = train_layout(found, config)
    longest = np.sort(found.splits["train"].lengths - len(prefix))[-2:].sum()
    assert layout.shapes[-1].tokens >= longest


def test_bad_choices_are_one_line():
    tokenizer = _Ids()
    for examples, message in (
        ([], "no examples to encode"),
        ([Example("", 0, (), (Choice("", "a"), Choice("b", "c")))], "or none before"),
        ([Example("q", 0, (), (Choice("", ""), Choice("", "c")))], "no token to score"),
    ):
        with pytest.raises(ValueError, match=message):
            encode_choices(tokenizer, examples)
    long = [Example("q", 0, (), (Choice("", "abc"), Choice("", "c")))]
    with pytest.raises(ValueError, match="limit of 3 tokens; the longest has 4"):
        encode_choices(tokenizer, long, 3)


class _Ids:
    """A tokenizer of characters without special tokens."""

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(c) % 50 for c in text] for text in texts]}


def test_tasks_without_texts_refuse_the_style(home):
    with pytest.raises(ValueError, match="prompt_style: the classes of boolq have no"):
        get_task("boolq", "choice_text")
    row = {"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}
    with pytest.raises(ValueError, match="has no blank, _"):
        get_task("winogrande_s", "choice_text").example(row)


def test_methods_and_fits_are_compared(home, tmp_path):
    """One that perturbs single tokens, and one that reads rows of single questions."""
    words = ["compare", "--model", home / "model", "--task", "arc_easy"]
    words += ["--data-dir", home, "--prompt-style", "choice_text", "--rank", "2"]
    for method in ("adam", "blob"):
        words += [f"--{method}.steps", "2", f"--{method}.batch-size", "2"]
    words += ["--methods", "adam", "blob", "--fit", "laplace-kfac:adam"]
    assert command(*words, "--samples", "2", "--out", tmp_path / "out") == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
    assert len(rows) == 4
    assert all(0 < row["nll"] < 99 for row in rows)  # of random weights
    run, adapter = tmp_path / "out" / "blob", tmp_path / "adapter"
    assert command("export", run, "--samples", "1", "--out", adapter) == 0
    card = (adapter / "README.md").read_text()
    assert "--prompt-style choice_text" in card
    assert "logits[0, -1" not in card  # which reads words
    few = ("--method", "tfb", "--anchors", "2", "--samples", "2")
    run = tmp_path / "out" / "adam"
    assert command("fit", run, *few, "--out", tmp_path / "tfb") == 0
