"""Plans against programs that are counted by hand, and by XLA."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models

from ivon_jax.lora import LoraConfig
from ivon_jax.models import families
from ivon_jax.models.attention import Platform
from ivon_jax.models.cache import fetch
from ivon_jax.models.deberta import Deberta
from ivon_jax.models.deberta_config import DebertaConfig
from ivon_jax.models.gguf_io import read_gguf
from ivon_jax.models.known import CATALOG
from ivon_jax.models.llama import Llama
from ivon_jax.models.llama_config import LlamaConfig
from ivon_jax.models.pretrained import load_config
from ivon_jax.train import cli
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.plan import program
from ivon_jax.train.plan.flops import flops
from ivon_jax.train.plan.plan import Memory, Plan, make_plans
from ivon_jax.train.plan.program import compile_step, step_shapes
from ivon_jax.train.plan.report import report, table
from ivon_jax.train.plan.topology import find_topology
from ivon_jax.train.pod.sharding import make_mesh

CPU = Platform("cpu")
SHAPE = LlamaConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=16,
)


def config_of(method="ivon-lora", batch=16, **changes) -> TrainConfig:
    hyper = Hyper(batch_size=batch)
    config = TrainConfig(method=method, hyper=hyper, lora=LoraConfig(dropout=0.0))
    return resolve(dataclasses.replace(config, **changes), "custom", 64)


def make_plan(config, shape, seq_length, classes) -> Plan:
    run = config, find_topology("v5e", config.mesh)
    return next(make_plans([run], shape, seq_length, classes))


ENCODER = DebertaConfig(
    vocab_size=256,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=3,
    num_attention_heads=8,
    relative_attention=True,
    pos_att_type=("c2p", "p2c"),
    position_buckets=64,
    num_labels=4,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


@pytest.mark.parametrize(
    ("shape", "method", "remat"),
    [
        (SHAPE, "adam", "none"),
        (SHAPE, "ensemble", "none"),
        pytest.param(SHAPE, "ivon-lora", "none", marks=pytest.mark.slow),
        (SHAPE, "ivon-lora", "full"),
        (ENCODER, "ivon-lora", "none"),
        (
            dataclasses.replace(ENCODER, share_att_key=True, conv_kernel_size=3),
            "ivon-lora",
            "none",
        ),
    ],
)
def test_operations_are_those_xla_counts(shape, method, remat, monkeypatch):
    # XLA counts the body of a loop once.
    family = families.family_of(shape)
    unrolled = functools.partial(family.module, scan_layers=False)
    unrolled_family = dataclasses.replace(family, module=unrolled)
    config = config_of(method, remat=remat)
    wanted = flops(config, shape, 32, 4)
    monkeypatch.setattr(program, "family_of", lambda shape: unrolled_family)
    compiled = compile_step(step_shapes(config, shape, CPU, 32, 4), make_mesh("data=1"))
    counted = compiled.cost_analysis()["flops"]
    # XLA counts the elementwise operations too, and leaves out what the first
    # layer need not send further back.
    assert wanted == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(("platform", "base"), [("tpu", "f32"), ("gpu", "bf16")])
def test_an_encoder_has_no_choice_of_kernels(platform, base):
    """Its heads of 64 would suit them all, but it adds biases to the scores."""
    shape = dataclasses.replace(ENCODER, num_attention_heads=2)
    config, chip = config_of("adam", base=base), Platform(platform, 9.0)
    step = step_shapes(config, shape, chip, 32, 4)
    assert isinstance(step.network.base, Deberta)
    for name in ("splash", "cudnn"):
        asked = dataclasses.replace(config, attention=name)
        with pytest.raises(ValueError, match=f"^attention: {name} needs"):
            step_shapes(asked, shape, chip, 32, 4)


@pytest.mark.parametrize("mesh", ["data=1", "data=8", "fsdp=8", "fsdp=2,tensor=4"])
def test_the_base_takes_its_share(mesh):
    model = Llama(SHAPE)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    kernels = sum(
        leaf.size * 4 for leaf in jax.tree.leaves(params) if min(leaf.shape) > 6
    )
    norms = sum(leaf.size * 4 for leaf in jax.tree.leaves(params)) - kernels
    parts = 1 if mesh.startswith("data") else 8
    plan = make_plan(config_of(mesh=mesh, remat="full"), SHAPE, 32, 4)
    memory, other = plan.memory, norms + 4 * 256 * 128
    assert kernels / parts <= memory.base <= kernels / parts + other
    # Forward, again, and backward; what fsdp splits is gathered first.
    parts = 4 if "tensor" in mesh else 1
    assert kernels / parts <= plan.reads / 3 <= kernels / parts + other
    assert memory.peak >= memory.base + memory.trained + memory.optimizer


def test_kernels_are_gathered_and_hidden_states_are_not():
    small, large = (
        make_plan(config_of(mesh="data=2,fsdp=4", batch=batch), SHAPE, 32, 4)
        for batch in (16, 64)
    )
    gathered = small.traffic["all-gather"]
    assert large.traffic["all-gather"] == pytest.approx(gathered, rel=0.05)
    assert sum(large.traffic.values()) < 1.1 * sum(small.traffic.values())
    assert large.flops == pytest.approx(4 * small.flops)


@pytest.mark.parametrize("base", ["bf16", "int8", "nf4"])
def test_smaller_bases_take_less(base):
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention mixes them
        whole, small = (
            make_plan(config_of(base=kind), SHAPE, 32, 4).memory.base
            for kind in ("f32", base)
        )
    assert small < 0.6 * whole


# Backbone and embeddings, from the authors' table.
ENCODERS = {"xsmall": "70M", "small": "142M", "base": "184M", "large": "435M"}


@pytest.mark.parametrize("name", CATALOG)
def test_known_shapes_have_as_many_parameters_as_their_names_say(name):
    size = ENCODERS.get(name.rpartition("-")[2], name)
    number, unit = re.search(r"([\d.]+)([MB])(-v0.3)?$", size).group(1, 2)
    config = families.read_config(CATALOG[name])
    model = families.family_of(config).module(config)
    tokens = jnp.zeros((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert 0.95 < count / float(number) / {"M": 1e6, "B": 1e9}[unit] < 1.3


@pytest.fixture(scope="module")
def fits() -> Plan:
    found = make_plan(config_of(), SHAPE, 32, 4)
    assert report(found).splitlines()[-1].startswith("fits: ")
    return found


AXES, BASES = "3 times the fsdp or tensor axis", "--base bf16, int8 or nf4"
ROWS, TOKENS = "more devices along data", "a lower --seq-length"


@pytest.mark.parametrize(
    ("sizes", "changes", "advice"),
    [  # base, adapters, optimizer, activations in GiB, of 15.75
        ((20, 0, 0, 30), {}, [AXES, BASES, "--remat full", ROWS]),
        ((20, 0, 0, 5), {}, [AXES, BASES]),
        ((20, 0, 0, 5), {"base": "bf16"}, [AXES, "--base int8 or nf4"]),
        ((20, 0, 0, 5), {"base": "nf4"}, [AXES]),
        ((1, 5, 10, 3), {}, ["a lower --rank"]),
        ((7, 1, 2, 6.5), {}, ["2 times the fsdp or tensor axis", BASES]),
        ((6, 1, 2, 7.5), {"remat": "full"}, [ROWS]),
        ((1, 0, 0, 30), {"remat": "dots"}, ["--remat full", ROWS]),
        ((1, 0, 0, 30), {"remat": "full", "mesh": "data=4,fsdp=4"}, [TOKENS]),
        ((1, 0, 0, 30), {"remat": "full", "accumulate": 16}, [TOKENS]),
    ],
)
def test_the_report_says_what_to_change(fits, sizes, changes, advice):
    base, adapters, optimizer, activations = (int(x * 2**30) for x in sizes)
    peak = base + adapters + optimizer + activations
    memory = Memory(base, adapters, optimizer, activations, peak)
    config = dataclasses.replace(fits.config, **changes)
    text = report(dataclasses.replace(fits, fits=False, memory=memory, config=config))
    assert f"does not fit: {sum(sizes) / 15.75:.2f} times the memory; try" in text
    for part in (AXES, BASES, "--remat full", ROWS, "a lower --rank", TOKENS):
        assert (part in text) == (part in advice)
    assert all(part in text for part in advice)


def test_gpus_multiply_float32_at_half_the_rate(fits):
    def compute(chip, base):
        topology = find_topology(chip, "data=1")
        config = dataclasses.replace(fits.config, base=base)
        plan = dataclasses.replace(fits, topology=topology, config=config)
        return plan.bounds["compute"]

    for chip, ratio in (("v5e", 1), ("a100", 2), ("h100", 2)):
        assert compute(chip, "f32") == ratio * compute(chip, "bf16")


@pytest.mark.parametrize("names_fit", [True, False])
def test_offloading_is_best_only_if_nothing_else_fits(fits, names_fit):
    offload, names = (
        dataclasses.replace(
            fits,
            config=dataclasses.replace(fits.config, remat=remat),
            cycles=cycles,
            host=host,
        )
        for remat, cycles, host in (("offload", 1, 2**31), ("names", 2, 0))
    )
    names = dataclasses.replace(names, fits=names_fit)
    assert "host's memory for one device: 2.000 GiB" in report(offload)
    assert "host" not in report(names)
    text = table([offload, names])
    best = "names" if names_fit else "offload"
    assert f"fastest that fits, by prompts a second and chip: --remat {best} " in text
    (line,) = re.findall(r".* offload .*GiB.*", text)
    assert line.endswith("+ 2.00 GiB to the host and back")
    # By shapes neither times nor the host's memory are known.
    smaller = fits.memory._replace(peak=fits.memory.peak - 1)
    guessed = dataclasses.replace(offload, cycles=0, host=0, memory=smaller)
    text = table([guessed, dataclasses.replace(names, cycles=0)])
    assert f"the least memory: --remat {best} " in text


def test_the_command_reads_no_weights(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_models.CONFIG))
    words = ["plan", "--model", str(folder), "--chip", "h100", "--mesh", "data=8"]
    words += ["--compiler", "cpu", "--sweep.batch-size", "16", "32"]
    words += ["--sweep.accumulate", "1", "2"]
    monkeypatch.setattr("sys.argv", ["ivon-jax", *words, "--seq-length", "16"])
    cli.main()
    shown = capsys.readouterr().out
    assert "on 1 node of 8 h100" in shown
    best = "fewest operations of what fits, and of equal ones the least memory: "
    assert f"{best}--remat dots --base f32 --mesh data=8 --batch-size" in shown
    for remat in ("none", "dots", "names", "full"):
        assert len(re.findall(rf"data=8 +(?:16|32) +[12] +{remat} ", shown)) == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--chip", "tpu9"], "invalid choice 'tpu9'"),
        (["--chip", "v5e", "--mesh", "data=16"], "mesh: data=16 is 16 devices"),
        (["--chip", "v5e", "--mesh", "data=2,tensor=3"], "mesh: data=2,tensor=3 is 6"),
        (
            ["--chip", "v5e", "--topology", "3x5"],
            "topology: v5e has no '3x5'; it has 2x2",
        ),
        (["--chip", "v5e", "--slices", "2"], "slices: 2 do not divide data"),
        (["--chip", "h100", "--slices", "2"], "slices: 2 of h100"),
        (["--compiler", "gcc", "--chip", "v5e"], "invalid choice 'gcc'"),
        (["--chip", "v5e", "--sweep.remat", "some"], "invalid choice 'some'"),
        (
            ["--chip", "v5e", "--sweep.batch-size", "3", "--mesh", "data=2"],
            "batch_size: 3",
        ),
        (
            ["--chip", "h100", "--attention", "splash"],
            "attention: splash needs a TPU",
        ),
        (["--chip", "h100", "--attention", "cudnn"], "cudnn needs a 16-bit base"),
        (["--chip", "v5e", "--seq-length", "0"], "seq_length: 0 is not in"),
        (["--chip", "v5e", "--model", "no-model"], "model 'no-model' not found"),
    ],
)
def test_refusals(words, message, capsys, monkeypatch):
    common = ["--compiler", "cpu", "--batch-size", "16"]
    words = ["--model", "HuggingFaceTB/SmolLM2-135M", *common, *words]
    monkeypatch.setattr("sys.argv", ["ivon-jax", "plan", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_known_model_is_planned_without_fetching_it(tmp_path, monkeypatch):
    monkeypatch.setenv("IVON_JAX_CACHE", str(tmp_path))
    shape = load_config("smollm2-135m-instruct")
    assert not list(tmp_path.iterdir())
    # Its file says the same, with numbers in float32.
    monkeypatch.undo()
    file, _ = read_gguf(fetch("smollm2-135m-instruct"))
    assert file.rms_norm_eps == np.float32(shape.rms_norm_eps)
    assert dataclasses.replace(file, rms_norm_eps=shape.rms_norm_eps) == shape
