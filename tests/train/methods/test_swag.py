"""SWAG as a method: which iterates of which optimizer it collects."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from tiny_runs import stop_after

from ivon_jax import LowRank
from ivon_jax.iterates import Iterates
from ivon_jax.lora import LoraConfig
from ivon_jax.models.peft_io import load_adapter
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.adam import Adam, AdamHyper
from ivon_jax.train.methods.base import Minibatch
from ivon_jax.train.methods.swag import Swag, SwagHyper
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.runs import run

START = {"layer": {"a": jnp.asarray([[1.0, -2.0]]), "b": jnp.asarray([[0.5], [3.0]])}}
NOTHING = Minibatch((), {})


def loss(params, minibatch):
    """A quadratic with another curvature for each entry."""
    a, b = params["layer"]["a"], params["layer"]["b"]
    scale = jnp.asarray([[1.0, 3.0]])
    return jnp.sum(scale * jnp.square(a - 1)) + jnp.sum(jnp.square(b.T * scale))


def method(**values) -> Swag:
    given = {"steps": 20, "warmup": 4, "learning_rate": 0.1, **values}
    return Swag(SwagHyper(**given).resolve("commonsense", num_examples=8))


def states(swag: Swag, steps: int) -> list:
    """Parameters and state after each step."""
    params, state = START, swag.init(START)
    step = jax.jit(
        lambda params, state: swag.step(loss, jax.random.key(0), params, state, NOTHING)
    )
    out = []
    for _ in range(steps):
        found = step(params, state)
        params, state = found.params, found.state
        out.append((params, state))
    return out


def rate(step: int) -> float:
    """Of 20 steps with 4 of warm-up and half collected at a quarter of the peak."""
    if step < 4:
        return 0.1 * step / 4
    return 0.1 * (1 - 0.75 * min((step - 4) / 6, 1))


def adam_by_hand(steps: int) -> list:
    """Adam's iterates at the rates of `rate`."""
    params, tx = START, optax.scale_by_adam(0.9, 0.999, 1e-8)
    state, out = tx.init(START), []
    with jax.numpy_dtype_promotion("standard"):
        for step in range(steps):
            updates, state = tx.update(jax.grad(loss)(params, None), state)
            params = jax.tree.map(lambda p, u, s=step: p - rate(s) * u, params, updates)
            out.append(params)
    return out


@pytest.mark.parametrize(
    ("iterates", "every"), [(5, 2), (50, 1), (3, 3), (2, 5), (4, 2)]
)
def test_the_last_iterates_at_a_constant_rate_are_collected(iterates, every):
    swag = method(collect_share=0.5, collect_rate=0.25, iterates=iterates, deviations=3)
    params, state = states(swag, 20)[-1]
    wanted = Iterates.start(START, min(3, 10 // every))
    for step, theta in enumerate(adam_by_hand(20), start=1):
        if step > 10 and (step - 10) % every == 0:
            wanted = wanted.add(theta)
    assert int(state.iterates.number) == int(wanted.number) == 10 // every
    found, other = swag.posterior(params, state), wanted.posterior()
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-3, atol=1e-6)


def test_before_the_first_iterate_it_is_the_point():
    swag = method()
    for step, (params, state) in enumerate(states(swag, 13), start=1):
        posterior = swag.posterior(params, state)
        variances = jax.tree.leaves(posterior.variance())
        assert any(np.any(leaf) for leaf in variances) == (step >= 12)
        same = jax.tree.map(np.array_equal, posterior.mean, params)
        assert all(jax.tree.leaves(same)) == (step <= 11)


def test_without_a_change_of_rate_it_goes_where_adam_goes():
    """Until it collects, at Adam's own schedule for the steps until then."""
    swag = method(collect_rate=1.0, warmup=10)
    adam = Adam(AdamHyper(steps=20, warmup=10, learning_rate=0.1).resolve("glue", 8))
    params, state = START, adam.init(START)
    for found, _ in states(swag, 10):
        result = adam.step(loss, jax.random.key(0), params, state, NOTHING)
        params, state = result.params, result.state
        for one, two in zip(*map(jax.tree.leaves, (found, params)), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"iterates": 1}, "iterates: 1 is not >= 2"),
        ({"deviations": 1}, "deviations: 1 is not >= 2"),
        ({"collect_share": 0.0}, "collect_share: 0.0 is not in (0, 1]"),
        ({"collect_share": 1.5}, "collect_share: 1.5 is not in (0, 1]"),
        ({"collect_rate": 0.0}, "collect_rate: 0.0 is not a number > 0"),
        ({"collect_share": 0.05}, "collect_share: 0.05 of 20 steps is not >= 2 steps"),
    ],
)
def test_illegal_values(values, message):
    with pytest.raises(ValueError) as caught:
        method(**values)
    assert str(caught.value) == message


def test_no_steps_are_legal_from_an_adapter():
    swag = Swag(SwagHyper(steps=0).resolve("commonsense", 8, may_skip=True))
    found = swag.posterior(START, swag.init(START))
    jax.tree.map(np.testing.assert_array_equal, found.mean, START)


# Runs.


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("model"), layers=1)
    hyper = SwagHyper(steps=6, batch_size=8, warmup=1, learning_rate=0.05)
    return TrainConfig(
        model, method=Swag.name, data=data, lora=LoraConfig(rank=2), hyper=hyper
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    cli.train(config, out)
    return out


def rows(out, name: str) -> list[dict]:
    return json.loads((out / f"evaluation-{name}.json").read_text())["rows"]


def test_a_run_is_sampled_tempered_and_pruned(trained):
    posterior, _ = run.read_posterior(trained)
    assert isinstance(posterior, LowRank)
    cli.evaluate(trained, samples=3, tau=2.0, prune=0.25)
    found = [row["predict"] for row in rows(trained, "3-tau2.0-prune0.25")]
    assert found == ["mean", "samples"]
    cli.evaluate(trained, samples=3, linearised="softmax")
    drawn = run.read_predictions(trained, "3")[0]
    assert not np.allclose(drawn[0], drawn[1], atol=1e-6)


def test_samples_are_exported_as_they_are_evaluated(config, trained, tmp_path):
    cli.export(trained, tmp_path / "out", samples=2, tau=2.0, prune=0.25)
    posterior, _ = run.read_posterior(trained)
    pruned = posterior.prune(0.25)
    key = Streams.from_seed(config.seed).ensemble
    wanted = [pruned.mean, *(pruned.temper(2.0).draw(key, i) for i in range(2))]
    shapes = jax.eval_shape(lambda: wanted[0])
    for name, tree in zip(("", "sample-0", "sample-1"), wanted, strict=True):
        found = load_adapter(tmp_path / "out" / name, shapes, config.lora)
        jax.tree.map(np.testing.assert_array_equal, found, tree)


def test_a_run_interrupted_before_its_first_iterate_is_a_point(
    config, tmp_path, monkeypatch
):
    stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        cli.train(config, tmp_path / "run")
    cli.evaluate(tmp_path / "run")
    assert [row["predict"] for row in rows(tmp_path / "run", "mean")] == ["mean"]
    with pytest.raises(ValueError, match="^prune: the method has no posterior"):
        cli.evaluate(tmp_path / "run", prune=0.5)
