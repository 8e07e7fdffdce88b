"""Laplace-LoRA by the command line, and its sums by hand."""

import dataclasses
import json
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_encoder
from tiny_fits import command, one_line, train, write_task
from tiny_runs import batch_of, outputs_of

from ivon_jax import Kronecker, Particles, Posterior, load_posterior
from ivon_jax._tree import by_path
from ivon_jax.lora import LoraConfig
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.fits import curvature, kfac, laplace
from ivon_jax.train.fits.curvature import Total, add_diagonal
from ivon_jax.train.fits.partial import PARTIAL
from ivon_jax.train.fits.prior_precision import Evidence, fixed_point
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.predictors.linearised import Linearised
from ivon_jax.train.runs import fitted
from ivon_jax.train.sources import read_run

METHODS = {"laplace-kfac": Kronecker, "laplace-diag": Posterior}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs that held examples out, by method, and one on all data."""
    place = tmp_path_factory.mktemp("laplace")
    config = write_task(place)
    for method in ("adam", "ivon-lora"):
        train(config, place / method, method)
    data = dataclasses.replace(config.data, validation_examples=None)
    train(config, place / "whole", "ivon-lora", data=data)
    return place


@pytest.fixture(scope="module")
def source(place):
    return read_run(place / "adam", "data=1", ("train", "validation"))


def fit(place, out, method, *words, run="adam") -> int:
    return command("fit", place / run, "--method", method, "--out", out, *words)


def numbers(out) -> dict:
    return json.loads((out / "fit.json").read_text())["numbers"]


@pytest.mark.parametrize("method", METHODS)
def test_a_fit_is_evaluated_by_the_linearised_model(place, method, capsys):
    out = place / method
    assert fit(place, out, method, "--logit-samples", 200) == 0
    posterior, _ = load_posterior(out / "posterior.safetensors")
    assert isinstance(posterior, METHODS[method])
    before, _ = load_posterior(place / "adam" / "posterior.safetensors")
    chex.assert_trees_all_equal(posterior.mean, before.mean)
    assert fitted.read(out).predictors == [Linearised("softmax", 200)]
    found = numbers(out)
    assert found["examples"] == 40 and found["tokens"] > 40
    assert found["effective_parameters"] > 0
    assert command("evaluate", out, "--test") == 0
    assert f"{method}(adam), linearised, softmax" in capsys.readouterr().out
    assert command("evaluate", out, "--test", "--samples", 2, "--tau", 2) == 0
    assert f"{method}(adam), 2 samples, tau 2" in capsys.readouterr().out


def test_the_diagonal_is_that_of_every_examples_gradients(source):
    problem, mean = source.problem, source.posterior.mean
    chosen = [3, 1, 4]
    batch = batch_of(problem, [*chosen, 5])
    filled = batch._replace(weights=batch.weights.at[3].set(0))
    fixed = problem.fixed(Streams.from_seed(0))
    total = add_diagonal(problem.network, fixed, mean, Total.zero(mean), filled)

    def log_probs(params, example):
        return jax.nn.log_softmax(
            outputs_of(problem, params, batch_of(problem, [example]))
        )

    wanted = {name: np.zeros(leaf.shape) for name, leaf in by_path(mean).items()}
    likelihood = 0.0
    for example in chosen:
        values = np.asarray(log_probs(mean, example)[0], np.float64)
        likelihood += values[problem.splits["train"].labels[example]]
        for c, value in enumerate(values):
            gradient = jax.grad(lambda p, n, c: log_probs(p, n)[0, c])(mean, example, c)
            for name, leaf in by_path(gradient).items():
                wanted[name] += np.exp(value) * np.square(np.float64(leaf))
    for name, leaf in wanted.items():
        np.testing.assert_allclose(
            total.curvature[name], leaf, rtol=1e-3, atol=1e-4 * leaf.max()
        )
    np.testing.assert_allclose(total.log_likelihood, likelihood, rtol=1e-5)
    assert total.examples == 3


def test_the_posterior_is_the_curvature_and_the_prior(place, source, tmp_path):
    """The precision, evidence and p0 of a whole fit, from one batch of all examples."""
    out = tmp_path / "out"
    assert fit(place, out, "laplace-diag") == 0
    problem, mean = source.problem, source.posterior.mean
    batch = batch_of(problem, list(range(40)))
    fixed = problem.fixed(Streams.from_seed(0))
    total = add_diagonal(problem.network, fixed, mean, Total.zero(mean), batch)
    evidence = Evidence.of(
        total.curvature.values(), by_path(mean).values(), float(total.log_likelihood)
    )
    p0 = fixed_point(evidence)
    found = numbers(out)
    assert found["prior_precision"] == pytest.approx(p0, rel=1e-3)
    assert found["log_evidence"] == pytest.approx(evidence.log(p0), rel=1e-4)
    posterior = Posterior.load(out / "posterior.safetensors")
    for name, leaf in total.curvature.items():
        np.testing.assert_allclose(posterior.precision[name], leaf + p0, rtol=2e-3)
        np.testing.assert_allclose(posterior.prior_precision[name], p0, rtol=1e-3)


@pytest.mark.parametrize("words", [(), ("--factor-rank", 4), ("--reduction", "sum")])
def test_kfac_is_its_factors_and_the_prior(place, source, tmp_path, words):
    out = tmp_path / "out"
    assert fit(place, out, "laplace-kfac", "--prior-precision", 3, *words) == 0
    posterior, _ = load_posterior(out / "posterior.safetensors")
    problem, mean = source.problem, source.posterior.mean
    total = kfac.add_batch(
        problem.network,
        problem.lora,
        problem.fixed(Streams.from_seed(0)),
        mean,
        Total.zero(mean, kfac.zero_factors),
        batch_of(problem, list(range(40))),
    )
    divisor = 40 if "sum" in words else total.tokens
    assert float(posterior.prior_precision) == 3
    for name, (inputs, outputs) in total.curvature.items():
        eigen = posterior.factors[name]
        a = eigen.inputs * eigen.input_values[:, None] @ eigen.inputs.mT
        b = eigen.outputs * eigen.output_values[:, None] @ eigen.outputs.mT
        for found, wanted in ((a, inputs / (2 * divisor)), (b, outputs)):
            # Of rank 4 it is the best approximation, up to what earlier batches lost.
            lost = (
                np.linalg.eigvalsh(wanted)[:, :-4].sum()
                if "--factor-rank" in words
                else 0
            )
            bound = 4 * lost + 1e-3 * np.abs(wanted).max()
            assert np.abs(found - wanted).max() <= bound


@pytest.mark.parametrize("method", ["laplace-diag", "laplace-kfac"])
def test_other_ways_to_the_prior(method, place, source, tmp_path):
    by = {}
    for prior in ("marglik", "marglik-adam", "validation"):
        out = tmp_path / prior
        assert fit(place, out, method, "--prior", prior) == 0
        by[prior] = numbers(out)
    best = by["marglik"]["log_evidence"]
    assert all(found["log_evidence"] <= best + 1e-6 for found in by.values())
    assert by["validation"]["prior_precision"] in [
        pytest.approx(x) for x in laplace.GRID
    ]
    # The held-out NLL of each precision, by evaluating a fit of it.
    nll = {}
    for p0 in {laplace.GRID[3], by["validation"]["prior_precision"], laplace.GRID[-1]}:
        out = tmp_path / f"p{p0}"
        assert fit(place, out, method, "--prior-precision", p0) == 0
        assert command("evaluate", out) == 0
        rows = json.loads((out / "evaluation-linearised.json").read_text())["rows"]
        nll[p0] = rows[-1]["nll"]
    assert nll[by["validation"]["prior_precision"]] <= min(nll.values()) + 1e-6
    record = json.loads((tmp_path / "validation" / "fit.json").read_text())
    assert record["held_out"] == "fitted on"


@pytest.mark.parametrize("best", [0, 5, len(laplace.GRID) - 1])
def test_a_prior_precision_at_an_end_of_those_tried_is_noted(
    best, place, tmp_path, capsys, monkeypatch
):
    def predict(problem, encoded, *_):
        found = np.full((len(laplace.GRID), len(encoded), 2), -1.0, np.float32)
        found[best] = -0.5
        return found

    monkeypatch.setattr(laplace, "predict", predict)
    assert fit(place, tmp_path / "out", "laplace-diag", "--prior", "validation") == 0
    assert numbers(tmp_path / "out")["prior_precision"] == laplace.GRID[best]
    printed = capsys.readouterr().err
    assert ("is at an end of those tried" in printed) == (best != 5)


def test_tokens_are_an_option_of_the_diagonal(place, source, tmp_path):
    out = tmp_path / "out"
    words = ("--diagonal", "tokens", "--prior-precision", 2)
    assert fit(place, out, "laplace-diag", *words) == 0
    problem, mean = source.problem, source.posterior.mean
    total = kfac.add_batch(
        problem.network,
        problem.lora,
        problem.fixed(Streams.from_seed(0)),
        mean,
        Total.zero(mean),
        batch_of(problem, list(range(40))),
    )
    posterior = Posterior.load(out / "posterior.safetensors")
    for name, leaf in total.curvature.items():
        np.testing.assert_allclose(posterior.precision[name], leaf + 2, rtol=1e-3)


ADD = {"laplace-kfac": (kfac, "add_batch"), "laplace-diag": (laplace, "add_diagonal")}
DIAGONAL_SLOW = ["laplace-kfac", pytest.param("laplace-diag", marks=pytest.mark.slow)]


@pytest.mark.parametrize(
    ("method", "at", "done"),
    [
        ("laplace-kfac", 2, 16),
        ("laplace-kfac", 5, 40),
        pytest.param("laplace-diag", 2, 16, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_fit_is_resumed(
    place, method, at, done, tmp_path, monkeypatch, capsys
):
    words = ("--prior-precision", 1)
    assert fit(place, tmp_path / "whole", method, *words) == 0
    module, name = ADD[method]
    real, calls = getattr(module, name), []

    def stopping(*args):
        calls.append(1)
        if len(calls) == at:
            signal.raise_signal(signal.SIGTERM)
        return real(*args)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, name, stopping)
        assert fit(place, out, method, *words) == 128 + signal.SIGTERM
    assert f"interrupted after {done} of 40 examples" in one_line(capsys)
    assert [path.name for path in out.iterdir()] == [PARTIAL]
    assert fit(place, out, method, *words, "--resume") == 0
    assert not (out / PARTIAL).exists()
    file = "posterior.safetensors"
    assert (out / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_long_fits_are_saved_on_the_way(place, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(curvature, "SAVE_EVERY", 0)
    monkeypatch.setattr(
        "ivon_jax.train.fits.partial.Partial.save",
        lambda self, step, state: saved.append(step),
    )
    assert fit(place, tmp_path / "out", "laplace-kfac", "--prior-precision", 1) == 0
    assert saved == [8, 16, 24, 32, 40]


@pytest.mark.parametrize("method", DIAGONAL_SLOW)
def test_a_gaussian_run_and_a_mesh(place, method, tmp_path, monkeypatch):
    module, name = ADD[method]
    real, found = getattr(module, name), {}

    def still(*args):
        with jax.transfer_guard_device_to_device("disallow"):
            return real(*args)

    monkeypatch.setattr(module, name, still)
    for mesh in ("data=1", "data=2,fsdp=2"):
        out = tmp_path / mesh
        words = ("--mesh", mesh, "--prior-precision", 1)
        assert fit(place, out, method, *words, run="ivon-lora") == 0
        found[mesh], _ = load_posterior(out / "posterior.safetensors")
    one, many = found.values()
    if isinstance(one, Posterior):
        for name, precision in one.precision.items():
            np.testing.assert_allclose(precision, many.precision[name], rtol=1e-3)
    else:
        chex.assert_trees_all_close(one.variance(), many.variance(), rtol=1e-3)


def test_an_adapter_of_peft_is_as_good_as_its_run(place, tmp_path):
    peft, data = tmp_path / "peft", place / "data"
    assert command("export", place / "whole", "--out", peft) == 0
    words = ["--adapter", peft, "--model", place / "model", "--task", "custom"]
    words += ["--train-file", data / "train.jsonl", "--eval-file", data / "eval.jsonl"]
    words += ["--prompt", tiny.PROMPT, "--labels", *tiny.LABELS]
    name = ("--method", "laplace-kfac", "--prior-precision", 1)
    assert command("fit", *words, *name, "--out", tmp_path / "a") == 0
    assert command("fit", place / "whole", *name, "--out", tmp_path / "b") == 0
    found, wanted = (
        load_posterior(tmp_path / folder / "posterior.safetensors")[0].variance()
        for folder in "ab"
    )
    chex.assert_trees_all_close(found, wanted, rtol=1e-3)


def test_an_encoders_head_stays_a_point(tmp_path):
    model, data = tiny_encoder.write_task(tmp_path)
    lora = LoraConfig(rank=2)
    hyper = Hyper(steps=2, batch_size=8, warmup=0)
    config = TrainConfig(model, method="adam", data=data, lora=lora, hyper=hyper)
    cli.train(config, tmp_path / "adam")
    for method in METHODS:
        out = tmp_path / method
        assert fit(tmp_path, out, method) == 0
        posterior, _ = load_posterior(out / "posterior.safetensors")
        leaves = set(by_path(posterior.mean))
        heads = {name for name in leaves if name.endswith(("kernel", "bias"))}
        drawn = posterior.draw(jax.random.key(0))
        same = {
            name
            for name, leaf in by_path(posterior.mean).items()
            if jnp.array_equal(leaf, by_path(drawn)[name])
        }
        assert heads and same == heads
    assert command("evaluate", out) == 0


# What is refused.


def test_numbers_are_refused(tmp_path, capsys):
    model, data = tiny_encoder.write_task(tmp_path, "stsb")
    hyper = Hyper(steps=1, batch_size=4, warmup=0)
    config = TrainConfig(
        model, method="adam", data=data, lora=LoraConfig(rank=2), hyper=hyper
    )
    cli.train(config, tmp_path / "adam")
    assert fit(tmp_path, tmp_path / "out", "laplace-kfac") == 2
    assert one_line(capsys).endswith(
        "laplace-kfac: only for classes, the task asks for a number"
    )
    assert not (tmp_path / "out").exists()


def test_a_model_without_adapters_is_refused(tmp_path, capsys):
    model, data = tiny.write_task(tmp_path, layers=1)
    hyper = Hyper(steps=1, batch_size=4, warmup=0)
    config = TrainConfig(model, method="adam", data=data, train="full", hyper=hyper)
    cli.train(config, tmp_path / "adam")
    assert fit(tmp_path, tmp_path / "out", "laplace-diag") == 2
    assert one_line(capsys).endswith("laplace-diag: needs a run with --train lora")


@pytest.mark.parametrize("method", METHODS)
def test_a_curvature_that_is_not_finite_is_refused(place, method, tmp_path, capsys):
    run = shutil.copytree(place / "adam", tmp_path / "adam")
    posterior = Posterior.load(run / "posterior.safetensors")
    huge = jax.tree.map(lambda leaf: leaf + 1e30, posterior.mean)
    Posterior.point(huge).save(run / "posterior.safetensors", step=6)
    assert fit(tmp_path, tmp_path / "out", method) == 2
    assert "is not finite" in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_no_held_out_examples(place, tmp_path, capsys):
    words = ("--prior", "validation")
    assert fit(place, tmp_path / "out", "laplace-kfac", *words, run="whole") == 2
    assert "held out no training examples" in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--prior-precision", 0), "prior_precision: 0.0 is not a number > 0"),
        (("--factor-rank", 0), "factor_rank: 0 is not >= 1"),
        (("--logit-samples", 0), "logit_samples: 0 is not >= 1"),
    ],
)
def test_options_out_of_range(place, words, message, tmp_path, capsys):
    assert fit(place, tmp_path / "out", "laplace-kfac", *words) == 2
    assert message in one_line(capsys)


def test_several_members_are_refused(place, tmp_path, capsys):
    run = shutil.copytree(place / "adam", tmp_path / "adam")
    mean = Posterior.load(run / "posterior.safetensors").mean
    Particles.of([mean, mean]).save(run / "posterior.safetensors", step=6)
    assert fit(tmp_path, tmp_path / "out", "laplace-kfac") == 2
    assert one_line(capsys).endswith("the run has several members, not one mean")
