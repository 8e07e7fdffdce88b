"""The same run on one device and on meshes of eight."""

import dataclasses
import json

import jax
import numpy as np
import process_child
import pytest
import tiny

from ivon_jax.lora import LoraConfig
from ivon_jax.posterior import Posterior
from ivon_jax.train import loop
from ivon_jax.train import predict as predictions
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.pod.sharding import cut_heads, make_mesh, parse_mesh, spec
from ivon_jax.train.predict import predict
from ivon_jax.train.predictors.samples import Samples
from ivon_jax.train.problem import prepare
from ivon_jax.train.runs.run import POSTERIOR
from ivon_jax.train.step import train_step

MIXED = "data=2,fsdp=2,tensor=2"
ONE_AXIS = [
    pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("data=8", "tensor=8")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> TrainConfig:
    model, data = tiny.write_task(tmp_path_factory.mktemp("tiny"), layers=2)
    hyper = IvonLoraHyper(
        steps=6, warmup=1, batch_size=16, learning_rate=0.1, gamma=2000.0
    )
    lora = LoraConfig(rank=4, dropout=0.1)
    return TrainConfig(model, data=data, lora=lora, hyper=hyper)


def run(config, out):
    config = resolve(config, "custom", 64)
    posterior = loop.train(prepare(config), config, out)
    lines = (out / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    return losses, posterior.mean, posterior.precision


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    return run(base, tmp_path_factory.mktemp("alone") / "run")


def assert_close(found, wanted):
    jax.tree.map(
        lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-7),
        found,
        wanted,
    )


# Every method on the mixed mesh: methods/test_common.py.
@pytest.mark.parametrize(
    "mesh", [*ONE_AXIS, "fsdp=8", pytest.param(MIXED, marks=pytest.mark.slow)]
)
def test_a_mesh_changes_no_number(mesh, base, alone, tmp_path):
    before = train_step._cache_size()
    assert_close(run(dataclasses.replace(base, mesh=mesh), tmp_path / "run"), alone)
    # A state that is split otherwise than the first would be compiled for again.
    assert train_step._cache_size() == before + 1


@pytest.mark.parametrize(
    ("parts", "heads", "cut"),
    # By 3 not even the size of 4 heads is divided: they are not split.
    [
        (1, 3, False),
        (2, 4, False),
        (4, 4, False),
        (3, 4, False),
        (8, 4, True),
        (2, 3, True),
    ],
)
def test_heads_that_are_cut_are_said(parts, heads, cut):
    mesh = make_mesh(f"tensor={parts}")
    where = spec("layers/k_proj/kernel", (16, heads * 16), mesh.shape)
    assert cut == (tuple(where) == (None, "tensor") and heads % parts > 0)
    note = cut_heads(mesh, heads, 16)
    assert bool(note) == cut
    assert not cut or note.startswith(f"mesh: tensor={parts} cuts the model's {heads} ")


@pytest.mark.parametrize("mesh", [*ONE_AXIS, "fsdp=8", MIXED, "fsdp=2,tensor=3"])
def test_noise_is_the_same_to_the_bit(mesh):
    wanted, found = process_child.draw("data=1"), process_child.draw(mesh)
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name].tobytes() == values.tobytes(), name


def test_predictions_are_those_of_one_device(base, tmp_path, monkeypatch):
    found, batch = [], predictions.predict_batch

    def still(*args):
        with jax.transfer_guard_device_to_device("disallow"):
            return batch(*args)

    monkeypatch.setattr(predictions, "predict_batch", still)
    for mesh in ("data=1", MIXED):
        config = resolve(dataclasses.replace(base, mesh=mesh), "custom", 64)
        problem = prepare(config)
        loop.train(problem, config, tmp_path / mesh)
        posterior = Posterior.load(tmp_path / mesh / POSTERIOR)  # on one device
        test, streams = problem.splits["test"], Streams.from_seed(4)
        found.append(predict(problem, test, posterior, Samples(2), streams))
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-5)


def test_accumulation_changes_no_number(base, alone, tmp_path):
    parts = dataclasses.replace(base, accumulate=4, mesh="data=2")
    assert_close(run(parts, tmp_path / "parts"), alone)


def test_offloading_changes_no_number(base, alone, tmp_path):
    offload = dataclasses.replace(base, remat="offload", mesh=MIXED)
    assert_close(run(offload, tmp_path / "offload"), alone)


def test_a_mesh_changes_no_number_without_a_shared_prefix(base, alone, tmp_path):
    base = dataclasses.replace(base, share_prefix="off")
    wanted = run(base, tmp_path / "one")
    mixed = dataclasses.replace(base, mesh=MIXED)
    assert_close(run(mixed, tmp_path / "mixed"), wanted)
    # Each prompt has its own mask where all shared one.
    assert not np.allclose(wanted[0], alone[0], rtol=1e-4)


def test_groups_draw_the_same_samples_on_any_mesh(base, alone, tmp_path):
    hyper = dataclasses.replace(base.hyper, noise="per-shard")
    base = dataclasses.replace(base, hyper=hyper)
    wanted = run(dataclasses.replace(base, mesh="data=2"), tmp_path / "two")
    mixed = dataclasses.replace(base, mesh=MIXED)
    assert_close(run(mixed, tmp_path / "mixed"), wanted)
    assert not np.allclose(wanted[0], alone[0], rtol=1e-4)


@pytest.mark.parametrize(
    "text", ["", "data", "data=0", "data=-1", "x=2", "data=1,data=2"]
)
def test_malformed_meshes(text):
    with pytest.raises(ValueError, match="^mesh: "):
        parse_mesh(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accumulate": 0}, "accumulate: 0 is not >= 1"),
        ({"accumulate": 3}, "batch_size: 16 is not a multiple of .* = 3"),
        ({"mesh": "data=4,fsdp=2", "accumulate": 4}, "batch_size: 16 is not .* = 32"),
        ({"mesh": "data=3,tensor=2"}, "batch_size: 16 is not a multiple of .* = 3"),
        ({"mesh": "tensor=9"}, "mesh: tensor=9 is 9 devices, there are 8"),
    ],
)
def test_parts_that_do_not_fit(changes, message, base):
    with pytest.raises(ValueError, match=message):
        prepare(resolve(dataclasses.replace(base, **changes), "custom", 64))
