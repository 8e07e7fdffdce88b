"""Damaged files are read as they were, as something legal, or refused in one line."""

import dataclasses
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deberta_peer
import fuzzing
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_deberta_tokenizer
import test_gguf_tokenizer
import test_posterior
import tiny_models
from safetensors.numpy import save_file

from ivon_jax.lora import LoraConfig
from ivon_jax.models import deberta_tokenizer, gguf_io, peft_io, safetensors_io
from ivon_jax.models.gguf_tokenizer import read_tokenizer
from ivon_jax.models.rope_config import Llama3Rope
from ivon_jax.models.rotary import stretched
from ivon_jax.models.weights import compare_shapes
from ivon_jax.train.config import TrainConfig
from ivon_jax.train.config_json import from_json, to_json
from ivon_jax.train.methods.ivon_lora import IvonLoraHyper
from ivon_jax.train.runs import run

LORA = LoraConfig(rank=2, dropout=0.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A file, and who reads it.

    Attributes:
        file: Its name.
        build: Writes it, and what belongs to it, into a new folder.
        read: Reads the folder.
        damage: What is done to the file.
        check: Compares what was read after that with what it was before.
        count: How many times.
    """

    file: str
    build: Callable[[Path], Any]
    read: Callable[[Path], Any]
    damage: fuzzing.Damage
    check: Callable[[Any, Any], None]
    count: int


def read_weights(config, tensors):
    """All tensors; `fill` compares and refuses the same."""
    compare_shapes(SHAPES, tensors.shapes)
    read = {name: np.asarray(tensors.read(name)[:]) for name in SHAPES}
    for name, tensor in read.items():
        if not np.isfinite(tensor).all():
            raise ValueError(f"tensor {name} has NaN or infinite values")
    return read


SHAPES = {name: tensor.shape for name, tensor in tiny_models.tensors().items()}


def build_shards(folder: Path) -> None:
    weights = tiny_models.tensors()
    tiny_models.write_folder(folder, weights)
    (folder / safetensors_io.WEIGHTS).unlink()
    names = sorted(weights)
    where = {}
    for file, part in (("0.safetensors", names[:9]), ("1.safetensors", names[9:])):
        save_file({name: weights[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / safetensors_io.INDEX).write_text(json.dumps({"weight_map": where}))


def build_gguf(folder: Path) -> None:
    """Of several tensor types, with the frequencies of Llama 3.1 to 3.3."""
    from gguf import GGMLQuantizationType as Kind

    def add(writer):
        plain = 500000.0 ** -(np.arange(0, 8, 2) / 8)
        factors = plain / stretched(plain, Llama3Rope(32.0, 1.0, 4.0, 8192.0))
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))

    kinds = {
        "model.layers.0.mlp.up_proj.weight": Kind.Q4_0,
        "model.layers.1.mlp.up_proj.weight": Kind.Q8_0,
        "model.layers.0.self_attn.q_proj.weight": Kind.F16,
        "model.layers.1.self_attn.q_proj.weight": Kind.BF16,
    }
    tiny_models.write_gguf(
        folder / "m.gguf", tiny_models.tensors(), kinds, add, theta=500000.0
    )


def build_adapter(folder: Path) -> None:
    rng = np.random.default_rng(0)
    draw = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), LEAVES)
    peft_io.save_adapter(folder, draw, LORA, "base")


LEAVES = {
    "layers": {
        "self_attn": {
            "q_proj": {
                "a": jax.ShapeDtypeStruct((2, 32, 2), jnp.float32),
                "b": jax.ShapeDtypeStruct((2, 2, 32), jnp.float32),
            }
        }
    }
}


def build_run(folder: Path) -> None:
    hyper = IvonLoraHyper(steps=3, warmup=1, batch_size=2, learning_rate=0.1, ess=5.0)
    run.write_config(folder, TrainConfig(lora=LORA, hyper=hyper), examples=16)


def equal(read: Any, whole: Any) -> None:
    test_posterior.assert_equal(read, whole)


def equal_posterior(read: Any, whole: Any) -> None:
    equal(read[0], whole[0])
    assert read[1] == whole[1]


def finite(read: Any, whole: Any) -> None:
    """Weights carry no checksum, so their values may be others."""
    assert jax.tree.map(np.shape, read) == jax.tree.map(np.shape, whole)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(read))


def legal_model(read: Any, whole: Any) -> None:
    """Plain finite numbers, of which the same is read again."""
    assert type(read) is type(whole)
    try:
        text = json.dumps(read.to_hf(), allow_nan=False)
    except ValueError as error:
        assert "not what one of" in str(error)  # of which no other class is
    else:
        assert type(read).from_hf(json.loads(text)) == read


def legal_run(read: Any, whole: Any) -> None:
    assert np.isfinite(read.lora.scale_at(("q_proj",)))
    text = json.dumps(to_json(read), allow_nan=False)
    assert from_json(json.loads(text), TrainConfig) == read


def some_tokenizer(read: Any, whole: Any) -> None:
    if read is not None:  # of another kind now, which transformers reads
        assert len(read) <= len(whole)
        reads_text(read, whole)


def reads_text(read: Any, whole: Any) -> None:
    assert isinstance(read("abc a")["input_ids"], list)


CASES = {
    "llama": Case(
        "config.json",
        lambda folder: (folder / "config.json").write_text(
            json.dumps(
                tiny_models.CONFIG
                | {
                    "rope_scaling": {
                        "rope_type": "yarn",
                        "factor": 4.0,
                        "original_max_position_embeddings": 64,
                    }
                }
            )
        ),
        safetensors_io.read_config,
        fuzzing.damaged_json,
        legal_model,
        300,
    ),
    "deberta": Case(
        "config.json",
        lambda folder: (folder / "config.json").write_text(
            json.dumps(
                deberta_peer.LIKE_V3
                | {
                    "hidden_act": "gelu",
                    "layer_norm_eps": 1e-7,
                    "hidden_dropout_prob": 0.1,
                    "initializer_range": 0.02,
                    "problem_type": "regression",
                    "id2label": {"0": "no", "1": "yes"},
                }
            )
        ),
        safetensors_io.read_config,
        fuzzing.damaged_json,
        legal_model,
        300,
    ),
    "weights": Case(
        safetensors_io.WEIGHTS,
        lambda folder: tiny_models.write_folder(folder, tiny_models.tensors()),
        lambda folder: read_weights(*safetensors_io.read_folder(folder)),
        fuzzing.damaged_safetensors,
        finite,
        200,
    ),
    "index": Case(
        safetensors_io.INDEX,
        build_shards,
        lambda folder: read_weights(*safetensors_io.read_folder(folder)),
        fuzzing.damaged_json,
        equal,
        200,
    ),
    "gguf": Case(
        "m.gguf",
        build_gguf,
        lambda folder: read_weights(*gguf_io.read_gguf(folder / "m.gguf")),
        fuzzing.damaged,
        finite,
        300,
    ),
    "gguf tokenizer": Case(
        "m.gguf",
        lambda folder: test_gguf_tokenizer.write(folder / "m.gguf"),
        lambda folder: read_tokenizer(folder / "m.gguf"),
        fuzzing.damaged,
        some_tokenizer,
        200,
    ),
    "spm.model": Case(
        "spm.model",
        test_deberta_tokenizer.write,
        deberta_tokenizer.read_tokenizer,
        fuzzing.damaged,
        reads_text,
        20,
    ),
    "adapter's config": Case(
        peft_io.CONFIG,
        build_adapter,
        lambda folder: peft_io.load_adapter(folder, LEAVES, LORA),
        fuzzing.damaged_json,
        equal,
        200,
    ),
    "adapter": Case(
        peft_io.WEIGHTS,
        build_adapter,
        lambda folder: peft_io.load_adapter(folder, LEAVES, LORA),
        fuzzing.damaged_safetensors,
        finite,
        300,
    ),
    "posterior": Case(
        run.POSTERIOR,
        lambda folder: test_posterior.draw(0).save(folder / run.POSTERIOR, step=300),
        run.read_posterior,
        fuzzing.damaged_safetensors,
        equal_posterior,
        300,
    ),
    "run": Case(
        run.CONFIG,
        build_run,
        lambda folder: run.read_config(folder)[0],
        fuzzing.damaged_json,
        legal_run,
        300,
    ),
}


def fuzz(case: Case, folder: Path, numbers: range) -> None:
    """Damage a file in numbered ways; each is read within 64 MB."""
    case.build(folder)
    path = folder / case.file
    content = path.read_bytes()
    whole = case.read(folder)
    case.check(whole, whole)
    tracemalloc.start()
    try:
        for number in numbers:
            path.write_bytes(case.damage(np.random.default_rng(number), content))
            tracemalloc.reset_peak()
            try:
                _read_once(case, folder, whole)
            except BaseException as error:
                error.add_note(f"damage {number}")
                raise
            assert tracemalloc.get_traced_memory()[1] < 64e6, number
    finally:
        tracemalloc.stop()


def _read_once(case: Case, folder: Path, whole: Any) -> None:
    try:
        read = case.read(folder)
    except (ValueError, OSError) as error:
        assert error.args and str(error).isprintable(), repr(error)
        return
    case.check(read, whole)


@pytest.mark.parametrize("name", CASES)
def test_damaged_files(name, tmp_path):
    fuzz(CASES[name], tmp_path, range(CASES[name].count))


@pytest.mark.parametrize("at", [8, 16, 24])  # tensors, fields, bytes of a name
@pytest.mark.parametrize("count", [2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_gguf_that_promises_more_than_it_holds(at, count, tmp_path):
    def promise(rng, content):
        return content[:at] + count.to_bytes(8, "little") + content[at + 8 :]

    case = dataclasses.replace(CASES["gguf"], damage=promise, check=equal)
    fuzz(case, tmp_path, range(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_more_damaged_files(name, tmp_path):
    count = CASES[name].count
    fuzz(CASES[name], tmp_path, range(count, 11 * count))
