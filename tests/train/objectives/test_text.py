"""The text objective, against torch and NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import batch_of

from ivon_jax.lora import LoraConfig
from ivon_jax.testing.tiny import write_rows, write_text_model
from ivon_jax.train.config import DataConfig, TrainConfig
from ivon_jax.train.data.batches import collate, eval_batches, train_batches
from ivon_jax.train.data.layout import Layout, Shape
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Minibatch
from ivon_jax.train.objectives.text import Text
from ivon_jax.train.predict import draws, validate
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.problem import prepare
from ivon_jax.train.step import microbatched

TEXT = Text("completion", 99, drop_long=False)
ROWS = [
    {"prompt": f"add {a} and {b}?", "completion": f"{a}+{b}={a + b}"}
    for a in range(0, 12, 3)
    for b in (1, 20, 300)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_text_model(tmp_path_factory.mktemp("models") / "text")


@pytest.fixture(scope="module")
def problem(folder):
    rows = write_rows(folder.parent / "train.jsonl", ROWS)
    data = DataConfig("text", train_file=rows, eval_file=rows)
    found = prepare(TrainConfig(str(folder), data=data, lora=LoraConfig(rank=2)))
    # B starts at zero: gradients of A would vanish.
    params = found.network.trainable.fresh(found.network.module, jax.random.key(0))
    return found, jax.tree.map(lambda x: x + 0.1, params)


def loss_of(problem, batch):
    """The batch's loss as a step computes it, and its argument."""

    def loss(params, minibatch):
        model = problem.network.bind(params, problem.frozen, minibatch.rngs)
        outputs = problem.objective.outputs(model, minibatch.batch)
        return problem.objective.loss(outputs, minibatch.batch)

    weights = batch.weights / batch.weights.sum()
    return loss, Minibatch(batch._replace(weights=weights), {})


def outputs_of(problem, params, batch, prefix=None):
    model = problem.network.bind(params, problem.frozen, {})
    return problem.objective.outputs(model, batch, prefix)


