"""TFB: the posterior's geometry, the search, and fits of runs and adapters."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_fits import command, one_line, train, write_task

from ivon_jax.posterior import Posterior
from ivon_jax.train.fits import tfb
from ivon_jax.train.fits.tfb import SEARCHES, Search, Tfb, bisect, noised, rotated
from ivon_jax.train.runs import fitted


def pair(rng, inside, rank, out, layers=(), degenerate=0):
    """Adapters a (inside, rank) and b (rank, out), b of a lower rank if so wanted."""
    a = rng.normal(size=(*layers, inside, rank))
    b = rng.normal(size=(*layers, rank, out))
    if degenerate:
        b[..., -degenerate:, :] = 0
        b = np.linalg.qr(rng.normal(size=(rank, rank)))[0] @ b
    return {"layer": {"a": jnp.float32(a), "b": jnp.float32(b)}}


def product(adapters):
    a, b = (np.asarray(adapters["layer"][x], np.float64) for x in "ab")
    return a @ b


@given(
    seed=st.integers(0, 2**16),
    inside=st.integers(1, 6),
    rank=st.integers(1, 5),
    out=st.integers(1, 7),
    layers=st.sampled_from([(), (3,)]),
    zeros=st.integers(0, 4),
)
@settings(max_examples=60, deadline=None)
def test_rotation_keeps_the_product(seed, inside, rank, out, layers, zeros):
    rng = np.random.default_rng(seed)
    zeros = min(zeros, rank - 1)
    before = pair(rng, inside, rank, out, layers, zeros)
    after, scales = rotated(before)
    np.testing.assert_allclose(product(after), product(before), atol=1e-5)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, before)
    b, d = np.asarray(after["layer"]["b"], np.float64), scales["layer/a"]
    gram = b @ np.swapaxes(b, -1, -2)
    wanted = np.square(d)[..., None] * np.eye(rank)
    np.testing.assert_allclose(gram, wanted, atol=1e-5 * d.max() ** 2)
    # Every dimension that B does not reach is a point.
    assert ((d > 0).sum(-1) == min(rank - zeros, out)).all()
    precision = noised(after, scales, 0.1).precision["layer/a"]
    assert not np.isnan(precision).any()
    assert np.array_equal(np.isinf(precision)[..., 0, :], d == 0)


def test_the_weight_changes_by_isotropic_noise_in_the_range_of_b():
    """Its rows have covariance sigma^2 P, P the projection on the rows of B."""
    sigma, count = 0.3, 40_000
    adapters, scales = rotated(pair(np.random.default_rng(0), 2, 3, 5, degenerate=1))
    drawn = noised(adapters, scales, sigma).sample(jax.random.key(0), count)
    a, b = (np.asarray(drawn["layer"][x], np.float64) for x in "ab")
    changes = (a @ b - product(adapters)).reshape(count, -1)
    rows = np.asarray(adapters["layer"]["b"], np.float64)[:2]
    projection = rows.T @ np.linalg.inv(rows @ rows.T) @ rows
    wanted = sigma**2 * np.kron(np.eye(2), projection)
    # The error of a covariance is at most sqrt(2) sigma^2 / sqrt(count) an entry.
    bound = 5 * math.sqrt(2) * sigma**2 / math.sqrt(count)
    np.testing.assert_allclose(np.cov(changes.T), wanted, atol=bound)
    np.testing.assert_allclose(changes.mean(0), 0, atol=5 * sigma / math.sqrt(count))


def test_layers_without_b_are_points_beside_others():
    rng = np.random.default_rng(1)
    some, none = (pair(rng, 4, 2, 3)["layer"] for _ in range(2))
    none["b"] = jnp.zeros_like(none["b"])
    mean, scales = rotated({"x": some, "y": none})
    posterior = noised(mean, scales, 1.0)
    assert np.isinf(posterior.precision["y/a"]).all()
    assert np.isfinite(posterior.precision["x/a"]).all()
    sample = posterior.draw(jax.random.key(0))
    assert jax.tree.all(jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), sample))
    np.testing.assert_array_equal(sample["y"]["a"], mean["y"]["a"])


@pytest.mark.parametrize("leaves", [{"kernel": jnp.ones((2, 2))}, "zero"])
def test_what_has_no_b_is_refused(leaves):
    if leaves == "zero":
        leaves = {"a": jnp.ones((3, 2)), "b": jnp.zeros((2, 4))}
    with pytest.raises(ValueError, match="^tfb: needs adapters with a B that is not"):
        rotated({"layer": leaves})


@given(limit=st.floats(1e-5, 1.0), criterion=st.sampled_from(["nll", "accuracy"]))
def test_the_largest_that_holds(limit, criterion):
    """Against all values of a fine grid, to the width of the last interval."""
    how = SEARCHES[criterion]
    found = bisect(criterion, lambda sigma: sigma <= limit, how)
    grid = np.geomspace(how.low, how.high, 2**how.halvings + 1)
    inside = grid[grid <= limit * (1 + 1e-9)]
    if len(inside) == 0:
        assert found == how.low
    elif len(inside) == len(grid):
        np.testing.assert_allclose(found, grid[-2], rtol=1e-9)
    else:
        assert inside[-1] / found == pytest.approx(1, rel=1e-9)


def test_the_published_search_by_hand():
    """Halves [0.2, 1] to 0.6, 0.4, 0.5; the smallest that did not hold is 0.5."""
    how, tried = Search(0.0, 0.2, 1.0, 3), []

    def holds(sigma):
        tried.append(sigma)
        return sigma < 0.45

    assert bisect("official", holds, how) == pytest.approx(0.5)
    assert tried == pytest.approx([0.6, 0.4, 0.5])
    assert bisect("official", lambda sigma: True, how) == 1.0  # none did not hold


def test_changes_by_hand():
    """Labels are the classes predicted without noise, 0 and 1."""
    without = np.log([[0.8, 0.2], [0.5, 0.5 + 1e-9]])
    noisy = np.log([[0.4, 0.6], [0.25, 0.75]])
    found = tfb._changes(without, noisy)
    before, after = -math.log(0.8 * 0.5) / 2, -math.log(0.4 * 0.75) / 2
    share = (after - before) / before
    assert found["nll"] == pytest.approx(share, rel=1e-6)
    assert found["official"] == pytest.approx(share / 2, rel=1e-6)
    assert found["accuracy"] == 0.5
    certain = np.log([[1.0, 1e-30]])
    assert tfb._changes(certain, certain)["nll"] == math.inf


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "^tolerance: 0.0 is not a number > 0$"),
        ({"samples": 0}, "^samples: 0 is not >= 1$"),
        ({"anchors": 0}, "^anchors: 0 is not >= 1$"),
        ({"low": 0.3}, "^low: 0.3 is not < high, 0.2$"),
        ({"high": 1e-4}, "^low: 0.0001 is not < high, 0.0001$"),
    ],
)
def test_illegal_options(options, message):
    with pytest.raises(ValueError, match=message):
        Tfb(**options)


# Of runs.


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, noisy data, and a run of Adam."""
    place = tmp_path_factory.mktemp("tfb")
    train(write_task(place, held_out=None), place / "adam", "adam")
    return place


