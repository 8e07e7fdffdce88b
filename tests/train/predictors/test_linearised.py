"""Predictions of the linearised model, against integrals and dense matrices."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import batch_of, outputs_of

from ivon_jax import Particles, Posterior
from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors import linearised
from ivon_jax.train.predictors.base import Outputs
from ivon_jax.train.predictors.linearised import Linearised, probit, softmax
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.registry import predictor_of
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import prepare

KEY = jax.random.key(0)
STREAMS = Streams.from_seed(5)


def gaussians(seed: int, rank: int) -> tuple[jax.Array, jax.Array]:
    """Means and covariances of logits of two classes."""
    rng = np.random.default_rng(seed)
    root = 2 * rng.normal(size=(4, 2, rank))
    values = rng.normal(size=(4, 2)), root @ root.swapaxes(1, 2)
    return jnp.float32(values[0]), jnp.float32(values[1])


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([1, 2]))
def test_two_classes_are_an_integral_over_their_difference(seed, rank):
    """Of rank 1 the covariance is singular, as of two outputs that move together."""
    mean, covariance = gaussians(seed, rank)
    found = np.exp(softmax(mean, covariance, KEY, 20_000))
    c = np.asarray(covariance, np.float64)
    difference = np.asarray(mean[:, 1] - mean[:, 0], np.float64)
    deviation = np.sqrt(c[:, 0, 0] + c[:, 1, 1] - 2 * c[:, 0, 1])
    nodes, weights = np.polynomial.hermite_e.hermegauss(99)
    at = difference[:, None] + deviation[:, None] * nodes
    wanted = (1 / (1 + np.exp(-at))) @ weights / np.sqrt(2 * np.pi)
    # A probability's deviation is at most 1/2.
    np.testing.assert_allclose(found[:, 1], wanted, rtol=0, atol=6 * 0.5 / 20_000**0.5)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)


def test_probit_is_its_formula():
    mean, covariance = gaussians(0, 2)
    found = probit(mean, covariance)
    for row, f, c in zip(found, mean, covariance, strict=True):
        variance = np.diag(np.asarray(c))
        np.testing.assert_allclose(
            row, f / np.sqrt(1 + np.pi * variance / 8), rtol=1e-6
        )


# Runs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    model, data = tiny.write_task(place, layers=2)
    config = TrainConfig(
        model,
        data=data,
        lora=LoraConfig(rank=2),
        hyper=IvonLoraHyper(steps=8, batch_size=8, learning_rate=0.3, gamma=50.0),
    )
    cli.train(config, place / "run")
    return place, config


@pytest.fixture(scope="module")
def problem(folder):
    return prepare(folder[1], ["train", "test"])


@pytest.fixture(scope="module")
def posterior(folder):
    return Posterior.load(folder[0] / "run" / "posterior.safetensors")


def predicted(problem, posterior, predictor, **settings):
    test = problem.splits["test"]
    return predict(problem, test, posterior, predictor, STREAMS, **settings)


def outputs(problem, indices):
    """The outputs of a batch, as a predictor gets them."""

    def forward(params, batch, dropout):
        return outputs_of(problem, params, batch)

    return Outputs(forward, batch_of(problem, indices))


def test_the_covariance_is_the_dense_form(problem, posterior):
    """Of derivatives for all rows at once, without the method's own way to them."""
    batch = outputs(problem, [3, 1, 4, 15])

    def row(logits):
        mean, jacobian = linearised.with_jacobian(logits, posterior.mean)
        return mean, posterior.covariance(jacobian)

    mean, found = batch.map_rows(row, 2)
    whole = jax.jacrev(batch)(posterior.mean)
    flat, _ = jax.tree.flatten(jax.tree.map(lambda x: x.reshape(4, 2, -1), whole))
    precision = [posterior.precision[n] for n in sorted(posterior.precision)]
    variance = 1 / np.concatenate([np.ravel(p) for p in precision]).astype(np.float64)
    dense = np.concatenate(flat, axis=2).astype(np.float64)
    wanted = np.einsum("bcp,p,bkp->bck", dense, variance, dense)
    np.testing.assert_allclose(mean, batch(posterior.mean), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3 * wanted.max())


