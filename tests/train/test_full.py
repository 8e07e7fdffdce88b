"""Fine-tuning of the whole model, from files to files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_encoder
import tiny_models
from safetensors.numpy import load_file
from tiny_runs import result, stop_after

from ivon_jax.lora import LoraConfig
from ivon_jax.models import load
from ivon_jax.train import cli, loop
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.data.batches import collate
from ivon_jax.train.methods.registry import METHODS
from ivon_jax.train.pod.interrupts import Interrupted
from ivon_jax.train.problem import Problem, prepare
from ivon_jax.train.runs import run

MODELS = ("tied", "untied", "encoder")


def write_untied(place: Path) -> tuple[str, Any]:
    """A Llama whose output embedding is not the input's."""
    model, data = tiny.write_task(place, layers=2)
    weights = load_file(Path(model) / "model.safetensors")
    rng = np.random.default_rng(1)
    shape = weights["model.embed_tokens.weight"].shape
    weights["lm_head.weight"] = rng.normal(size=shape).astype(np.float32)
    tiny_models.write_folder(Path(model), weights, tie_word_embeddings=False)
    return model, data


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, tuple[str, Any]]:
    places = {name: tmp_path_factory.mktemp(name) for name in MODELS}
    return {
        "tied": tiny.write_task(places["tied"], layers=2),
        "untied": write_untied(places["untied"]),
        "encoder": tiny_encoder.write_task(places["encoder"]),
    }


def config_of(task: tuple[str, Any], method: str = "adam", **changes) -> TrainConfig:
    model, data = task
    hyper = METHODS[method].hyper_type(
        steps=4, batch_size=8, warmup=1, learning_rate=1e-2
    )
    return TrainConfig(
        model, data=data, method=method, hyper=hyper, train="full", **changes
    )


@dataclasses.dataclass(frozen=True)
class Trained:
    config: TrainConfig
    problem: Problem
    posterior: Any
    out: Path


