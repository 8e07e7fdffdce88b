"""The trained ensemble, against runs of Adam from the same starts."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
import pytest
import tiny
from tiny_fits import command, one_line

from ivon_jax.lora import LoraConfig
from ivon_jax.testing import check_method
from ivon_jax.train import loop
from ivon_jax.train.config import TrainConfig, make_method, resolve
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.ensemble import Ensemble, EnsembleHyper
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.runs.run import METRICS

COUNT = 3
SAME = {"steps": 6, "batch_size": 8, "warmup": 1, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=1)
    lora = LoraConfig(rank=2, dropout=0.0)
    config = TrainConfig(model, data=data, lora=lora)
    hyper = EnsembleHyper(**SAME, members=COUNT)
    config = dataclasses.replace(config, method="ensemble", hyper=hyper)
    return resolve(config, "custom", 64)


@pytest.fixture(scope="module")
def problem(config) -> Problem:
    return prepare(config)


class Trained(NamedTuple):
    members: Any
    out: Path


@pytest.fixture(scope="module")
def trained(config, problem, tmp_path_factory) -> Trained:
    """A run that was scored at its end."""
    out = tmp_path_factory.mktemp("run") / "run"
    scored = dataclasses.replace(config, eval_steps=6)
    return Trained(loop.train(problem, scored, out).members, out)


def adam_of(config: TrainConfig, **changes: Any) -> TrainConfig:
    changes = {"method": "adam", "hyper": AdamHyper(**SAME)} | changes
    return resolve(dataclasses.replace(config, **changes), "custom", 64)


def starts_of(config: TrainConfig, problem: Problem) -> Any:
    """The first parameters of all members."""

    def fresh(key: Any) -> Any:
        return problem.network.trainable.fresh(problem.network.module, key)

    return make_method(config).start(fresh, Streams.from_seed(config.seed).adapters)


def member(tree: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def test_members_are_runs_of_adam(config, problem, trained, tmp_path):
    starts, losses = starts_of(config, problem), []
    for index in range(COUNT):
        alone = dataclasses.replace(problem, start=member(starts, index))
        found = loop.train(alone, adam_of(config), tmp_path / f"{index}")
        chex.assert_trees_all_close(
            member(trained.members, index), found.mean, rtol=1e-4, atol=1e-6
        )
        # Another start leads elsewhere.
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(
                member(trained.members, index - 1), found.mean, rtol=1e-2, atol=1e-3
            )
        losses.append(losses_of(tmp_path / f"{index}"))
    np.testing.assert_allclose(losses_of(trained.out), np.mean(losses, 0), rtol=1e-4)


def losses_of(out: Path) -> list[float]:
    lines = (out / METRICS).read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def with_dropout(problem: Problem, config: TrainConfig) -> tuple[Problem, TrainConfig]:
    config = dataclasses.replace(config, lora=LoraConfig(rank=2, dropout=0.3))
    return dataclasses.replace(prepare(config), splits=problem.splits), config


def test_the_first_member_is_what_adam_trains(config, problem, tmp_path):
    """With its start, its batches and its dropout masks."""
    noisy, config = with_dropout(problem, config)
    found = loop.train(noisy, config, tmp_path / "ensemble")
    wanted = loop.train(noisy, adam_of(config), tmp_path / "adam")
    first = member(found.members, 0)
    chex.assert_trees_all_close(first, wanted.mean, rtol=1e-4, atol=1e-6)


def test_masks_differ_between_members(config, problem, tmp_path):
    noisy, config = with_dropout(problem, config)
    same = member(starts_of(config, noisy), 0)
    noisy = dataclasses.replace(noisy, start=same)
    found = loop.train(noisy, config, tmp_path / "run").members
    for index in range(1, COUNT):
        with pytest.raises(AssertionError):
            chex.assert_trees_all_close(
                member(found, index), member(found, 0), rtol=1e-2, atol=1e-3
            )


def test_scores_in_training_are_the_ensembles(trained):
    last = json.loads((trained.out / METRICS).read_text().splitlines()[-1])
    assert command("evaluate", trained.out) == 0
    path = trained.out / f"evaluation-{COUNT}.json"
    (row,) = json.loads(path.read_text())["rows"]
    assert row["samples"] == COUNT
    assert last["eval_nll"] == pytest.approx(row["nll"], rel=1e-5)


def test_the_contract():
    hyper = EnsembleHyper(steps=3, members=2).resolve("custom", 8)
    check_method(Ensemble(hyper))


def test_one_member_is_no_ensemble(config, capsys, tmp_path):
    with pytest.raises(ValueError, match=r"^members: 1 is not >= 2"):
        EnsembleHyper(members=1).resolve("custom", 64)
    words = ("--method", "adam", "--members", "3", "--out", tmp_path / "out")
    assert command("train", *words) == 2
    assert "members: method adam has" in one_line(capsys)
