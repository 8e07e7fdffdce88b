"""Training and prediction end to end, on a tiny model that can learn its task."""

import dataclasses
import json
import resource
import signal
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_runs
from tiny_runs import scripted

from ivon_jax.lora import LoraConfig, low_rank
from ivon_jax.posterior import Posterior
from ivon_jax.train import loop, step
from ivon_jax.train.config import TrainConfig, make_method, resolve
from ivon_jax.train.data.batches import collate
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.adam import AdamHyper
from ivon_jax.train.methods.base import Result, linear_schedule
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.predict import predict, score
from ivon_jax.train.predictors.dropout import Dropout
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.runs.run import METRICS, POSTERIOR
from ivon_jax.train.runs.tracking import Jsonl

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


def outputs_of(problem: Problem, adapters: Any, batch: Any, *prefix: Any):
    """Logits of the label words, without dropout."""
    model = problem.network.bind(adapters, problem.frozen, {})
    return problem.objective.outputs(model, batch, *prefix)


def batch_of(problem: Problem, indices: list[int], pad_to: int | None = None):
    return jax.device_put(
        collate(problem.splits["train"], np.asarray(indices)[:, None], pad_to)
    )


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
    said = capsys.readouterr().err.splitlines()[0]
    assert said.endswith("padded to 8, 24 tokens: the step is compiled at most 2 times")
    assert step.train_step._cache_size() - before == 2


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
    rows = {row.tobytes() for _, batch, _ in adam[:8] for row in batch.tokens}
    assert len(rows) == len({ids.tobytes() for ids in problem.splits["train"].tokens})


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


@pytest.mark.parametrize("method", METHODS)
def test_a_non_finite_step_changes_nothing(method, base, problem):
    name, state, fixed = start(problem, config_of(base, method))
    before = jax.tree.map(np.array, state)
    nans = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), fixed.frozen)
    batch = batch_of(problem, list(range(8)))
    broken = fixed._replace(frozen=nans)
    state, logs = take_step(problem, name, state, broken, batch)
    assert not np.isfinite(logs["loss"]) and logs["finite"] == 0
    assert same(state.params, before.params)
    assert same(state.method, before.method)
    assert int(state.step) == 1
    state, logs = take_step(problem, name, state, fixed, batch)
    assert np.isfinite(logs["loss"]) and logs["finite"] == 1
    assert not same(state.method, before.method)


@dataclasses.dataclass(frozen=True)
class InfiniteGradient:
    """A method whose loss is fine while its gradient is not."""

    name = "infinite"
    spread = False
    color = "black"
    hyper_type = AdamHyper
    gradients = 1
    metadata: ClassVar = {}
    branch: ClassVar = staticmethod(low_rank)

    @classmethod
    def make(cls, hyper, shards):
        return cls()

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
    state, logs = take_step(problem, InfiniteGradient(), state, fixed, batch)
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