def test_the_loss_is_torchs_cross_entropy(problem, folder):
    """The same weights, tokens, and labels of -100 where nothing is learnt."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    found, params = problem
    params = jax.tree.map(jnp.zeros_like, params)
    encoded = found.splits["train"]
    batch = jax.device_put(collate(encoded, np.arange(8)[:, None]))
    loss, minibatch = loss_of(found, batch)
    labels = np.full(batch.tokens.shape, -100)
    for i in range(8):
        labels[i, encoded.learnt[i]] = encoded.tokens[i][encoded.learnt[i]]
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    mask = np.arange(batch.tokens.shape[1]) < np.asarray(batch.lengths)
    with torch.no_grad():
        wanted = model(
            input_ids=torch.tensor(np.asarray(batch.tokens), dtype=torch.long),
            attention_mask=torch.tensor(mask),
            labels=torch.tensor(labels),
        ).loss
    assert float(loss(params, minibatch)) == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("texts", [1, 4])
def test_packed_texts_are_as_if_alone(problem, texts):
    found, params = problem
    encoded = found.splits["train"]
    indices = np.array([11, 0, 5, 2, 7, 3, 9, 1]).reshape(-1, texts)
    batch = collate(encoded, indices)
    got = outputs_of(found, params, jax.device_put(batch))
    wanted = np.concatenate(
        [
            np.asarray(outputs_of(found, params, batch_of(found, [i])))[
                : encoded.answers[i]
            ]
            for i in indices.flat
        ]
    )
    real = batch.weights.reshape(-1) > 0
    assert real.sum() == encoded.answers[indices].sum()
    np.testing.assert_allclose(np.asarray(got)[real], wanted, rtol=1e-4, atol=1e-5)
    ids = batch.labels.reshape(-1)[real]
    assert (
        ids.tolist() == encoded.labels[encoded.places(indices.reshape(-1)), 0].tolist()
    )


@pytest.mark.parametrize("parts", [4])
def test_accumulation_divides_once_over_the_whole_batch(problem, parts):
    """Micro-batches have unequal numbers of learnt tokens."""
    found, params = problem
    batch = jax.device_put(collate(found.splits["train"], np.arange(8)[:, None]))
    loss, minibatch = loss_of(found, batch)
    counts = minibatch.split(parts, strided=True).batch.weights.sum(axis=(1, 2))
    assert len(set(np.asarray(counts).tolist())) > 1
    wanted = jax.value_and_grad(loss)(params, minibatch)
    got = jax.value_and_grad(microbatched(loss, parts))(params, minibatch)
    for one, two in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_a_shared_prefix_changes_no_prediction(problem):
    found, params = problem
    encoded = found.splits["train"]
    length = found.objective.prefix_length(encoded)
    assert length == len("add ")
    shape, indices = Shape(32, 32), np.arange(4)[:, None]
    batch = jax.device_put(collate(encoded, indices, shape, 16))
    rest = collate(encoded.without_prefix(length), indices, shape, 16)
    prefix = jnp.asarray(encoded.tokens[0][:length])
    got = outputs_of(found, params, jax.device_put(rest), prefix)
    wanted = outputs_of(found, params, batch)
    real = rest.weights.reshape(-1) > 0
    np.testing.assert_allclose(
        np.asarray(got)[real], np.asarray(wanted)[real], rtol=1e-4, atol=1e-5
    )


def test_predictions_are_in_the_examples_order(problem):
    from ivon_jax.posterior import Posterior

    found, params = problem
    encoded = found.splits["train"]
    streams = Streams.from_seed(0)
    posterior = Posterior.point(params)
    got = draws(found, encoded, posterior, Mean(), streams, batch_size=5, show=False)
    for i in range(len(encoded)):
        alone = outputs_of(found, params, batch_of(found, [i]))
        wanted = np.asarray(alone)[: encoded.answers[i]]
        own = got[0, encoded.places(np.array([i]))]
        np.testing.assert_allclose(own, wanted, rtol=1e-4, atol=1e-5)
    scored = validate(found, encoded, posterior, streams)
    assert scored["eval_nll"] == pytest.approx(-got[0, :, 0].mean(), rel=1e-5)
    assert scored["eval_perplexity"] == pytest.approx(math.exp(scored["eval_nll"]))


def test_every_learnt_token_is_in_a_batch_once(problem):
    encoded = problem[0].splits["train"]
    for batch, indices in eval_batches(encoded, 6, 2):
        assert batch.weights.sum() == encoded.answers[indices].sum()
        assert batch.labels.shape == batch.weights.shape == batch.positions.shape
    layout = Layout.of(encoded, 4, rows=2)
    batch = next(train_batches(encoded, layout, 0, rows=np.array([1])))
    assert batch.tokens.shape[0] == len(batch.positions) == 1


# Scores.


@given(
    st.integers(1, 4),
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.integers(0, 2**16),
)
@settings(deadline=None)
def test_ensembles_by_hand(samples, lengths, seed):
    rng = np.random.default_rng(seed)
    count = sum(lengths)
    probs = rng.uniform(0.05, 0.5, (samples, count))
    likeliest = np.where(rng.uniform(size=probs.shape) < 0.5, probs, probs + 0.1)
    owners = np.repeat(np.arange(len(lengths)), lengths)
    labels = np.stack([np.zeros(count, int), owners], axis=1)
    predictions = np.log(np.stack([probs, likeliest], axis=-1)).astype(np.float32)
    found = TEXT.score(predictions, labels)
    ends = np.cumsum(lengths)
    cuts = [slice(end - n, end) for end, n in zip(ends, lengths, strict=True)]
    nll = -np.mean([math.log(np.mean(probs[:, t])) for t in range(count)])
    whole = [np.mean([np.prod(probs[s, cut]) for s in range(samples)]) for cut in cuts]
    same = probs == likeliest
    right = [[same[s, cut].all() for cut in cuts] for s in range(samples)]
    wanted = {
        "nll": nll,
        "perplexity": math.exp(nll),
        "sequence_nll": -sum(map(math.log, whole)) / count,
        "token_accuracy": np.mean(same),
        "sequence_accuracy": np.mean(right),
    }
    assert found == pytest.approx(wanted, rel=1e-4)
    if samples == 1:
        assert found["nll"] == pytest.approx(found["sequence_nll"])


def test_a_perplexity_beyond_floats_is_a_number():
    predictions = np.full((1, 1, 2), -1e4, np.float32)
    score = TEXT.score(predictions, np.zeros((1, 2), int))
    assert math.isfinite(score["perplexity"])


def test_the_task_is_for_decoders(folder, tmp_path):
    import tiny_encoder

    model, _ = tiny_encoder.write_task(tmp_path, "stsb")
    with pytest.raises(ValueError, match="^task: sums is for decoders, and .* encoder"):
        prepare(TrainConfig(model, data=DataConfig("sums")))
