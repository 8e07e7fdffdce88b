"""What every method in `METHODS` must do, whatever it does."""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_encoder
from jax.sharding import NamedSharding, PartitionSpec
from tiny_runs import result, stop_after

from ivon_jax import load_posterior
from ivon_jax.kinds import Distribution
from ivon_jax.lora import LoraConfig
from ivon_jax.models.stack import unstack_layers
from ivon_jax.train import loop
from ivon_jax.train.config import TrainConfig, make_method, resolve
from ivon_jax.train.data.batches import Batch, collate
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.pod.sharding import put_batch, shardings
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.runs.run import POSTERIOR
from ivon_jax.train.step import Fixed, Network, TrainState, first_state, train_step

KEY = jax.random.key(3)
STEPS, BATCH = 4, 8
MODELS = ("llama", "deberta")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, TrainConfig]:
    place = tmp_path_factory.mktemp("models")
    (place / "llama").mkdir()
    written = {
        "llama": tiny.write_task(place / "llama", layers=2),
        "deberta": tiny_encoder.write_task(place / "deberta"),
    }
    lora = LoraConfig(rank=4, dropout=0.1)
    return {k: TrainConfig(m, data=d, lora=lora) for k, (m, d) in written.items()}


@pytest.fixture(scope="module")
def problems(tasks) -> dict[str, Problem]:
    return {name: prepare(config) for name, config in tasks.items()}


@pytest.fixture(scope="module")
def halved(tasks) -> Problem:
    """With a base of 16 bits."""
    problem = prepare(dataclasses.replace(tasks["llama"], base="bf16"))
    kernels = jax.tree.leaves(problem.frozen)
    assert any(leaf.dtype == jnp.bfloat16 for leaf in kernels)
    return problem


def config_of(config: TrainConfig, method: str, **changes: Any) -> TrainConfig:
    hyper = METHODS[method].hyper_type(steps=STEPS, batch_size=BATCH, warmup=1)
    config = dataclasses.replace(config, method=method, hyper=hyper, **changes)
    return resolve(config, "custom" if config.data.task == "custom" else "glue", 48)


class Bench(NamedTuple):
    """All that a step takes."""

    config: TrainConfig
    problem: Problem
    method: Any
    network: Network
    fixed: Fixed
    batch: Batch

    def start(self) -> TrainState:
        """Makes the first state, placed as a run places it."""

        def init() -> TrainState:
            return first_state(self.network, self.method, None, KEY)

        targets = shardings(jax.eval_shape(init), self.problem.mesh)
        return jax.jit(init, out_shardings=targets)()

    def step(self, state: TrainState, fixed: Fixed | None = None) -> Any:
        with jax.set_mesh(self.problem.mesh):
            return self.take(state, self.fixed if fixed is None else fixed)

    def take(self, state: TrainState, fixed: Fixed) -> Any:
        # As a run calls it, which then finds the same program.
        return train_step(
            self.network, self.method, state, fixed, self.batch, accumulate=1
        )


def bench_of(
    config: TrainConfig, problem: Problem, method: str, *, scanned: bool = True
) -> Bench:
    config = config_of(config, method)
    made = make_method(config)
    network, frozen = problem.network_with(made.branch), problem.frozen
    if not scanned:
        base = network.base.clone(scan_layers=False)
        module = network.trainable.module(base, problem.lora, made.branch)
        network = dataclasses.replace(network, base=base, module=module)
        frozen = unstack_layers(frozen)
    whole = NamedSharding(problem.mesh, PartitionSpec())
    streams = jax.jit(lambda: Streams.from_seed(0), out_shardings=whole)()
    fixed = Fixed(frozen, problem.objective, streams)
    indices = np.arange(BATCH)[:, None]
    batch = put_batch(collate(problem.splits["train"], indices), problem.mesh, BATCH)
    return Bench(config, problem, made, network, fixed, batch)


@pytest.fixture(scope="module", params=METHODS)
def method(request) -> str:
    return request.param


def branches() -> list[str]:
    """One method of each branch, by which the passes of methods differ."""
    found: dict[Any, str] = {}
    for name, kind in METHODS.items():
        method = kind.make(kind.hyper_type().resolve("commonsense", 8), 1)
        found.setdefault(method.branch, name)
    return list(found.values())