# Both methods on one of them: the other parameters are the models' matter.
CASES = [(model, "adam") for model in MODELS] + [
    ("untied", "ivon-lora"),
    pytest.param(("tied", "ivon-lora"), marks=pytest.mark.slow),
    pytest.param(("encoder", "ivon-lora"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def trained(request, tasks, tmp_path_factory) -> Trained:
    model, method = request.param
    config = config_of(tasks[model], method)
    problem = prepare(config)
    config = resolve(config, problem.task.preset, len(problem.splits["train"]))
    out = tmp_path_factory.mktemp("full") / "run"
    return Trained(config, problem, loop.train(problem, config, out), out)


def test_every_parameter_is_trained_and_only_a_head_is_fresh(trained):
    config, problem = trained.config, trained.problem
    held = load(config.model, tokenizer=False).params
    flat = dict(jax.tree_util.tree_leaves_with_path(trained.posterior.mean))
    base = dict(jax.tree_util.tree_leaves_with_path(held))
    fresh = {jax.tree_util.keystr(path) for path in flat.keys() - base.keys()}
    head = {"pooler", "classifier"} if config.data.task == "mrpc" else set()
    assert {name.split("'")[1] for name in fresh} == head
    assert not jax.tree.leaves(problem.frozen)
    for path, leaf in flat.items():
        assert leaf.dtype == jnp.float32
        if path in base:
            assert leaf.shape == base[path].shape
            # Types of texts and positions that do not occur have no gradient.
            assert not np.array_equal(leaf, base[path]), jax.tree_util.keystr(path)
    assert trained.posterior.spread == METHODS[config.method].spread


@pytest.mark.slow
def test_a_mesh_changes_no_number(trained, tmp_path):
    config = dataclasses.replace(trained.config, mesh="data=2,fsdp=2,tensor=2")
    problem = prepare(config)
    split = [leaf.sharding for leaf in jax.tree.leaves(problem.start)]
    assert any(not s.is_fully_replicated for s in split)
    found = loop.train(problem, config, tmp_path / "run")
    (_, lines), (_, wanted) = result(tmp_path / "run"), result(trained.out)
    for one, other in zip(lines, wanted, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    # Adam divides by the root of what is nearly 0 for entries of little gradient.
    means = jax.device_get((found.mean, trained.posterior.mean))
    apart = jax.tree.map(lambda f, w: np.abs(f - w).mean(), *means)
    assert max(jax.tree.leaves(apart)) < 1e-4


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bits(trained, tmp_path):
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted, match="after step 2 of 4"):
            loop.train(trained.problem, trained.config, out)
    found = loop.train(trained.problem, trained.config, out, resume=True)
    chex.assert_trees_all_equal(found, trained.posterior)
    assert result(out) == result(trained.out)


def torch_logits(folder: Path, problem: Problem, batch: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    import transformers

    index = np.arange(batch.tokens.shape[1])[None]
    inputs = {
        "input_ids": torch.tensor(batch.tokens).long(),
        "attention_mask": torch.tensor(index < batch.lengths).long(),
    }
    if batch.second_starts is None:
        auto = transformers.AutoModelForCausalLM
    else:
        auto = transformers.AutoModelForSequenceClassification
        types = torch.tensor(index >= batch.second_starts).long()
        inputs["token_type_ids"] = types
    model = auto.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**inputs).logits.numpy()
    if batch.second_starts is not None:
        return logits
    last = np.take_along_axis(logits, batch.lengths[:, :, None] - 1, axis=1)[:, 0]
    return last[:, np.asarray(problem.objective.label_ids)]


def test_it_is_evaluated_and_exported(trained, tmp_path, capsys):
    out, problem, config = trained.out, trained.problem, trained.config
    cli.evaluate(out, samples=2)
    assert config.method in capsys.readouterr().out
    batch = collate(problem.splits["test"], np.arange(6)[:, None])
    bound = problem.network.bind(trained.posterior.mean, problem.frozen, {})
    ours = problem.objective.outputs(bound, jax.tree.map(jnp.asarray, batch))
    # What `evaluate` wrote of the mean is of these logits.
    stored = run.read_predictions(out, "mean")[0][0, :6]
    np.testing.assert_allclose(stored, jax.nn.log_softmax(ours), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"^format: .* has no adapters .* use hf$"):
        cli.export(out, tmp_path / "peft")
    assert not (tmp_path / "peft").exists()
    cli.export(out, tmp_path / "hf", format="hf")
    settings = json.loads((tmp_path / "hf" / "ivon_jax.json").read_text())
    assert settings["config"]["train"] == "full"
    theirs = torch_logits(tmp_path / "hf", problem, batch)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_a_quantised_base_cannot_be_trained(base, tasks, tmp_path):
    config = config_of(tasks["tied"], base=base)
    with pytest.raises(ValueError, match=f"^base: {base} is quantised, which --train"):
        cli.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_adapters_are_no_start(tasks, tmp_path):
    config = config_of(tasks["tied"])
    lora = dataclasses.replace(config, train="lora", lora=LoraConfig(rank=2))
    cli.train(lora, tmp_path / "lora")
    cli.export(tmp_path / "lora", tmp_path / "adapter")
    with pytest.raises(ValueError, match="^adapter: only with --train lora, not full"):
        cli.train(
            dataclasses.replace(config, adapter=tmp_path / "adapter"), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


def test_a_16_bit_base_is_computed_with_and_trained_in_32(tasks, tmp_path):
    config = config_of(tasks["tied"], base="bf16")
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention mixes them
        cli.train(config, tmp_path / "run")
        cli.export(tmp_path / "run", tmp_path / "hf", format="hf")
    posterior, _ = run.read_posterior(tmp_path / "run")
    assert {leaf.dtype for leaf in jax.tree.leaves(posterior.mean)} == {
        np.dtype("float32")
    }
    written = load_file(tmp_path / "hf" / "model.safetensors")
    assert {leaf.dtype for leaf in written.values()} == {np.dtype("float32")}
