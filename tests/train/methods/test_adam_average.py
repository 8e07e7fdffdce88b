"""Averages of Adam's iterates, and how a run is evaluated at each."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from ivon_jax import Points
from ivon_jax.lora import LoraConfig
from ivon_jax.posterior import Posterior
from ivon_jax.train import cli
from ivon_jax.train.config import CompareConfig, Hypers, TrainConfig
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.adam_average import AdamAverage, AdamAverageHyper
from ivon_jax.train.methods.base import Minibatch
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.point import Point
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import run

START = {"layer": {"a": jnp.asarray([[1.0, -2.0]]), "b": jnp.asarray([[0.5], [3.0]])}}


def loss(params, minibatch):
    return jnp.sum(jnp.square(params["layer"]["a"] @ params["layer"]["b"] - 1))


def flat(params) -> np.ndarray:
    leaves = [np.ravel(leaf) for leaf in jax.tree.leaves(params)]
    return np.concatenate(leaves).astype(np.float64)


def points_of(steps: int, **shares: float) -> list[Points]:
    """The posterior after each step."""
    hyper = AdamAverageHyper(steps=steps, warmup=2, learning_rate=0.1, **shares)
    method = AdamAverage(hyper.resolve("commonsense", num_examples=8))
    params, state = START, method.init(START)
    step = jax.jit(
        lambda params, state: method.step(
            loss, jax.random.key(0), params, state, Minibatch((), {})
        )
    )
    out = []
    for _ in range(steps):
        found = step(params, state)
        params, state = found.params, found.state
        out.append(method.posterior(params, state))
    return out


@pytest.mark.parametrize(("share", "tail"), [(0.5, 8), (0.25, 4), (1.0, 16), (0.01, 0)])
def test_the_tail_is_the_mean_of_the_last_iterates(share, tail):
    found = points_of(16, tail_share=share)
    iterates = [flat(points.others["last"]) for points in found]
    for step, points in enumerate(found, start=1):
        late = iterates[16 - tail : step] or iterates[step - 1 : step]
        wanted = np.mean(late, axis=0)
        np.testing.assert_allclose(flat(points.mean), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("share", "decay"), [(0.25, 0.75), (0.5, 0.875), (0.01, 0.0)])
def test_the_exponential_average_is_optax_s(share, decay):
    found = points_of(16, ema_share=share)
    ema = optax.ema(decay, debias=True)
    state, weights, total = ema.init(START), [], np.zeros(4)
    for points in found:
        with jax.numpy_dtype_promotion("standard"):
            wanted, state = ema.update(points.others["last"], state)
        average = flat(points.others["ema"])
        np.testing.assert_allclose(average, flat(wanted), rtol=1e-4, atol=1e-6)
        # And by its definition.
        weights = [decay * w for w in weights] + [1 - decay]
        total = decay * total + (1 - decay) * flat(points.others["last"])
        np.testing.assert_allclose(average, total / sum(weights), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["tail_share", "ema_share"])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_illegal_shares(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: {value} is not in \(0, 1\]$"):
        points_of(4, **{name: value})


# Runs.

COMMON = {"steps": 6, "batch_size": 8, "warmup": 1, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("model"), layers=1)
    return TrainConfig(
        model,
        method=AdamAverage.name,
        data=data,
        lora=LoraConfig(rank=2),
        hyper=AdamAverageHyper(**COMMON),
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    cli.train(config, out)
    return out


def test_its_last_iterate_is_adam_s(config, trained, tmp_path):
    adam = dataclasses.replace(config, method="adam", hyper=AdamHyper(**COMMON))
    cli.train(adam, tmp_path / "adam")
    wanted, _ = run.read_posterior(tmp_path / "adam")
    found, _ = run.read_posterior(trained)
    assert isinstance(found, Points)
    last = found.at("last").mean
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7),
        last,
        wanted.mean,
    )
    assert not np.allclose(flat(found.mean), flat(last), rtol=1e-4)


def test_one_run_is_evaluated_at_every_point(config, trained, capsys):
    cli.evaluate(trained)
    shown = capsys.readouterr().out
    rows = json.loads((trained / "evaluation-last.json").read_text())["rows"]
    assert [row["predict"] for row in rows] == ["mean", "point", "point"]
    assert [row.get("point") for row in rows] == [None, "ema", "last"]
    for label in ("adam-average ", "adam-average, last ", "adam-average, ema "):
        assert f"| {label}" in shown
    problem, streams = prepare(config, ["test"]), Streams.from_seed(0)
    points, _ = run.read_posterior(trained)
    for name in ("last", "ema"):
        alone = Posterior.point(points.others[name])
        wanted = predict(problem, problem.splits["test"], alone, Mean(), streams)
        found = run.read_predictions(trained, name)[0]
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.slow  # with all methods: test_compare_fits.py
def test_a_comparison_has_a_row_for_each(config, tmp_path):
    hyper = Hypers(adam_average=AdamAverageHyper(**COMMON))
    shared = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(CompareConfig)
        if hasattr(config, field.name) and field.name != "hyper"
    }
    compared = CompareConfig(**shared, methods=(AdamAverage.name,), hyper=hyper)
    cli.compare(compared, tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    for label in ("adam-average ", "adam-average, last ", "adam-average, ema "):
        assert f"| {label}" in report


def test_a_posterior_without_the_point_is_refused():
    for posterior in (Posterior.point(START), Points(START, {"last": START})):
        with pytest.raises(ValueError, match="^point: .*'ema'"):
            Point("ema").split(posterior, 0.0)


def test_there_are_no_samples_to_export(trained, tmp_path):
    with pytest.raises(ValueError, match="samples: method adam-average has no post"):
        cli.export(trained, tmp_path / "out", samples=2)
    cli.export(trained, tmp_path / "mean")
    kept, _ = run.read_posterior(tmp_path / "mean")
    assert isinstance(kept, Points)