def pairs(fast: Iterable[tuple[str, str]], models: Iterable[str]) -> list[Any]:
    """Every method on every model; those that are not in `fast` are slow."""
    fast = set(fast)
    return [
        pytest.param(
            pair := (model, name),
            marks=[] if pair in fast else pytest.mark.slow,
            id=f"{model}-{name}",
        )
        for name in METHODS
        for model in models
    ]


ON_LLAMA = [("llama", name) for name in METHODS]
BRANCHES = [(model, name) for model in MODELS for name in branches()]
BENCHES = pairs(ON_LLAMA + BRANCHES, (*MODELS, "llama-unscanned"))


@pytest.fixture(scope="module", params=BENCHES)
def bench(request, tasks, problems) -> Bench:
    model, method = request.param
    name, _, unscanned = model.partition("-")
    return bench_of(tasks[name], problems[name], method, scanned=not unscanned)


def assert_floats_are_float32(tree: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32, jax.tree_util.keystr(path)


# Shapes and dtypes, from shapes alone.


@pytest.mark.parametrize(
    ("model", "base", "scanned"), [("llama", "bf16", True), ("deberta", "f32", False)]
)
def test_a_step_keeps_shapes_and_all_is_float32(
    model, base, scanned, method, tasks, problems, halved
):
    problem = halved if base == "bf16" else problems[model]
    bench = bench_of(tasks[model], problem, method, scanned=scanned)
    state = jax.eval_shape(bench.start)

    def fresh(key: Any) -> Any:
        return bench.network.trainable.fresh(bench.network.module, key)

    wanted = jax.eval_shape(lambda: bench.method.start(fresh, KEY))
    chex.assert_trees_all_equal_shapes_and_dtypes(state.params, wanted)
    assert_floats_are_float32(state)
    after, logs = jax.eval_shape(bench.take, state, bench.fixed)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
    assert {"loss", "grad_norm", "finite"} <= logs.keys()
    for log in logs.values():
        chex.assert_shape(log, ())
        chex.assert_type(log, jnp.float32)

    def believed(state: TrainState) -> tuple[Any, ...]:
        posterior = bench.method.posterior(state.params, state.method)
        return posterior.mean, posterior.draw(KEY, 1), jax.tree.leaves(posterior)

    mean, drawn, leaves = jax.eval_shape(believed, after)
    assert_floats_are_float32(leaves)
    chex.assert_trees_all_equal_shapes_and_dtypes(drawn, mean)
    if scanned:  # LoRA's parameters, whatever the method trains
        chex.assert_trees_all_equal_shapes_and_dtypes(mean, problem.shapes)


# Steps.


def test_steps_change_the_state_and_compile_once(bench):
    state, before = bench.start(), train_step._cache_size()
    states = [jax.tree.map(np.array, state)]
    for _ in range(3):
        state, logs = bench.step(state)
        chex.assert_tree_all_finite(logs)
        states.append(jax.tree.map(np.array, state))
    assert train_step._cache_size() <= before + 1
    assert [int(state.step) for state in states] == [0, 1, 2, 3]
    chex.assert_trees_all_equal_shapes_and_dtypes(*states)
    chex.assert_tree_all_finite(states[-1])
    for before, after in itertools.pairwise(states[1:]):
        changed = jax.tree.map(np.array_equal, before.params, after.params)
        assert not all(jax.tree.leaves(changed))


@pytest.mark.parametrize(
    "bench",
    pairs(BRANCHES, (*MODELS, "llama-unscanned")),
    indirect=True,
    scope="module",
)
def test_recomputed_activations_see_the_same_draws(bench):
    module = bench.network.module
    whole = module.clone(base=module.base.clone(remat="full"))
    recomputing = bench._replace(
        network=dataclasses.replace(bench.network, module=whole)
    )
    states = {}
    for name, one in {"kept": bench, "recomputed": recomputing}.items():
        state, _ = one.step(one.start())
        states[name], _ = one.step(state)
    chex.assert_trees_all_close(
        states["recomputed"].params, states["kept"].params, rtol=1e-4, atol=1e-6
    )


def test_a_non_finite_step_changes_nothing(bench):
    state, _ = bench.step(bench.start())
    before = jax.tree.map(np.array, state)
    broken = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), bench.fixed.frozen)
    state, logs = bench.step(state, bench.fixed._replace(frozen=broken))
    assert not np.isfinite(logs["loss"]) and logs["finite"] == 0
    chex.assert_trees_all_equal(state.params, before.params)
    chex.assert_trees_all_equal(state.method, before.method)
    assert int(state.step) == 2
    state, logs = bench.step(state)
    assert np.isfinite(logs["loss"]) and logs["finite"] == 1
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(state.params, before.params)


