"""BLoB: its KL, its update by hand, and its posterior from training to export."""

import json
import math
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from ivon_jax import load_posterior
from ivon_jax.lora import LoraConfig
from ivon_jax.models.axes import logical_axes
from ivon_jax.models.peft_io import load_adapter
from ivon_jax.noise import standard_normal
from ivon_jax.train import cli
from ivon_jax.train.methods.base import Minibatch
from ivon_jax.train.methods.blob import Blob, BlobHyper, kl_gradients, kl_weight
from ivon_jax.train.runs.run import POSTERIOR
from ivon_jax.train.step import microbatched

ORDERS = ("official", "separate")


@pytest.fixture
def float64():
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


def make(**hyper: Any) -> Blob:
    values = {"steps": 8, "warmup": 2, "batch_size": 8, "kl_cycle": 3} | hyper
    return Blob(BlobHyper(**values).resolve("custom", 64))


def start(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(4, 2)),
        "b": rng.normal(size=(2, 3)),
        "bias": rng.normal(size=3),
        "g": rng.uniform(0.2, 0.6, (4, 2)),
    }


# The KL.


def test_kl_and_its_gradients_are_those_of_torch(float64):
    torch = pytest.importorskip("torch")
    leaves, prior = start(), 0.3
    mean, root = (torch.tensor(leaves[n], requires_grad=True) for n in ("a", "g"))
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, root**2),
        torch.distributions.Normal(torch.zeros_like(mean), prior),
    ).sum()
    kl.backward()
    method = make(prior_std=prior)
    params = {"layer": jax.tree.map(jnp.asarray, leaves)}
    posterior = method.posterior(params, method.init(params))
    np.testing.assert_allclose(posterior.kl(), kl.item(), rtol=1e-6)  # float32 prior
    found = kl_gradients(params["layer"]["a"], params["layer"]["g"], prior)
    for one, other in zip(found, (mean, root), strict=True):
        np.testing.assert_allclose(one, other.grad.numpy(), rtol=1e-12)


def test_gradients_are_those_of_the_closed_form(float64):
    def kl(mean, root, prior):
        ratio = (root**4 + mean**2) / prior**2
        return jnp.sum((ratio - 1 - jnp.log(root**4 / prior**2)) / 2)

    mean, root = (jnp.asarray(start()[name]) for name in ("a", "g"))
    wanted = jax.grad(kl, (0, 1))(mean, root, 0.3)
    found = kl_gradients(mean, root, 0.3)
    chex.assert_trees_all_close(found, wanted, rtol=1e-12)
    negative = kl_gradients(mean, -root, 0.3)
    np.testing.assert_array_equal(negative[1], -found[1])


@given(cycle=st.integers(1, 2000), step=st.integers(0, 10_000))
def test_weights_of_a_cycle(cycle, step):
    i = step % cycle + 1
    wanted = float(Fraction(2**i, 2 ** (cycle + 1) - 1))
    found = float(kl_weight(jnp.int32(step), cycle))
    assert found == pytest.approx(wanted, rel=1e-5, abs=1e-37)


