"""The step by the chips' own compilers, which the extra `plan` installs."""

import dataclasses
import json
import subprocess
import sys

import jax
import pytest
import tiny_models
from test_plan import config_of

from ivon_jax.models.attention import Platform
from ivon_jax.models.pretrained import load_config
from ivon_jax.train import cli
from ivon_jax.train.plan import compiler
from ivon_jax.train.plan.compiler import compile_for_chips, missing
from ivon_jax.train.plan.program import step_shapes
from ivon_jax.train.plan.topology import find_topology

MESH = "data=2,fsdp=4"
SIZES = {"num_hidden_layers": 3, "hidden_size": 256, "intermediate_size": 512}


@pytest.fixture
def model(tmp_path) -> str:
    (tmp_path / "model").mkdir()
    text = json.dumps(tiny_models.CONFIG | SIZES)
    (tmp_path / "model" / "config.json").write_text(text)
    return str(tmp_path / "model")


def compiled(chip, config, length=128):
    topology = find_topology(chip, config.mesh)
    if reason := missing(topology):
        pytest.skip(reason)
    return next(compile_for_chips([(config, topology)], length, 4))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chip", ["v5e", "v5p", "h100"])
def test_a_step_sends_the_base_and_the_adapters_only(chip, model):
    config = config_of(model=model, base="bf16", remat="dots", mesh=MESH)
    program = compiled(chip, config)
    shapes = step_shapes(config, load_config(model), Platform("cpu"), 128, 4)
    adapters = [4 * leaf.size for leaf in jax.tree.leaves(shapes.state.params)]
    base = [2 * leaf.size for leaf in jax.tree.leaves(shapes.fixed.frozen)]
    # Its state is written over the one before, but for step and scalars.
    assert program.fits
    assert program.copied < 2**13
    for one in program.cost.collectives:
        assert "normal" not in one.source and "random" not in one.source, one
        assert one.turns in (1, SIZES["num_hidden_layers"])
    traffic = program.cost.traffic()
    reduced = traffic.get("all-reduce", 0) + traffic.get("reduce-scatter", 0)
    assert 0 < reduced <= 1.5 * sum(adapters)
    # Forward and backward each gather every layer once, or pass it round in parts.
    gathered = traffic.get("all-gather", 0) + traffic.get("collective-permute", 0)
    kernels = sum(base) - max(base)  # without the embedding
    assert kernels < gathered < 4 * (sum(base) + sum(adapters))
    assert (program.cost.cycles > 0) == (chip != "h100")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_attention_is_the_chips_kernel_on_all_axes(chip, tmp_path):
    sizes = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    (tmp_path / "config.json").write_text(json.dumps(tiny_models.CONFIG | sizes))
    config = config_of(model=str(tmp_path), base="bf16", mesh="data=2,fsdp=2,tensor=2")
    kernel, plain = (
        compiled(chip, dataclasses.replace(config, attention=name), 1024)
        for name in ("auto", "xla")
    )
    # XLA's scores are in the memory, those of the kernel are not.
    assert kernel.peak < 0.7 * plain.peak
    assert plain.kernels == 0 and (kernel.kernels > 0) == (chip == "v5e")
    for one in kernel.cost.collectives:
        assert one.turns in (1, SIZES["num_hidden_layers"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("chip", ["v5e", "h100"])
def test_offloaded_activations_are_in_the_hosts_memory(chip, model):
    config = config_of(model=model, base="bf16", remat="offload", mesh=MESH)
    moved, kept = (
        compiled(chip, dataclasses.replace(config, remat=remat))
        for remat in ("offload", "names")
    )
    tokens = config.hyper.batch_size * 128 // 8
    layers = SIZES["num_hidden_layers"]
    gate_and_up = 2 * 2 * layers * tokens * SIZES["intermediate_size"]
    assert moved.fits
    assert kept.host == 0
    assert gate_and_up <= moved.host < 1.5 * gate_and_up


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_does_not_fit_is_said_by_the_compiler(model, monkeypatch, capsys):
    words = ["--model", model, "--chip", "v5e", "--compiler", "chip"]
    words += ["--batch-size", "8192", "--seq-length", "128", "--sweep.remat", "none"]
    if reason := missing(find_topology("v5e", "data=1")):
        pytest.skip(reason)
    monkeypatch.setattr(sys, "argv", ["ivon-jax", "plan", *words])
    cli.main()
    shown = capsys.readouterr().out
    assert "does not fit: " in shown and "large activations: --remat full" in shown


def test_a_compiler_that_is_not_installed(model, monkeypatch, capsys):
    assert jax.device_count() == 8  # of all tests, before the command asks for fewer
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    words = ["--model", model, "--batch-size", "8", "--seq-length", "16"]
    for chip in ("v5e", "h100"):
        monkeypatch.setattr(
            sys,
            "argv",
            ["ivon-jax", "plan", "--chip", chip, "--compiler", "chip", *words],
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 2
        assert capsys.readouterr().err == (
            f"ivon-jax: compiler: the compiler of {chip} is not installed:"
            " pip install 'ivon-jax[plan]', on Linux x86-64\n"
        )
    monkeypatch.setattr(sys, "argv", ["ivon-jax", "plan", "--chip", "v5e", *words])
    cli.main()
    shown = capsys.readouterr()
    assert "memory: estimated from shapes" in shown.out
    assert shown.err.startswith("compiler: cpu, as the compiler of v5e is not")


def test_a_library_of_another_version(monkeypatch):
    monkeypatch.setattr(compiler, "find_spec", lambda name: name)
    monkeypatch.setattr(compiler, "version", lambda name: "0.0.1")
    reason = missing(find_topology("v5e", "data=1"))
    assert reason.startswith("libtpu 0.0.1 is not jax's, which is ==")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("print('libtpu: no', file=__import__('sys').stderr)", "ended: libtpu: no"),
        ("raise SystemExit(7)", "ended: exit code 7"),
    ],
)
def test_a_compiler_that_ends(program, message, model, monkeypatch):
    start = subprocess.Popen

    def other(command, **settings):
        return start([sys.executable, "-c", program], **settings)

    monkeypatch.setattr(compiler.subprocess, "Popen", other)
    runs = [(config_of(model=model), find_topology("v5e", "data=1"))]
    with pytest.raises(ValueError, match=f"^compiler: {message}$"):
        next(compile_for_chips(runs, 16, 4))


def test_the_childs_refusal_is_the_commands(tmp_path):
    """Without a library the child answers with the reason, in one line."""
    config = dataclasses.replace(config_of(), model=str(tmp_path / "none"))
    topology = find_topology("v5e", "data=1")._replace(shape="1x3")
    with pytest.raises(ValueError, match=r"^compiler: .*TPU|^compiler: .*[Tt]opology"):
        next(compile_for_chips([(config, topology)], 16, 4))
