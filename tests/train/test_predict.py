"""Logits and predictions of a trained model, against the plain forward pass."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_runs import batch_of, outputs_of

from ivon_jax.lora import LoraConfig
from ivon_jax.models.packed import Packed
from ivon_jax.posterior import Posterior
from ivon_jax.train import loop
from ivon_jax.train import predict as predictions
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.data import batches
from ivon_jax.train.data.batches import collate
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.predict import Forward, predict
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import Problem, prepare

STREAMS = Streams.from_seed(5)
KEY = STREAMS.ensemble


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=1)
    hyper = IvonLoraHyper(
        steps=80, batch_size=8, learning_rate=0.3, gamma=2000.0, clip_radius=0.02
    )
    lora = LoraConfig(rank=4, dropout=0.1)
    config = TrainConfig(model, data=data, lora=lora, hyper=hyper)
    return resolve(config, "custom", 64)


@pytest.fixture(scope="module")
def problem(config) -> Problem:
    return prepare(config)


@pytest.fixture(scope="module")
def trained(problem, config, tmp_path_factory) -> Posterior:
    return loop.train(problem, config, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def adapters(trained) -> Any:
    return trained.mean


def test_answers_are_the_label_words(problem):
    vocabulary = tiny.tokenizer().get_vocab()
    assert problem.objective.label_ids.tolist() == [
        vocabulary["▁no"],
        vocabulary["▁yes"],
    ]


def test_answer_logits_are_rows_of_the_full_logits(problem, adapters):
    batch = batch_of(problem, [3, 1, 4, 15])
    found = outputs_of(problem, adapters, batch)
    variables = {"params": problem.frozen, "lora": adapters}
    network = problem.network
    apply = jax.jit(network.module.apply)
    for row, (tokens, length) in enumerate(
        zip(batch.tokens, batch.lengths[:, 0], strict=True)
    ):
        # Each prompt alone and without padding.
        hidden = apply(variables, tokens[None, :length])
        frozen = {"params": problem.frozen}
        logits = network.base.apply(frozen, hidden, method="unembed")
        assert logits.shape[-1] == 50
        wanted = jax.nn.softmax(logits[0, -1][problem.objective.label_ids])
        np.testing.assert_allclose(
            jax.nn.softmax(found[row]), wanted, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("texts", [2, 8])
def test_packed_prompts_have_their_own_logits(texts, problem, adapters):
    indices = np.array([3, 1, 4, 15, 9, 2, 6, 5])
    train = problem.splits["train"]
    packed = jax.device_put(collate(train, indices.reshape(-1, texts)))
    np.testing.assert_allclose(
        outputs_of(problem, adapters, packed),
        outputs_of(problem, adapters, batch_of(problem, indices)),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("cut", [0, 3])
def test_a_shared_prefix_changes_no_logit(cut, problem, adapters):
    batch = batch_of(problem, [3, 1, 4, 15])
    cut = min(cut, int(batch.lengths.min()) - 1)
    tokens = np.array(batch.tokens)
    tokens[:, :cut] = tokens[0, :cut]
    tokens = jnp.asarray(tokens)
    whole = batch._replace(tokens=tokens)
    lengths, width = np.asarray(batch.lengths) - cut, tokens.shape[1] - cut
    rest = batch._replace(
        tokens=tokens[:, cut:],
        lengths=lengths,
        packed=Packed.of(lengths, width, width),
    )
    np.testing.assert_allclose(
        outputs_of(problem, adapters, rest, tokens[0, :cut]),
        outputs_of(problem, adapters, whole),
        rtol=0,
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def posterior(trained) -> Posterior:
    # Wide, so that samples differ visibly.
    return trained.temper(0.02)


@pytest.fixture(scope="module")
def three(problem, posterior) -> np.ndarray:
    return samples_of(problem, posterior, Samples(3))


def samples_of(
    problem: Problem, posterior: Posterior, predictor: Any, streams=STREAMS, **settings
) -> np.ndarray:
    """Predictions of the evaluation examples."""
    test = problem.splits["test"]
    return predict(problem, test, posterior, predictor, streams, **settings)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(np.exp(found), np.exp(wanted), rtol=0, atol=2e-5)


def test_samples_differ_and_are_distributions(three, problem):
    assert three.shape == (3, len(problem.splits["test"]), 2)
    np.testing.assert_allclose(np.exp(three).sum(-1), 1, rtol=0, atol=1e-5)
    assert np.abs(np.exp(three[0]) - np.exp(three[1])).max() > 1e-2


@pytest.mark.parametrize(("batch_size", "chunk_size"), [(32, None), (32, 2), (7, 1)])
def test_predictions_do_not_depend_on_batching(
    batch_size, chunk_size, three, problem, posterior
):
    settings = {"batch_size": batch_size, "chunk_size": chunk_size}
    close(samples_of(problem, posterior, Samples(3), **settings), three)


def test_a_batch_is_made_and_fetched_while_another_runs(
    problem, posterior, monkeypatch
):
    seen, test = [], problem.splits["test"]
    for module, name in ((batches, "collate"), (predictions, "predict_batch")):
        real = getattr(module, name)

        def noted(*args, _real=real, _name=name, **options):
            seen.append(_name)
            return _real(*args, **options)

        monkeypatch.setattr(module, name, noted)
    forward = Forward.of(problem, posterior, Mean(), STREAMS)
    size, prefix = -(-len(test) // 3), forward.prefix(test)
    forward(test, prefix, size, report=lambda *_: seen.append("fetched"))
    step = ["collate", "predict_batch"]
    assert seen == [*step, *step, "fetched", *step, "fetched", "fetched"]


def test_a_sample_does_not_depend_on_their_number(three, problem, posterior):
    close(samples_of(problem, posterior, Samples(2)), three[:2])


def test_another_key_draws_other_samples(three, problem, posterior):
    other = samples_of(problem, posterior, Samples(3), Streams.from_seed(6))
    assert np.abs(np.exp(other) - np.exp(three)).max() > 1e-2


def forward(problem: Problem, adapters: Any) -> np.ndarray:
    """All examples in one batch, in their own order, with the prefix left in."""
    test = problem.splits["test"]
    batch = jax.device_put(collate(test, np.arange(len(test))[:, None]))
    return np.asarray(jax.nn.log_softmax(outputs_of(problem, adapters, batch)))


def test_samples_are_the_forward_at_drawn_adapters(three, problem, posterior):
    for i in range(3):
        close(three[i], forward(problem, posterior.draw(KEY, i)))


def test_no_samples_is_the_forward_at_the_mean(problem, posterior, three):
    found = samples_of(problem, posterior, Mean())
    mean = forward(problem, posterior.mean)
    assert found.shape == (1, *mean.shape)
    close(found[0], mean)
    assert np.abs(np.exp(mean) - np.exp(three[0])).max() > 1e-2


def test_infinite_tau_is_the_mean(problem, posterior):
    cold = samples_of(problem, posterior.temper(np.inf), Samples(3))
    mean = samples_of(problem, posterior, Mean())
    close(cold, np.broadcast_to(mean, cold.shape))


def test_tau_and_prune_do_what_the_posterior_does(problem, posterior):
    predictor = Samples(3, tau=4.0, prune=0.5)
    by_hand = posterior.prune(0.5).temper(4.0)
    for i, log_probs in enumerate(samples_of(problem, posterior, predictor)):
        close(log_probs, forward(problem, by_hand.draw(KEY, i)))


@pytest.mark.parametrize(
    ("predictor", "fields", "message"),
    [
        (Samples, {"samples": -1}, "samples: -1 is not >= 1"),
        (Samples, {"samples": 0}, "samples: 0 is not >= 1"),
        (Samples, {"tau": 0.0}, "tau: 0.0 "),
        (Samples, {"tau": -1.0}, "tau: -1.0 "),
        (Samples, {"tau": float("nan")}, "tau: nan "),
        (Samples, {"tau": float("inf")}, "tau: inf "),
        (Samples, {"prune": 1.0}, "prune: 1.0 "),
        (Samples, {"prune": -0.1}, "prune: -0.1 "),
        (Samples, {"prune": float("nan")}, "prune: nan "),
        (Mean, {"prune": 1.0}, "prune: 1.0 "),
        (Mean, {"prune": float("nan")}, "prune: nan "),
        (Dropout, {"samples": 0}, "dropout_samples: 0 is not >= 1"),
    ],
)
def test_illegal_predictors(predictor, fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        predictor(**fields)


def test_other_adapters_are_refused(problem, posterior):
    grown = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), posterior.mean)
    for mean in (grown, {"layers": {}}):
        with pytest.raises(ValueError, match="posterior: its parameters"):
            samples_of(problem, Posterior.point(mean), Mean())
