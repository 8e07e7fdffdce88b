"""Plans of runs that train the whole model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from test_plan import CPU, ENCODER, SHAPE, make_plan

from ivon_jax.models import families
from ivon_jax.models.llama import Llama
from ivon_jax.train.config import TrainConfig, resolve
from ivon_jax.train.methods.base import Hyper
from ivon_jax.train.plan import program
from ivon_jax.train.plan.flops import flops
from ivon_jax.train.plan.program import compile_step, step_shapes
from ivon_jax.train.plan.report import report
from ivon_jax.train.pod.sharding import make_mesh

LLAMA = dataclasses.replace(SHAPE, num_hidden_layers=4)
UNTIED = dataclasses.replace(LLAMA, tie_word_embeddings=False)
SHARED = dataclasses.replace(ENCODER, share_att_key=True, conv_kernel_size=3)


def config_of(method: str = "adam", **changes) -> TrainConfig:
    config = TrainConfig(
        method=method, train="full", hyper=Hyper(batch_size=16), **changes
    )
    return resolve(config, "custom", 64)


@pytest.mark.parametrize(
    ("shape", "remat"),
    [
        pytest.param(LLAMA, "none", marks=pytest.mark.slow),
        (UNTIED, "full"),
        (ENCODER, "none"),
        pytest.param(SHARED, "none", marks=pytest.mark.slow),
    ],
)
def test_operations_are_those_xla_counts(shape, remat, monkeypatch):
    family = families.family_of(shape)
    unrolled = functools.partial(family.module, scan_layers=False)
    unrolled_family = dataclasses.replace(family, module=unrolled)
    config = config_of(remat=remat)
    wanted = flops(config, shape, 32, 4)
    monkeypatch.setattr(program, "family_of", lambda shape: unrolled_family)
    compiled = compile_step(step_shapes(config, shape, CPU, 32, 4), make_mesh("data=1"))
    # XLA counts the elementwise operations too.
    assert wanted == pytest.approx(compiled.cost_analysis()["flops"], rel=0.1)


@pytest.mark.parametrize("base", ["f32", "bf16"])
@pytest.mark.parametrize(
    "mesh", ["fsdp=2,tensor=2", pytest.param("data=1", marks=pytest.mark.slow)]
)
def test_all_of_the_model_is_trained_and_nothing_frozen(mesh, base):
    tokens = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(Llama(LLAMA).init, jax.random.key(0), tokens)
    whole = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
    parts = 1 if mesh == "data=1" else 4
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention mixes them
        made = make_plan(config_of(mesh=mesh, base=base), LLAMA, 32, 4)
    memory = made.memory
    assert memory.base == 0
    assert memory.trained == pytest.approx(whole / parts, rel=0.02)  # norms are whole
    assert memory.optimizer == pytest.approx(2 * whole / parts, rel=0.02)
    # The gradient is as large as what is trained.
    assert memory.peak >= 4 * whole / parts
    gathered = whole / (1 if mesh == "data=1" else 2)
    assert made.reads == pytest.approx(2 * gathered, rel=0.02)
    shown = f"  {'trained':<12} {memory.trained / 2**30:9.3f} GiB"
    assert shown in report(made).splitlines()


def test_what_is_too_large_is_advised_on():
    made = make_plan(config_of(), LLAMA, 32, 4)
    sizes = made.memory._replace(trained=8 * 2**30, optimizer=16 * 2**30, peak=2**35)
    text = report(dataclasses.replace(made, memory=sizes, fits=False))
    assert "large model and optimizer: more fsdp or tensor, or --train lora" in text
    assert "--rank" not in text and "base:" not in text