def test_a_line_of_metrics_is_whole_or_an_error(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    tracker = Jsonl(tmp_path)
    tracker.start({}, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{METRICS}: cannot be written"):
            tracker.log(1, {"loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        tracker.finish()


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


# The learning rate.

SCHEDULES = [(10, 0), (10, 3), (7, 6), (5, 5), (1, 0)]


@pytest.mark.parametrize(("steps", "warmup"), SCHEDULES)
def test_schedule_closed_form(steps, warmup):
    schedule = linear_schedule(0.3, steps, warmup)
    for t in range(steps):
        up = t / warmup if warmup else 1.0
        down = (steps - t) / max(steps - warmup, 1)
        assert float(schedule(t)) == pytest.approx(0.3 * min(up, down, 1), abs=1e-7)
    assert float(schedule(steps)) == (0 if steps > warmup else pytest.approx(0.3))


@pytest.mark.parametrize(("steps", "warmup"), SCHEDULES)
def test_schedule_is_that_of_transformers(steps, warmup):
    torch = pytest.importorskip("torch")
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    peer = get_linear_schedule_with_warmup(optimizer, warmup, steps)
    ours = linear_schedule(0.3, steps, warmup)
    for t in range(steps):
        assert float(ours(t)) == pytest.approx(peer.get_last_lr()[0], abs=1e-7)
        optimizer.step()
        peer.step()


# Logits and predictions.


@pytest.fixture(scope="module")
def adapters(runs) -> Any:
    return runs["adam"][0].mean


def test_answers_are_the_label_words(problem):
    vocabulary = tiny.tokenizer().get_vocab()
    assert problem.objective.label_ids.tolist() == [
        vocabulary["▁no"],
        vocabulary["▁yes"],
    ]


def test_answer_logits_are_rows_of_the_full_logits(problem, adapters):
    batch = batch_of(problem, [3, 1, 4, 15])
    found = outputs_of(problem, adapters, batch)
    variables = {"params": problem.frozen, "lora": adapters}
    network = problem.network
    for row, (tokens, length) in enumerate(
        zip(batch.tokens, batch.lengths[:, 0], strict=True)
    ):
        # Each prompt alone and without padding.
        hidden = network.module.apply(variables, tokens[None, :length])
        frozen = {"params": problem.frozen}
        logits = network.base.apply(frozen, hidden, method="unembed")
        assert logits.shape[-1] == 50
        wanted = jax.nn.softmax(logits[0, -1][problem.objective.label_ids])
        np.testing.assert_allclose(
            jax.nn.softmax(found[row]), wanted, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("pack", [2, 4])
def test_packed_prompts_have_their_own_logits(pack, problem, adapters):
    indices = np.array([3, 1, 4, 15, 9, 2, 6, 5])
    train = problem.splits["train"]
    packed = jax.device_put(collate(train, indices.reshape(-1, pack)))
    np.testing.assert_allclose(
        outputs_of(problem, adapters, packed),
        outputs_of(problem, adapters, batch_of(problem, indices)),
        rtol=0,
        atol=1e-5,
    )


def test_packing_changes_no_step_but_dropouts(base, tmp_path):
    hyper = dataclasses.replace(HYPER["ivon-lora"], steps=8)
    found = []
    for pack in (1, 2):
        config = dataclasses.replace(
            base,
            hyper=hyper,
            lora=LoraConfig(rank=4, dropout=0.0),
            pack=pack,
        )
        config = resolve(config, "custom", 64)
        found.append(run(prepare(config), config, tmp_path / str(pack)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        found[0].mean,
        found[1].mean,
    )


@pytest.mark.parametrize("cut", [0, 3])
def test_a_shared_prefix_changes_no_logit(cut, problem, adapters):
    batch = batch_of(problem, [3, 1, 4, 15])
    cut = min(cut, int(batch.lengths.min()) - 1)
    tokens = np.array(batch.tokens)
    tokens[:, :cut] = tokens[0, :cut]
    tokens = jnp.asarray(tokens)
    whole = batch._replace(tokens=tokens)
    rest = batch._replace(tokens=tokens[:, cut:], lengths=batch.lengths - cut)
    np.testing.assert_allclose(
        outputs_of(problem, adapters, rest, tokens[0, :cut]),
        outputs_of(problem, adapters, whole),
        rtol=0,
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def posterior(runs) -> Posterior:
    # Wide, so that samples differ visibly.
    return runs["ivon-lora"][0].temper(0.02)


@pytest.fixture(scope="module")
def three(problem, posterior) -> np.ndarray:
    return samples_of(problem, posterior, Samples(3))


def samples_of(
    problem: Problem, posterior: Posterior, predictor: Any, streams=STREAMS, **settings
) -> np.ndarray:
    """Predictions of the evaluation examples."""
    test = problem.splits["test"]
    return predict(problem, test, posterior, predictor, streams, **settings)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(np.exp(found), np.exp(wanted), rtol=0, atol=2e-5)


def test_samples_differ_and_are_distributions(three, problem):
    assert three.shape == (3, len(problem.splits["test"]), 2)
    np.testing.assert_allclose(np.exp(three).sum(-1), 1, rtol=0, atol=1e-5)
    assert np.abs(np.exp(three[0]) - np.exp(three[1])).max() > 1e-2


@pytest.mark.parametrize(("batch_size", "chunk_size"), [(32, None), (32, 2), (7, 1)])
def test_predictions_do_not_depend_on_batching(
    batch_size, chunk_size, three, problem, posterior
):
    settings = {"batch_size": batch_size, "chunk_size": chunk_size}
    close(samples_of(problem, posterior, Samples(3), **settings), three)


def test_a_sample_does_not_depend_on_their_number(three, problem, posterior):
    close(samples_of(problem, posterior, Samples(2)), three[:2])


def test_another_key_draws_other_samples(three, problem, posterior):
    other = samples_of(problem, posterior, Samples(3), Streams.from_seed(6))
    assert np.abs(np.exp(other) - np.exp(three)).max() > 1e-2


def forward(problem: Problem, adapters: Any) -> np.ndarray:
    """All examples in one batch, in their own order, with the prefix left in."""
    test = problem.splits["test"]
    batch = jax.device_put(collate(test, np.arange(len(test))[:, None]))
    return np.asarray(jax.nn.log_softmax(outputs_of(problem, adapters, batch)))


def test_samples_are_the_forward_at_drawn_adapters(three, problem, posterior):
    for i in range(3):
        close(three[i], forward(problem, posterior.draw(KEY, i)))


def test_no_samples_is_the_forward_at_the_mean(problem, posterior, three):
    found = samples_of(problem, posterior, Mean())
    mean = forward(problem, posterior.mean)
    assert found.shape == (1, *mean.shape)
    close(found[0], mean)
    assert np.abs(np.exp(mean) - np.exp(three[0])).max() > 1e-2


def test_infinite_tau_is_the_mean(problem, posterior):
    cold = samples_of(problem, posterior.temper(np.inf), Samples(3))
    mean = samples_of(problem, posterior, Mean())
    close(cold, np.broadcast_to(mean, cold.shape))


def test_tau_and_prune_do_what_the_posterior_does(problem, posterior):
    predictor = Samples(3, tau=4.0, prune=0.5)
    by_hand = posterior.prune(0.5).temper(4.0)
    for i, log_probs in enumerate(samples_of(problem, posterior, predictor)):
        close(log_probs, forward(problem, by_hand.draw(KEY, i)))


@pytest.mark.parametrize(
    ("predictor", "fields", "message"),
    [
        (Samples, {"samples": -1}, "samples: -1 is not >= 1"),
        (Samples, {"samples": 0}, "samples: 0 is not >= 1"),
        (Samples, {"tau": 0.0}, "tau: 0.0 "),
        (Samples, {"tau": -1.0}, "tau: -1.0 "),
        (Samples, {"tau": float("nan")}, "tau: nan "),
        (Samples, {"tau": float("inf")}, "tau: inf "),
        (Samples, {"prune": 1.0}, "prune: 1.0 "),
        (Samples, {"prune": -0.1}, "prune: -0.1 "),
        (Samples, {"prune": float("nan")}, "prune: nan "),
        (Mean, {"prune": 1.0}, "prune: 1.0 "),
        (Mean, {"prune": float("nan")}, "prune: nan "),
        (Dropout, {"samples": 0}, "dropout_samples: 0 is not >= 1"),
    ],
)
def test_illegal_predictors(predictor, fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        predictor(**fields)


def test_other_adapters_are_refused(problem, posterior):
    grown = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), posterior.mean)
    for mean in (grown, {"layers": {}}):
        with pytest.raises(ValueError, match="posterior: its adapters"):
            samples_of(problem, Posterior.point(mean), Mean())


# What is compiled.


def shapes_in(jaxpr: Any) -> set[tuple[int, ...]]:
    """Shapes of all values of a program, inner programs included."""
    shapes = set()
    for equation in jaxpr.eqns:
        shapes |= {v.aval.shape for v in (*equation.invars, *equation.outvars)}
        for value in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda x: isinstance(x, jax.extend.core.ClosedJaxpr),
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                shapes |= shapes_in(inner)
    return shapes


@pytest.mark.parametrize("method", METHODS)
def test_a_step_forms_nothing_of_the_vocabularys_size(method, base, problem):
    import jax.extend.core

    name, state, fixed = start(problem, config_of(base, method))
    batch = batch_of(problem, list(range(8)))

    def one_step(state):
        return take_step(problem, name, state, fixed, batch)

    def full(hidden):
        frozen = {"params": problem.frozen}
        return problem.network.base.apply(frozen, hidden, method="unembed")

    assert (8, 50) in shapes_in(jax.make_jaxpr(full)(jnp.zeros((8, 32))).jaxpr)
    shapes = shapes_in(jax.make_jaxpr(one_step)(state).jaxpr)
    assert (8, 8, 32) in shapes  # it looks inside the jitted step
    assert {shape for shape in shapes if 50 in shape} == {(50, 32)}


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
