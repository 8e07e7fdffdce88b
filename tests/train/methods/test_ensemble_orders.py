"""Members with an order of their own, against runs of Adam on their batches."""

import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_runs import result, stop_after

from ivon_jax.lora import LoraConfig
from ivon_jax.testing import check_method
from ivon_jax.train import loop
from ivon_jax.train.config import TrainConfig, make_method, resolve
from ivon_jax.train.data.batches import Batch, train_batches
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.base import Minibatch
from ivon_jax.train.methods.ensemble import Ensemble, EnsembleHyper
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.problem import Problem, prepare, train_layout
from ivon_jax.train.runs import identity

COUNT = 2
SAME = {"steps": 4, "batch_size": 8, "warmup": 1, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    """Four rows of two texts for each member, on two devices in two micro-batches."""
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=1)
    lora = LoraConfig(rank=2, dropout=0.0)
    config = TrainConfig(model, data=data, lora=lora, mesh="data=2", accumulate=2)
    hyper = EnsembleHyper(**SAME, members=COUNT, order="own")
    config = dataclasses.replace(config, method="ensemble", hyper=hyper)
    return resolve(config, "custom", 64)


@pytest.fixture(scope="module")
def problem(config) -> Problem:
    return prepare(config)


@pytest.fixture(scope="module")
def trained(config, problem, tmp_path_factory) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("run") / "run"
    return loop.train(problem, config, out).members, out


def member(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


class Own:
    """The batches of one member: its rows of those of all."""

    def __init__(self, problem: Problem, config: TrainConfig, index: int) -> None:
        prefix, layout = train_layout(problem, config)
        rest = problem.splits["train"].without_prefix(len(prefix))
        self.all, self.index = train_batches(rest, layout, config.seed), index

    def __next__(self) -> Batch:
        return jax.tree.map(lambda leaf: leaf[self.index :: COUNT], next(self.all))

    def get_state(self) -> dict[str, Any]:
        return {}


def test_members_are_runs_of_adam_in_their_orders(
    config, problem, trained, tmp_path, monkeypatch
):
    alone = dataclasses.replace(config, method="adam", hyper=AdamHyper(**SAME))
    alone = resolve(alone, "custom", 64)

    def fresh(key: Any) -> Any:
        return problem.network.trainable.fresh(problem.network.module, key)

    starts = make_method(config).start(fresh, Streams.from_seed(config.seed).adapters)
    for index in range(COUNT):
        own = Own(problem, config, index)
        monkeypatch.setattr(loop, "train_batches", lambda *_, own=own, **__: own)
        start = dataclasses.replace(problem, start=member(starts, index))
        found = loop.train(start, alone, tmp_path / f"{index}").mean
        chex.assert_trees_all_close(
            member(trained[0], index), found, rtol=1e-4, atol=1e-6
        )
        with pytest.raises(AssertionError):  # nor is it the other's batches
            chex.assert_trees_all_close(
                member(trained[0], 1 - index), found, rtol=1e-2, atol=1e-3
            )


def test_an_interrupted_run_goes_on_to_the_same_bits(
    config, problem, trained, tmp_path
):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted, match="after step 2 of 4"):
            loop.train(problem, config, tmp_path / "run")
    found = loop.train(problem, config, tmp_path / "run", resume=True)
    chex.assert_trees_all_equal(found.members, trained[0])
    assert result(tmp_path / "run") == result(trained[1])


def test_the_weights_of_each_member_sum_to_one():
    """As texts with unequally many learnt tokens have them."""
    hyper = EnsembleHyper(steps=1, members=2, order="own").resolve("text", 8)
    weights = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], np.float32)
    numbers = np.array([[1, 2], [3, 4], [6, 7], [8, 9]], np.float32)
    lengths = np.ones((4, 1), np.int32)
    batch = Batch(np.zeros((4, 1), np.int32), lengths, numbers, weights / weights.sum())
    minibatch = Minibatch(jax.tree.map(jnp.asarray, batch), {})

    def loss(params: Any, minibatch: Minibatch) -> Any:
        batch = minibatch.batch
        return jnp.sum(batch.weights * params * batch.labels)

    value, grads = Ensemble(hyper)._value_and_grad(
        loss, jnp.array([1.0, 10.0]), minibatch
    )
    np.testing.assert_allclose(grads, [(1 + 2 + 6) / 3, 3 / 1], rtol=1e-6)
    np.testing.assert_allclose(value, np.mean([3.0, 30.0]), rtol=1e-6)


def test_the_contract():
    hyper = EnsembleHyper(steps=3, members=2, order="own").resolve("custom", 8)
    check_method(Ensemble(hyper))


def test_runs_of_before_there_was_the_choice_saw_the_same(config, tmp_path):
    hyper = EnsembleHyper(**SAME, members=COUNT)
    now = resolve(dataclasses.replace(config, hyper=hyper), "custom", 64)
    described = identity.describe(now, {})
    before = {k: v for k, v in described.items() if k != "hyper.order"}
    identity.check_same(tmp_path, before, described)
    own = identity.describe(config, {})
    with pytest.raises(ValueError, match="^hyper.order: is now own, but .* with same"):
        identity.check_same(tmp_path, before, own)
