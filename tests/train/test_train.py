"""Training and prediction end to end, on a tiny model that can learn its task."""

import dataclasses
import json
import re
import signal
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
import tiny_runs
from tiny_runs import batch_of, scripted

from ivon_jax.lora import LoraConfig
from ivon_jax.posterior import Posterior
from ivon_jax.train import loop, step
from ivon_jax.train.config import TrainConfig, make_method, resolve
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.base import Hyper, Method, Result
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.predict import predict, score
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.runs.diagnostics import DIAGNOSTICS
from ivon_jax.train.runs.run import METRICS, POSTERIOR

HYPER = {
    "adam": AdamHyper(steps=80, batch_size=8, learning_rate=1e-2),
    "ivon-lora": IvonLoraHyper(
        steps=80, batch_size=8, learning_rate=0.3, gamma=2000.0, clip_radius=0.02
    ),
}
METHODS = tuple(HYPER)
STREAMS = Streams.from_seed(5)
KEY = STREAMS.ensemble


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=1)
    return TrainConfig(model, data=data, lora=LoraConfig(rank=4, dropout=0.1))


@pytest.fixture(scope="module")
def problem(base) -> Problem:
    return prepare(base)


def config_of(base: TrainConfig, method: Any, **changes: Any) -> TrainConfig:
    config = dataclasses.replace(base, method=method, hyper=HYPER[method], **changes)
    return resolve(config, "custom", 64)


def run(problem: Problem, config: TrainConfig, out: Path) -> Posterior:
    return loop.train(problem, config, out)


def losses(out: Path) -> list[float]:
    lines = (out / METRICS).read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def runs(base, problem, tmp_path_factory) -> dict[str, tuple[Posterior, Path]]:
    folder = tmp_path_factory.mktemp("runs")
    return {
        method: (
            run(problem, config_of(base, method), folder / method),
            folder / method,
        )
        for method in METHODS
    }