@given(
    examples=st.integers(1, 100_000),
    batch_size=st.integers(1, 64),
    power=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_the_cycle_is_a_power_of_the_examples_in_batches(examples, batch_size, power):
    hyper = BlobHyper(kl_gamma=math.pi / power, batch_size=batch_size)
    cycle = hyper.resolve("custom", examples).kl_cycle
    assert cycle == pytest.approx(100 * examples**power / batch_size, abs=1 + 1e-6)
    assert cycle >= 1


def test_without_data_the_posterior_becomes_the_prior():
    method = make(steps=400, kl_cycle=1, kl_learning_rate=1e-2, learning_rate=1e-9)
    params: Any = {"layer": jax.tree.map(jnp.float32, start())}
    state = method.init(params)

    @jax.jit
    def step(params, state):
        zero = lambda params, minibatch: 0.0 * jnp.sum(params["layer"]["a"])  # noqa: E731
        out = method.step(zero, jax.random.key(0), params, state, Minibatch({}, {}))
        return out.params, out.state

    for _ in range(400):
        params, state = step(params, state)
    std = params["layer"]["g"] ** 2
    np.testing.assert_allclose(std, method.hyper.prior_std, rtol=1e-3)
    assert np.abs(params["layer"]["a"]).max() < 0.05


# The update.


def slope(a, b, bias, inputs, target, weight):
    """The loss of a part of a batch, and its gradients by hand."""
    left = inputs @ a @ b + bias - target
    back = weight * left
    grads = inputs.T @ back @ b.T, (inputs @ a).T @ back, back.sum(0)
    return weight * (left**2).sum() / 2, grads


def draw(key, form, parts):
    """E of each part of the batch."""
    like = jnp.zeros((4, 2))
    if form == "shared":
        return [np.asarray(standard_normal(key, "layer/a", like, 0))] * parts
    keys = [jax.random.fold_in(key, i) for i in range(parts)] if parts > 1 else [key]
    return [np.asarray(jax.random.normal(one, like.shape)) for one in keys]


def by_hand(leaves, batches, keys, hyper, parts):
    """The parameters after each step, in NumPy."""
    leaves = {name: np.array(leaf) for name, leaf in leaves.items()}
    by_adam = ["a", "b", "bias"] + ["g"] * (hyper.order == "separate")
    first, second = (dict.fromkeys(by_adam, 0.0) for _ in range(2))
    cycle = hyper.kl_cycle
    for t, (key, (inputs, target)) in enumerate(zip(keys, batches, strict=True)):
        ramp = t / hyper.warmup
        if t > hyper.warmup:
            ramp = (hyper.steps - t) / (hyper.steps - hyper.warmup)
        loss, grads = 0.0, {name: np.zeros_like(leaf) for name, leaf in leaves.items()}
        for part, noise in enumerate(draw(key, hyper.noise_form, parts)):
            rows = slice(part, None, parts)
            a = leaves["a"] + leaves["g"] ** 2 * noise
            value, (da, db, dbias) = slope(
                a, leaves["b"], leaves["bias"], inputs[rows], target[rows], 1 / 8
            )
            dg = da * noise * 2 * leaves["g"]
            loss += value
            for name, grad in zip(leaves, (da, db, dbias, dg), strict=True):
                grads[name] += grad
        for name in by_adam:
            first[name] = 0.9 * first[name] + 0.1 * grads[name]
            second[name] = 0.999 * second[name] + 0.001 * grads[name] ** 2
            root = np.sqrt(second[name] / (1 - 0.999 ** (t + 1))) + 1e-6
            step = first[name] / (1 - 0.9 ** (t + 1)) / root
            leaves[name] = leaves[name] - hyper.learning_rate * ramp * step
        i = (t + 1) % cycle or cycle
        weight = 2**i / (2 ** (cycle + 1) - 1)
        rate, variance = hyper.kl_learning_rate * ramp, hyper.prior_std**2
        root = leaves["g"]
        pull = weight * 2 * root * (root**2 / variance - 1 / root**2)
        push = weight * leaves["a"] / variance
        left = grads["g"] if hyper.order == "official" else 0.0
        leaves["g"] = root - rate * (left + pull)
        leaves["a"] = leaves["a"] - rate * push
        grads["g"] += pull
        grads["a"] += push
        yield loss, math.sqrt(sum((g**2).sum() for g in grads.values())), leaves


class Pair(NamedTuple):
    """A batch of numbers, whose rows are not texts."""

    inputs: Any
    target: Any
    packed: None = None


def noisy_loss(params, minibatch):
    """The loss of the hand's."""
    layer, (inputs, target, _) = params["layer"], minibatch.batch
    a = layer["a"]
    if "noise" in minibatch.rngs:
        noise = jax.random.normal(minibatch.rngs["noise"], a.shape, a.dtype)
        a = a + layer["g"] ** 2 * noise
    left = inputs @ a @ layer["b"] + layer["bias"][None] - target
    return jnp.sum(left**2) / 16


# Every pair of settings.
@pytest.mark.parametrize(
    ("order", "form", "parts"),
    [
        ("official", "flipout", 1),
        ("official", "shared", 2),
        ("separate", "flipout", 2),
        ("separate", "shared", 1),
    ],
)
def test_the_update_is_that_by_hand(order, form, parts, float64):
    # Rates that are exact in optax's float32 schedules.
    hyper = {"learning_rate": 1 / 32, "kl_learning_rate": 1 / 64, "steps": 10}
    method = make(order=order, noise_form=form, **hyper)
    rng = np.random.default_rng(1)
    batches = [(rng.normal(size=(8, 4)), rng.normal(size=(8, 3))) for _ in range(8)]
    keys = [jax.random.fold_in(jax.random.key(2), t) for t in range(8)]
    params: Any = {"layer": jax.tree.map(jnp.asarray, start())}
    state = method.init(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float64")}
    loss = microbatched(noisy_loss, parts)
    step = jax.jit(lambda *args: method.step(loss, *args))
    wanted = by_hand(start(), batches, keys, method.hyper, parts)
    for key, batch, (value, norm, leaves) in zip(keys, batches, wanted, strict=True):
        minibatch: Any = Minibatch(Pair(*map(jnp.asarray, batch)), {})
        out = step(key, params, state, minibatch)
        params, state = out.params, out.state
        np.testing.assert_allclose(out.loss, value, rtol=1e-10)
        np.testing.assert_allclose(out.grad_norm, norm, rtol=1e-10)
        chex.assert_trees_all_close(params["layer"], leaves, rtol=1e-9, atol=1e-12)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), leaves, start())
    assert min(jax.tree.leaves(moved)) > 1e-3


