"""A run of Laplace-LoRA predicts by its linearised model, on new rows too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_fits
from tiny_inference import command, predicted, texts
from tiny_runs import outputs_of

import ivon_jax
from ivon_jax import load_posterior
from ivon_jax._tree import by_path
from ivon_jax.train.data.batches import collate
from ivon_jax.train.data.layout import Shape
from ivon_jax.train.data.task import Example


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("predict-laplace")
    config = tiny_fits.write_task(place)
    tiny_fits.train(config, place / "adam", "adam")
    words = ("--method", "laplace-kfac", "--link", "probit", "--prior-precision", 2)
    out = ("--out", place / "laplace")
    assert command("fit", place / "adam", *words, *out) == 0
    return place


def by_hand(place, rows):
    """The probit probabilities, with Jacobians and dense covariances."""
    problem = ivon_jax.load(place / "laplace").source.problem
    posterior, _ = load_posterior(place / "laplace" / "posterior.safetensors")
    encoded = problem.encode([Example(tiny.PROMPT.format(**row), 0) for row in rows])
    length = int(encoded.lengths.max())
    differentiated = jax.jit(
        jax.jacrev(lambda params, batch: outputs_of(problem, params, batch)[0])
    )
    found = []
    for row in range(len(rows)):
        batch = collate(encoded, np.array([[row]]), Shape(length, length))
        batch = jax.device_put(batch)
        mean = outputs_of(problem, posterior.mean, batch)[0]
        jacobian = by_path(differentiated(posterior.mean, batch))
        variance = np.zeros(len(mean))
        for c in range(len(mean)):
            one = {name: leaf[c : c + 1] for name, leaf in jacobian.items()}
            tree = jax.tree.unflatten(
                jax.tree.structure(posterior.mean),
                [one[name] for name in by_path(posterior.mean)],
            )
            variance[c] = posterior.covariance(tree)[0, 0]
        found.append(jax.nn.softmax(mean / np.sqrt(1 + np.pi / 8 * variance)))
    return np.stack(found)


def test_predictions_of_new_rows_are_the_linearised_ones(place, tmp_path):
    rows = texts(6)
    found = predicted(place / "laplace", tmp_path / "out", rows)
    probs = np.array([list(line["probabilities"].values()) for line in found])
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        wanted = by_hand(place, rows)
    np.testing.assert_allclose(probs, wanted, atol=1e-4)
    # A linearised model has one draw: no samples that could disagree.
    assert all(line["mutual_information"] == 0 for line in found)
    mean = ivon_jax.load(place / "adam").predict(rows).probs
    assert np.abs(mean - probs).max() > 1e-3
    assert jnp.all(probs.max(axis=1) <= mean.max(axis=1) + 1e-6)


def test_it_is_calibrated_like_any_other(place, tmp_path):
    dev = tiny.write_rows(tmp_path / "dev.jsonl", tiny.rows(40, 3))
    words = ("--file", dev, "--conformal", 0.2)
    assert command("calibrate", place / "laplace", *words) == 0
    results = ivon_jax.load(place / "laplace").predict(texts(5))
    assert results.sets.any(axis=1).all()
    plain = ivon_jax.load(place / "laplace").predict(texts(5), uncalibrated=True)
    np.testing.assert_array_equal(
        results.probs.argmax(axis=1), plain.probs.argmax(axis=1)
    )
    assert np.abs(results.probs - plain.probs).max() > 0
    (place / "laplace" / "calibration.json").unlink()