def contents(path: Path) -> tuple[dict, dict[str, bytes]]:
    """Header and tensors: the order of the header's fields is the writer's own."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        return file.metadata(), tensors


def same(first: Any, second: Any) -> bool:
    equal = jax.tree.map(
        lambda a, b: a.dtype == b.dtype and np.array_equal(a, b), first, second
    )
    return all(jax.tree.leaves(equal))


def start(problem: Problem, config: TrainConfig):
    """A fresh state, and what a step needs besides."""
    streams = Streams.from_seed(config.seed)
    method = make_method(config)
    state = step.first_state(problem.network, method, None, streams.adapters)
    return method, state, problem.fixed(streams)


def take_step(problem: Problem, method: Any, state: Any, fixed: Any, batch: Any):
    return step.train_step(problem.network, method, state, fixed, batch)


@pytest.mark.parametrize("method", METHODS)
def test_training_learns(method, runs, problem):
    posterior, out = runs[method]
    loss = losses(out)
    assert len(loss) == 80
    assert np.mean(loss[-20:]) < 0.5 * np.mean(loss[:5])
    test = problem.splits["test"]
    labels = test.labels
    majority = np.bincount(labels).max() / len(labels)
    log_probs = predict(problem, test, posterior, Mean(), STREAMS)
    row = score(problem, method, Mean(), log_probs, test)
    assert row["accuracy"] > majority + 0.2
    assert row["accuracy"] == pytest.approx(
        np.mean(log_probs[0].argmax(1) == labels), abs=1e-6
    )


def test_how_often_the_step_is_compiled_is_said(base, problem, tmp_path, capsys):
    train = problem.splits["train"]
    cut = tuple(ids[:2] for ids in train.tokens[1:])
    long = np.resize(train.tokens[0], 17)
    tokens = dataclasses.replace(train, tokens=(long, *cut))
    other = dataclasses.replace(problem, splits={**problem.splits, "train": tokens})
    config = config_of(base, "adam")
    hyper = dataclasses.replace(config.hyper, batch_size=4)  # of no other test
    before = step.train_step._cache_size()
    run(other, dataclasses.replace(config, hyper=hyper), tmp_path / "run")
    said = capsys.readouterr().err
    most = re.search(r"the step is compiled at most (\d+) times$", said, re.MULTILINE)
    assert most and 1 < int(most[1]) <= 3  # one and a half times two padded lengths
    assert 1 < step.train_step._cache_size() - before <= int(most[1])


def test_metrics_name_every_step_in_order(runs):
    for method, extra in (("adam", set()), ("ivon-lora", {"posterior_std"})):
        text = (runs[method][1] / METRICS).read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert [line["step"] for line in lines] == list(range(1, 81))
        for line in lines:
            assert line.keys() == {"step", "loss", "grad_norm", "seconds"} | extra
            assert line["grad_norm"] > 0
        seconds = [line["seconds"] for line in lines]
        assert seconds == sorted(seconds)


def test_a_run_is_diagnosed_if_its_method_can(runs):
    assert not (runs["adam"][1] / DIAGNOSTICS).exists()
    posterior, out = runs["ivon-lora"]
    found = json.loads((out / DIAGNOSTICS).read_text())
    sigma = [leaf**-0.5 for leaf in posterior.precision.values()]
    noise = optax.tree.norm(sigma) / optax.tree.norm(posterior.mean)
    assert found["noise"] == pytest.approx(float(noise), rel=1e-4)
    assert found["steps"] == 80
    assert 0 < found["clipped"] <= 1


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_fixes_the_run(method, runs, base, problem, tmp_path):
    first = contents(runs[method][1] / POSTERIOR)
    run(problem, config_of(base, method), tmp_path / "again")
    run(problem, config_of(base, method, seed=1), tmp_path / "other")
    assert contents(tmp_path / "again" / POSTERIOR) == first
    assert contents(tmp_path / "other" / POSTERIOR) != first
    assert losses(tmp_path / "again") == losses(runs[method][1])
    assert losses(tmp_path / "other") != losses(runs[method][1])


def test_posteriors_are_what_each_method_believes(runs):
    adam, ivon = (runs[method][0] for method in METHODS)
    assert not adam.precision
    assert len(ivon.precision) == len(jax.tree.leaves(ivon.mean)) == 4
    for method in METHODS:
        posterior, out = runs[method]
        loaded = Posterior.load(out / POSTERIOR)
        assert same(loaded.mean, posterior.mean)
        assert same(loaded.precision, posterior.precision)


def test_both_methods_see_the_same(base, problem, tmp_path, monkeypatch):
    """Same adapters at the start, same keys, same batches in the same order."""
    seen: dict[str, list] = {}

    def record(network, method, state, fixed, batch, **_):
        seen.setdefault(method.name, []).append((state.params, batch, fixed.streams))
        return state, tiny_runs.numbers(loss=1.0, finite=1.0)

    monkeypatch.setattr(loop, "train_step", record)
    for method in METHODS:
        run(problem, config_of(base, method), tmp_path / method)
    adam, ivon = (seen[method] for method in METHODS)
    assert len(adam) == len(ivon) == 80
    assert same(adam[0][0], ivon[0][0])
    flat = jax.tree.leaves(adam[0][0])
    assert any(np.any(leaf) for leaf in flat)
    assert all(
        same(a[1], b[1]) and a[2] == b[2] for a, b in zip(adam, ivon, strict=True)
    )
    texts = {
        text.tobytes()
        for _, batch, _ in adam[:8]
        for row, lengths in zip(batch.tokens, batch.lengths, strict=True)
        for text in np.split(np.asarray(row), np.cumsum(lengths))[:-1]
    }
    assert len(texts) == len({ids.tobytes() for ids in problem.splits["train"].tokens})


@pytest.mark.parametrize("method", METHODS)
def test_a_step_leaves_the_base_alone(method, base, problem):
    config = config_of(base, method)
    name, state, fixed = start(problem, config)
    before = jax.tree.map(np.array, problem.frozen)
    adapters = jax.tree.map(np.array, state.params)
    for _ in range(2):  # the learning rate of the first step is 0
        batch, old = batch_of(problem, list(range(8))), state
        state, _ = take_step(problem, name, state, fixed, batch)
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old))  # donated
    assert same(problem.frozen, before)
    assert not same(state.params, adapters)
    assert int(state.step) == 2


# Steps without a finite loss.


@dataclasses.dataclass(frozen=True)
class InfiniteGradient(Method):
    """A method whose loss is fine while its gradient is not."""

    name: ClassVar = "infinite"
    color: ClassVar = "black"
    hyper_type: ClassVar = Hyper

    def init(self, params):
        return jnp.zeros([])

    def step(self, loss, key, params, state, minibatch):
        moved = jax.tree.map(lambda leaf: leaf + 1, params)
        value = loss(params, minibatch)
        return Result(value, jnp.asarray(jnp.inf), moved, state + 1, {})

    def posterior(self, params, state):
        return Posterior.point(params)


def test_a_non_finite_gradient_is_a_bad_step_too(base, problem):
    _, state, fixed = start(problem, config_of(base, "adam"))
    state = state._replace(method=jnp.zeros([]))
    before = jax.tree.map(np.array, state)
    batch = batch_of(problem, list(range(8)))
    state, logs = take_step(problem, InfiniteGradient(Hyper()), state, fixed, batch)
    assert np.isfinite(logs["loss"]) and logs["finite"] == 0
    assert same(state[1:], before[1:])


def strict(line: str) -> dict:
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_many_bad_steps_in_a_row_end_the_run(base, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_step", scripted(lambda step: step <= 5))
    with pytest.raises(ValueError, match=r"^loss: .* step 15; .*learning_rate$"):
        run(problem, config_of(base, "adam"), tmp_path / "run")
    text = (tmp_path / "run" / METRICS).read_text().splitlines()
    assert [strict(line)["loss"] for line in text] == [1.0] * 5 + [None] * 10
    assert not (tmp_path / "run" / POSTERIOR).exists()


def test_a_run_without_a_good_step_has_learned_nothing(
    base, problem, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "train_step", scripted(lambda step: False))
    hyper = dataclasses.replace(HYPER["adam"], steps=loop.MAX_BAD_STEPS - 1)
    config = resolve(
        dataclasses.replace(base, method="adam", hyper=hyper), "custom", 64
    )
    for resume in (False, True):
        with pytest.raises(ValueError, match="^loss: not finite in any of the 9 steps"):
            loop.train(problem, config, tmp_path / "run", resume)
        assert not (tmp_path / "run" / POSTERIOR).exists()


def test_fewer_bad_steps_are_counted(base, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loop, "train_step", scripted(lambda step: step % 10 == 0))
    run(problem, config_of(base, "adam"), tmp_path / "run")
    assert "skipped 72 steps" in capsys.readouterr().err
    assert (tmp_path / "run" / POSTERIOR).exists()


def test_a_step_moves_nothing_unasked(base, problem, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "put_batch", lambda batch, mesh, batch_size: batch)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        run(problem, config_of(base, "adam"), tmp_path / "run")


def test_an_interrupt_keeps_what_was_learned(base, problem, tmp_path, monkeypatch):
    real, states = loop.train_step, []

    def interrupted(network, method, state, *args, **kwargs):
        if int(state.step) == 2:
            signal.raise_signal(signal.SIGINT)
        state, logs = real(network, method, state, *args, **kwargs)
        states.append(jax.tree.map(np.array, state.params))
        return state, logs

    monkeypatch.setattr(loop, "train_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="after step 3 of 80"):
        run(problem, config_of(base, "ivon-lora"), tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(losses(tmp_path / "run")) == len(states) == 3
    assert same(Posterior.load(tmp_path / "run" / POSTERIOR).mean, states[-1])


def test_a_shared_prefix_changes_no_step_but_dropouts(base, tmp_path):
    hyper = dataclasses.replace(HYPER["ivon-lora"], steps=8)
    found = []
    for share in ("auto", "off"):
        config = dataclasses.replace(
            base,
            hyper=hyper,
            lora=LoraConfig(rank=4, dropout=0.0),
            share_prefix=share,
        )
        config = resolve(config, "custom", 64)
        found.append(run(prepare(config), config, tmp_path / share))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found[0].mean,
        found[1].mean,
    )


# What is compiled.


@pytest.mark.parametrize("method", METHODS)
def test_a_step_compiles_once_per_padded_length(method, base, problem):
    config = config_of(base, method)
    name, _, fixed = start(problem, config)
    mesh = problem.mesh
    state = loop._Training(problem, config, Path(), {}).first_state()
    before = step.train_step._cache_size()
    sizes = []
    for indices, length in (
        (range(3), 8),
        (range(3, 6), 8),
        (range(3), 16),
        (range(6, 9), 16),
        (range(9, 12), 8),
    ):
        batch = batch_of(problem, list(indices), length)
        assert batch.tokens.shape == (3, length)
        with jax.set_mesh(mesh):
            state, _ = take_step(problem, name, state, fixed, batch)
        sizes.append(step.train_step._cache_size() - before)
    assert sizes == [1, 1, 2, 2, 2]