# Runs.


def command(*args: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ivon-jax", *map(str, args)])
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code or 0
    return 0


LORA = LoraConfig(rank=2)


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> list[object]:
    place = tmp_path_factory.mktemp("place")
    files = tiny.write_data(place / "data")
    return [
        *("--model", tiny.write_model(place / "model"), "--task", "custom"),
        *("--train-file", files / "train.jsonl", "--eval-file", files / "eval.jsonl"),
        *("--prompt", tiny.PROMPT, "--labels", *tiny.LABELS, "--rank", LORA.rank),
        *("--method", "blob", "--batch-size", 8),
    ]


@pytest.mark.parametrize(("steps", "cycle"), [(2, 3), (3, 3), (2, 2000)])
def test_a_run_shorter_than_a_cycle_is_noted_with_its_largest_weight(steps, cycle):
    notes = make(steps=steps, kl_cycle=cycle).notes
    assert len(notes) == (steps < cycle)
    for note in notes:
        largest = float(Fraction(2**steps, 2 ** (cycle + 1) - 1))
        found = float(re.search(r"reaches (\S+) only", note)[1])
        assert found == pytest.approx(largest, rel=0.3, abs=1e-300)


def test_training_prints_the_note(options, tmp_path, capsys):
    hyper = ["--steps", 2, "--kl-cycle", 3]
    assert command("train", *options, *hyper, "--out", tmp_path / "run") == 0
    assert "blob: the KL's cycle of 3 steps is longer than" in capsys.readouterr().err


# The update of each order is tested by hand.
@pytest.fixture(
    scope="module", params=[ORDERS[0], pytest.param(ORDERS[1], marks=pytest.mark.slow)]
)
def trained(request, options, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / request.param
    hyper = ["--steps", 12, "--kl-cycle", 4, "--learning-rate", 0.01]
    assert (
        command("train", *options, *hyper, "--order", request.param, "--out", out) == 0
    )
    return out


def by_kind(tree: Any) -> dict[str, list[np.ndarray]]:
    """The leaves by the last part of their path, in order of path."""
    found: dict[str, list[np.ndarray]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        found.setdefault(path[-1].key, []).append(np.asarray(leaf))
    return found


def test_a_run_learns_and_its_posterior_is_on_a_alone(trained):
    posterior, _ = load_posterior(trained / POSTERIOR)
    means = by_kind(posterior.mean)
    assert means.keys() == {"a", "b"}
    assert {name.rpartition("/")[2] for name in posterior.precision} == {"a"}
    assert len(posterior.precision) == len(means["a"])
    lines = [
        json.loads(x) for x in (trained / "metrics.jsonl").read_text().splitlines()
    ]
    assert lines[-1]["loss"] < lines[0]["loss"]
    # The KL acts at steps 4, 8 and 12 and raises the variance towards the prior's.
    std = [line["posterior_std"] for line in lines]
    assert 0.05**2 / 2 < std[0] < 0.05**2
    jumps = {i + 1 for i in range(1, 12) if std[i] > 1.1 * std[i - 1]}
    assert 4 in jumps and 5 not in jumps
    root = np.concatenate([np.ravel(p) for p in posterior.precision.values()]) ** -0.25
    assert np.mean(root**2) == pytest.approx(std[-1], rel=1e-4)


def test_it_is_evaluated_tempered_and_pruned(trained, capsys):
    settings = ["--samples", 3, "--tau", 2, "--prune", 0.25]
    assert command("evaluate", trained, *settings) == 0
    assert "blob, 3 samples" in capsys.readouterr().out
    (file,) = trained.glob("evaluation-*.json")
    mean, sampled = json.loads(file.read_text())["rows"]
    assert (mean["predict"], sampled["predict"]) == ("mean", "samples")
    assert (sampled["samples"], sampled["tau"], sampled["prune"]) == (3, 2.0, 0.25)
    assert mean["nll"] != sampled["nll"]


def test_its_samples_are_adapters_of_peft(trained, tmp_path):
    settings = ["--samples", 2, "--tau", 4, "--prune", 0.25, "--format", "peft"]
    assert command("export", trained, "--out", tmp_path / "out", *settings) == 0
    posterior, _ = load_posterior(trained / POSTERIOR)
    shapes = jax.eval_shape(lambda: posterior.mean)
    places = [tmp_path / "out", *(tmp_path / "out" / f"sample-{i}" for i in range(2))]
    mean, *samples = (by_kind(load_adapter(p, shapes, LORA)) for p in places)
    wanted = by_kind(posterior.mean)
    std = [np.asarray(p) ** -0.5 / 2 for p in posterior.precision.values()]
    pruned = sum((leaf == 0).sum() for leaf in mean["a"])
    assert pruned == sum(leaf.size for leaf in mean["a"]) // 4
    for sample in samples:
        chex.assert_trees_all_equal(sample["b"], mean["b"], wanted["b"])
        chex.assert_trees_all_equal(  # those left out stay exactly zero
            [a == 0 for a in sample["a"]], [a == 0 for a in mean["a"]]
        )
        noise = [
            ((a - m) / s)[m != 0]
            for a, m, s in zip(sample["a"], mean["a"], std, strict=True)
        ]
        z = np.concatenate(noise)
        assert abs(z.mean()) < 5 / np.sqrt(z.size)
        assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / z.size)


def test_an_adapter_is_the_mean_at_the_start(trained, options, tmp_path):
    assert command("export", trained, "--out", tmp_path / "adapter") == 0
    start = ["--adapter", tmp_path / "adapter", "--steps", 0, "--root-init", 0.2]
    assert command("train", *options, *start, "--out", tmp_path / "run") == 0
    found, _ = load_posterior(tmp_path / "run" / POSTERIOR)
    wanted, _ = load_posterior(trained / POSTERIOR)
    chex.assert_trees_all_equal(found.mean, wanted.mean)
    for precision in found.precision.values():
        std = np.asarray(precision) ** -0.5
        assert 0.2**2 / 2 * 0.999 < std.min() < std.max() < 0.2**2 * 1.001


def test_g_is_split_as_a_is():
    for ndim in (2, 3):
        layer = "layers/self_attn/q_proj"
        assert logical_axes(f"{layer}/g", ndim) == logical_axes(f"{layer}/a", ndim)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gamma", 8], "gamma: method blob has batch_size, kl_cycle"),
        (["--kl-learning-rate", -1], "kl_learning_rate: -1.0 is not a number > 0"),
        (["--prior-std", 0], "prior_std: 0.0 is not a number > 0"),
        (["--root-init", "nan"], "root_init: nan is not a number > 0"),
        (["--kl-gamma", 0.5], "kl_gamma: 0.5 is not a number >= 1"),
        (["--kl-cycle", 0], "kl_cycle: 0 is not in [1, 2^31)"),
        (["--kl-cycle", 3, "--kl-gamma", 8], "kl_gamma: excludes kl_cycle"),
        (["--order", "other"], "order"),
        (["--noise-form", "per-token"], "noise-form"),
        (["--train", "full"], "method: blob only with --train lora, not full"),
    ],
)
def test_bad_input(words, message, options, tmp_path, capsys):
    out = tmp_path / "run"
    assert command("train", *options, "--steps", 2, *words, "--out", out) == 2
    error = capsys.readouterr().err
    assert error.startswith("ivon-jax: ") and error.count("\n") == 1
    assert message in error
    assert not out.exists()
