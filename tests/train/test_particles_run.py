"""A run whose posterior is a set of members: evaluated, and exported."""

import json
import shutil

import jax
import numpy as np
import pytest
import tiny

from ivon_jax import Particles
from ivon_jax.lora import LoraConfig
from ivon_jax.models.peft_io import load_adapter
from ivon_jax.posterior import Posterior
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.mean import Mean
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs import run

COUNT = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of which the posterior was replaced, and the members."""
    place = tmp_path_factory.mktemp("particles")
    model, data = tiny.write_task(place, layers=1)
    config = TrainConfig(
        model,
        method="adam",
        data=data,
        lora=LoraConfig(rank=2),
        hyper=Hyper(steps=2, batch_size=8, warmup=0),
    )
    cli.train(config, place / "run")
    found, metadata = run.read_posterior(place / "run")
    rng = np.random.default_rng(0)

    def moved(leaf):
        noise = rng.normal(scale=0.3, size=leaf.shape).astype(np.float32)
        return leaf + noise

    members = [jax.tree.map(moved, found.mean) for _ in range(COUNT)]
    Particles.of(members).save(place / "run" / run.POSTERIOR, **metadata)
    return place / "run", config, members


def test_all_members_are_averaged(folder, tmp_path, capsys):
    source, config, members = folder
    out = shutil.copytree(source, tmp_path / "run")
    cli.evaluate(out)
    (row,) = json.loads((out / f"evaluation-{COUNT}.json").read_text())["rows"]
    assert (row["predict"], row["samples"]) == ("samples", COUNT)
    assert f"adam, {COUNT} samples" in capsys.readouterr().out
    stored = run.read_predictions(out, f"{COUNT}")[0]
    problem, streams = prepare(config, ["test"]), Streams.from_seed(0)
    test = problem.splits["test"]
    for member, found in zip(members, stored, strict=True):
        (wanted,) = predict(problem, test, Posterior.point(member), Mean(), streams)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    right = np.exp(stored).mean(axis=0).argmax(axis=1) == test.labels
    assert row["accuracy"] == pytest.approx(right.mean(), abs=1e-6)
    # Fewer are the first ones.
    cli.evaluate(out, samples=2)
    np.testing.assert_array_equal(run.read_predictions(out, "2")[0], stored[:2])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"samples": 4}, "samples: 4 is not <= 3, the number of members"),
        ({"tau": 2.0}, "tau: 2.0 is not 1, and particles have no variance"),
        ({"prune": 0.5}, "prune: 0.5 is not 0, and particles have no variance"),
    ],
)
def test_what_members_cannot_do(words, message, folder, tmp_path):
    out = shutil.copytree(folder[0], tmp_path / "run")
    with pytest.raises(ValueError, match=f"^{message}"):
        cli.evaluate(out, **words)
    assert not list(out.glob("predictions*"))
    with pytest.raises(ValueError, match=f"^{message}"):
        cli.export(out, tmp_path / "out", **{"samples": 2} | words)
    assert not (tmp_path / "out").exists()


def test_the_average_alone_is_not_exported(folder, tmp_path):
    for words, message in (
        ({}, "samples: .* has several members, whose average is no model"),
        ({"format": "hf"}, "format: hf has one model, and .* several members"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            cli.export(folder[0], tmp_path / "out", **words)
    assert not list(tmp_path.iterdir())


def test_every_member_is_an_adapter(folder, tmp_path):
    out, config, members = folder
    cli.export(out, tmp_path / "out", samples=COUNT)
    shapes = jax.eval_shape(lambda: members[0])
    for index, member in enumerate(members):
        found = load_adapter(tmp_path / "out" / f"sample-{index}", shapes, config.lora)
        jax.tree.map(np.testing.assert_array_equal, found, member)
    mean = load_adapter(tmp_path / "out", shapes, config.lora)
    wanted = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *members)
    jax.tree.map(lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-5), mean, wanted)
    kept, _ = run.read_posterior(tmp_path / "out")
    assert isinstance(kept, Particles) and kept.size == COUNT
