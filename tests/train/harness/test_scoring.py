"""Scores are those of one pair and one model at a time, put together afterwards."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_text_run import train_text

from ivon_jax.ensemble import pool
from ivon_jax.train.generate import open_run
from ivon_jax.train.harness.scoring import Pair, Scorer

RNG = np.random.default_rng(0)
PAIRS = [
    Pair(RNG.integers(1, 45, a).tolist(), RNG.integers(1, 45, b).tolist())
    for a, b in ((3, 1), (9, 4), (1, 2), (20, 3), (2, 7), (5, 1), (4, 1))
]
SAMPLES = 3


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    return open_run(train_text(tmp_path_factory.mktemp("scoring")))


def log_probs_of(writer, model, tokens):
    """Log-probabilities of the next token after each, without padding."""
    variables = writer.drawing(SAMPLES if model is not None else 0)(model)
    hidden = writer.module.apply(variables, jnp.asarray([tokens]))
    params = {"params": variables["params"]}
    logits = writer.module.base.apply(params, hidden, method="unembed")
    return np.asarray(jax.nn.log_softmax(logits[0]), np.float64)


def by_hand(writer, models, pair):
    """The log-probability by each model, and whether the mixture would write it."""
    context, continuation = pair
    ids = [*context, *continuation]
    start = len(context) - 1
    found = [log_probs_of(writer, m, ids)[start:-1] for m in models]
    likeliest, before = [], np.zeros(len(models))
    for place, token in enumerate(continuation):
        joint = np.stack([before[i] + f[place] for i, f in enumerate(found)])
        likeliest.append(np.exp(joint).sum(0).argmax() == token)
        before = joint[:, token]
    return before, all(likeliest)


def greedy_pair(writer, models, length):
    """A continuation that the mixture itself writes."""
    ids = [5, 17, 8]
    for _ in range(length):
        sums = [
            sum(log_probs_of(writer, m, ids)[i - 1, ids[i]] for i in range(3, len(ids)))
            for m in models
        ]
        last = [log_probs_of(writer, m, ids)[-1] for m in models]
        joint = np.exp([s + x for s, x in zip(sums, last, strict=True)]).sum(0)
        ids.append(int(joint.argmax()))
    return Pair(ids[:3], ids[3:])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_scores_equal_those_of_one_pair_at_a_time(batch_size, writer):
    models = list(range(SAMPLES))
    pairs = [*PAIRS, greedy_pair(writer, models, 3)]
    found = Scorer(writer, SAMPLES, batch_size=batch_size)(pairs)
    hands = [by_hand(writer, models, pair) for pair in pairs]
    np.testing.assert_allclose(
        found.log_probs, np.stack([h[0] for h in hands], axis=1), atol=1e-4
    )
    assert found.greedy.tolist() == [h[1] for h in hands]
    assert found.greedy[-1]
    assert np.ptp(found.log_probs, axis=0).min() > 1e-3  # models differ
    np.testing.assert_allclose(
        pool(found.log_probs),
        np.log(np.exp(found.log_probs).mean(0)),
        rtol=1e-6,
    )


def test_a_mesh_changes_nothing(writer):
    split = open_run(Path(writer.name), "data=2,fsdp=2")
    found, wanted = Scorer(split, 2)(PAIRS), Scorer(writer, 2)(PAIRS)
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, atol=1e-4)
    np.testing.assert_array_equal(found.greedy, wanted.greedy)


def test_the_mean_is_one_model(writer):
    found = Scorer(writer, 0)(PAIRS[:2])
    hands = [by_hand(writer, [None], pair)[0] for pair in PAIRS[:2]]
    np.testing.assert_allclose(found.log_probs, np.stack(hands, axis=1), atol=1e-4)


def test_what_is_too_long_loses_its_beginning(writer):
    context = RNG.integers(1, 45, writer.context + 30).tolist()
    pair, cut = Pair(context, [7, 8]), Pair(context[-(writer.context - 1) :], [7, 8])
    scorer = Scorer(writer, 0)
    np.testing.assert_allclose(
        scorer([pair]).log_probs, scorer([cut]).log_probs, atol=1e-5
    )
    for length in (0, 129):
        with pytest.raises(ValueError, match=rf"{length} tokens are not in \[1, 128\]"):
            scorer([Pair([1], [2] * length)])
