"""Embeddings against the states of single texts."""

import jax.numpy as jnp
import numpy as np
import pytest
import tiny_answers

from ivon_jax import mbr
from ivon_jax.train.generate import embedder, open_model, open_run

TEXTS = ["2+2=4", "a long text, with more tokens", "5"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    yield from tiny_answers.home_of(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def writer(home):
    return open_model(str(home / "model"))


def test_an_embedding_is_the_mean_state(writer):
    found = embedder(writer, batch_size=2)(TEXTS)
    for text, vector in zip(TEXTS, found, strict=True):
        ids = jnp.array([writer.tokenizer(text)["input_ids"]])
        hidden = writer.module.apply(writer.join({}), ids)
        np.testing.assert_allclose(vector, hidden[0].mean(axis=0), atol=1e-5)


def test_adapters_are_left_out(home, writer):
    run = home / "run"
    steps = ["--method", "adam", "--steps", "2", "--batch-size", "4"]
    words = [*tiny_answers.options(home), *steps, "--learning-rate", "0.1"]
    assert tiny_answers.command("train", *words, "--out", run) == 0
    found, expected = (embedder(w)(TEXTS) for w in (open_run(run), writer))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_it_is_a_utility(writer):
    utilities = mbr.utility_matrix(TEXTS, TEXTS, mbr.cosine(embedder(writer)))
    assert np.diag(utilities) == pytest.approx(1.0)
    assert (utilities[~np.eye(3, dtype=bool)] < 1).all()


def test_what_cannot_be_embedded_is_refused(writer):
    with pytest.raises(ValueError, match="prompt 2: has no tokens"):
        embedder(writer)(["a", ""])
    with pytest.raises(ValueError, match="batch_size: 0 is not >= 1"):
        embedder(writer, batch_size=0)