# Whole runs.


class Run(NamedTuple):
    config: TrainConfig
    posterior: Distribution
    out: Path


# Whole runs of the encoder are slow; its steps above are not.
@pytest.fixture(scope="module", params=pairs(ON_LLAMA, MODELS))
def trained(request, tasks, problems, tmp_path_factory) -> Run:
    model, method = request.param
    config = config_of(tasks[model], method)
    out = tmp_path_factory.mktemp("run") / method
    return Run(config, loop.train(problems[model], config, out), out)


def problem_of(config: TrainConfig, problems: dict[str, Problem]) -> Problem:
    return problems["llama" if config.data.task == "custom" else "deberta"]


def test_an_interrupted_run_goes_on_to_the_same_bits(trained, problems, tmp_path):
    problem = problem_of(trained.config, problems)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted, match="after step 2 of 4"):
            loop.train(problem, trained.config, tmp_path / "run")
    found = loop.train(problem, trained.config, tmp_path / "run", resume=True)
    chex.assert_trees_all_equal(found, trained.posterior)
    assert result(tmp_path / "run") == result(trained.out)


# Those whose state is a part of another one's are slow.
PARTS = ("adam", "adam-average", "ivon")
OWN_STATE = [pair for pair in ON_LLAMA if pair[1] not in PARTS]


@pytest.mark.parametrize(
    "trained", pairs(OWN_STATE, MODELS), indirect=True, scope="module"
)
def test_a_mesh_changes_no_number(trained, tmp_path):
    config = dataclasses.replace(trained.config, mesh="data=2,fsdp=2,tensor=2")
    before = train_step._cache_size()
    found = loop.train(prepare(config), config, tmp_path / "run")
    # A state that is split otherwise than the first would be compiled for again.
    assert train_step._cache_size() == before + 1
    chex.assert_trees_all_close(found, trained.posterior, rtol=1e-4, atol=1e-6)
    (_, lines), (_, wanted) = result(tmp_path / "run"), result(trained.out)
    for one, other in zip(lines, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_posterior_is_used_as_any_other(trained, problems, tmp_path):
    posterior, method = trained.posterior, METHODS[trained.config.method]
    assert isinstance(posterior, Distribution)
    assert posterior.spread == method.spread
    problem = problem_of(trained.config, problems)
    chex.assert_trees_all_equal_shapes_and_dtypes(posterior.mean, problem.shapes)
    drawn = [posterior.draw(KEY, i) for i in (0, 0, 1)]
    chex.assert_tree_all_finite(drawn)
    chex.assert_trees_all_equal(drawn[0], drawn[1])
    jitted = jax.jit(lambda p, i: p.draw(KEY, i))(posterior, 1)
    chex.assert_trees_all_close(jitted, drawn[2], rtol=1e-6)
    if posterior.spread:
        with pytest.raises(AssertionError):
            chex.assert_trees_all_equal(drawn[0], drawn[2])
    else:
        chex.assert_trees_all_equal(drawn[0], drawn[2], posterior.mean)
    chex.assert_trees_all_equal(posterior.temper(1.0).prune(0.0), posterior)
    loaded, metadata = load_posterior(trained.out / POSTERIOR)
    chex.assert_trees_all_equal(loaded, posterior)
    assert metadata == {"step": STEPS, **make_method(trained.config).metadata}
    loaded.save(tmp_path / "again", **metadata)
    chex.assert_trees_all_equal(load_posterior(tmp_path / "again")[0], posterior)


def test_tempering_and_pruning_a_posterior(trained):
    posterior = trained.posterior
    if posterior.size is not None:
        for refused in (posterior.temper, posterior.prune):
            with pytest.raises(ValueError):
                refused(0.5)
        return
    if not posterior.spread:
        return

    def spread(of: Distribution) -> float:
        apart = jax.tree.map(lambda d, m: d - m, of.draw(KEY), of.mean)
        return math.sqrt(sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(apart)))

    assert spread(posterior.temper(4.0)) == pytest.approx(spread(posterior) / 2, 1e-3)

    def zeros(of: Distribution) -> int:
        return sum(int(np.sum(np.asarray(x) == 0)) for x in jax.tree.leaves(of.mean))

    assert zeros(posterior.prune(0.5)) > zeros(posterior)