FEW = ("--samples", 2, "--anchors", 16)


@pytest.fixture(scope="module")
def made(place):
    out = place / "noised"
    words = ("fit", place / "adam", "--method", "tfb", *FEW, "--out", out)
    assert command(*words) == 0
    return out


def test_a_run_gets_a_posterior(place, made):
    record = fitted.read(made)
    assert record.method == "tfb(adam)"
    sigma, curve = record.numbers["sigma"], record.numbers["curve"]
    assert len(curve) == SEARCHES["nll"].halvings
    held = [point["sigma"] for point in curve if point["nll"] <= 0.003]
    assert sigma == max(held, default=1e-4)
    assert all(p["sigma"] > sigma for p in curve if p["nll"] > 0.003)
    posterior = Posterior.load(made / "posterior.safetensors")
    assert all(name.endswith("/a") for name in posterior.precision)
    mean, scales = rotated(Posterior.load(place / "adam/posterior.safetensors").mean)
    wanted = noised(mean, scales, sigma)
    for name, leaf in wanted.precision.items():
        np.testing.assert_allclose(posterior.precision[name], leaf, rtol=1e-6)


def test_it_is_evaluated_as_any_run(place, made):
    """Its mean predicts as the run that it is made of."""
    assert command("evaluate", made) == 0
    assert command("evaluate", place / "adam") == 0
    rows = json.loads((made / "evaluation-2.json").read_text())["rows"]
    (wanted,) = json.loads((place / "adam/evaluation-mean.json").read_text())["rows"]
    assert [row["predict"] for row in rows] == ["mean", "samples"]
    assert rows[0]["nll"] == pytest.approx(wanted["nll"], rel=1e-4)
    assert rows[1]["nll"] != rows[0]["nll"]
    words = ("--samples", 3, "--tau", 2, "--prune", 0.2)
    assert command("evaluate", made, *words) == 0