@pytest.fixture(scope="module")
def wanted(problem, posterior):
    return predicted(problem, posterior, Linearised())


@pytest.mark.parametrize("bytes_held", [1, 2**13, 2**28])
def test_neither_memory_nor_batches_change_it(
    problem, posterior, wanted, bytes_held, monkeypatch
):
    monkeypatch.setattr(linearised, "JACOBIANS", bytes_held)
    jax.clear_caches()
    found = predicted(problem, posterior, Linearised(), batch_size=12)
    assert found.shape == (1, len(problem.splits["test"]), 2)
    np.testing.assert_allclose(np.exp(found), np.exp(wanted), rtol=0, atol=1e-4)


def test_a_narrow_posterior_gives_the_mean_and_a_wide_one_does_not(problem, posterior):
    mean = np.exp(predicted(problem, posterior, Mean()))
    for link in ("softmax", "probit"):
        narrow = np.exp(predicted(problem, posterior, Linearised(link, tau=1e6)))
        np.testing.assert_allclose(narrow, mean, rtol=0, atol=1e-3)
        wide = np.exp(predicted(problem, posterior, Linearised(link, tau=1e-2)))
        assert wide.max(-1).mean() < mean.max(-1).mean() - 0.01


def test_it_is_the_average_over_samples_of_a_nearly_linear_model(problem, posterior):
    """Both move the same way from the mean, to the first order of the variance."""
    mean, linear, sampled = (
        np.exp(predicted(problem, posterior, predictor, chunk_size=None)).mean(0)
        for predictor in (Mean(), Linearised(tau=2.0), Samples(400, tau=2.0))
    )
    moved = np.abs(linear - mean).max()
    assert moved > 1e-3
    assert np.abs(linear - sampled).mean() < moved


@pytest.mark.parametrize(
    "mesh", [pytest.param("data=2,fsdp=2", marks=pytest.mark.slow), "data=2,tensor=2"]
)
def test_a_mesh_changes_nothing(folder, posterior, wanted, mesh):
    split = prepare(dataclasses.replace(folder[1], mesh=mesh), ["test"])
    found = predicted(split, posterior, Linearised())
    np.testing.assert_allclose(np.exp(found), np.exp(wanted), rtol=0, atol=1e-4)


def test_a_run_is_evaluated_and_its_row_rebuilds_the_predictor(folder, capsys):
    out = folder[0] / "run"
    cli.evaluate(out, samples=2, tau=3.0, linearised="softmax", logit_samples=500)
    found = json.loads((out / "evaluation-linearised-tau3.0.json").read_text())
    row = found["rows"][-1]
    assert predictor_of(row) == Linearised("softmax", 500, 3.0)
    assert "linearised, softmax, tau 3, prune 0" in capsys.readouterr().out


def test_numbers_have_no_probabilities(tmp_path):
    model, data = tiny_encoder.write_task(tmp_path, "stsb")
    config = TrainConfig(model, data=data, lora=LoraConfig(rank=2))
    problem = prepare(config, ["test"])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), problem.shapes)
    with pytest.raises(ValueError, match="^linearised: only for classes"):
        predicted(problem, Posterior.point(zeros), Linearised("probit"))


def test_a_point_has_no_gaussian(tmp_path):
    model, data = tiny.write_task(tmp_path, layers=1)
    config = TrainConfig(
        model,
        method="adam",
        data=data,
        lora=LoraConfig(rank=2),
        hyper=AdamHyper(steps=1, batch_size=4, warmup=0),
    )
    cli.train(config, tmp_path / "run")
    message = "^linearised: the posterior is not a Gaussian$"
    with pytest.raises(ValueError, match=message):
        cli.evaluate(tmp_path / "run", linearised="softmax")
    members = Particles.of([{"w": jnp.ones(2)}] * 2)
    with pytest.raises(ValueError, match=message):
        Linearised().split(members, 0.0)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [("logit_samples", 0, ">= 1"), ("tau", 0.0, "a number > 0"), ("prune", 1.0, "in")],
)
def test_settings_out_of_range(field, value, wanted):
    with pytest.raises(ValueError, match=f"^{field}: {value} is not {wanted}"):
        Linearised(**{field: value})