@pytest.mark.parametrize("criterion", ["accuracy", "official"])
def test_other_criteria(criterion, place, tmp_path, capsys):
    words = ("--method", "tfb", "--criterion", criterion, *FEW, "--out", tmp_path / "x")
    assert command("fit", place / "adam", *words) == 0
    numbers = fitted.read(tmp_path / "x").numbers
    how = SEARCHES[criterion]
    assert len(numbers["curve"]) == how.halvings
    held = [p["sigma"] for p in numbers["curve"] if p[criterion] <= how.tolerance]
    tried = {point["sigma"] for point in numbers["curve"]}
    noted = capsys.readouterr().err
    assert ("every sigma that was tried holds" in noted) == (len(held) == len(tried))
    assert ("no sigma that was tried holds" in noted) == (not held)
    if criterion == "official":
        assert numbers["sigma"] == min(tried - set(held), default=how.high)
    else:
        assert numbers["sigma"] == max(held, default=how.low)


@pytest.mark.parametrize(
    ("end", "note"),
    [
        (("--low", 1e-9, "--high", 1e-8), "every sigma that was tried holds"),
        (("--tolerance", 1e-12, "--low", 1, "--high", 9), "no sigma that was tried"),
    ],
    ids=["high", "low"],
)
def test_a_search_that_ends_where_it_began_is_noted(place, tmp_path, capsys, end, note):
    words = ("--method", "tfb", *FEW, *end, "--out", tmp_path / "x")
    assert command("fit", place / "adam", *words) == 0
    assert note in capsys.readouterr().err


def test_an_adapter_gets_a_posterior(place, tmp_path):
    assert command("export", place / "adam", "--out", tmp_path / "peft") == 0
    data = place / "data"
    words = ("--adapter", tmp_path / "peft", "--model", place / "model")
    words += ("--task", "custom", "--prompt", "Text: {text} Answer:")
    words += ("--labels", "no", "yes", "--train-file", data / "train.jsonl")
    words += ("--eval-file", data / "eval.jsonl", "--out", tmp_path / "new")
    assert command("fit", "--method", "tfb", *FEW, *words) == 0
    assert fitted.read(tmp_path / "new").method == "tfb(adapter)"
    assert Posterior.load(tmp_path / "new/posterior.safetensors").spread
    assert command("evaluate", tmp_path / "new") == 0


def test_a_run_without_adapters_is_refused(place, tmp_path, capsys):
    data = place / "data"
    words = ("--model", place / "model", "--task", "custom")
    words += ("--prompt", "Text: {text} Answer:", "--labels", "no", "yes")
    words += ("--train-file", data / "train.jsonl", "--eval-file", data / "eval.jsonl")
    words += ("--train", "full", "--method", "adam", "--steps", 1, "--batch-size", 8)
    assert command("train", *words, "--out", tmp_path / "full") == 0
    capsys.readouterr()
    out = tmp_path / "out"
    assert command("fit", tmp_path / "full", "--method", "tfb", "--out", out) == 2
    assert "tfb: needs adapters with a B that is not zero" in one_line(capsys)
    assert not out.exists()
