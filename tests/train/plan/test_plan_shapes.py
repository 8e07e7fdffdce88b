"""Memory estimated from shapes, against what the chips' own compilers need."""

import functools

import jax
import pytest
from test_plan import SHAPE, config_of

from ivon_jax.models.attention import Platform
from ivon_jax.models.pretrained import load_config
from ivon_jax.train.plan.chips import GIB
from ivon_jax.train.plan.plan import make_plans
from ivon_jax.train.plan.shapes import estimate
from ivon_jax.train.plan.topology import find_topology

TPU = Platform("tpu")
SMALL, LLAMA = "smollm2-135m-instruct", "meta-llama/Llama-3."
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("model", "batch", "length", "base", "remat", "mesh", "peak"),
    [  # GiB of one chip, by libtpu 0.0.42: docs/accelerators.md
        (SMALL, 8, 64, "bf16", "none", "data=1", 0.66),
        (f"{LLAMA}2-3B", 8, 256, "bf16", "full", "data=1", 7.43),
        (f"{LLAMA}2-3B", 8, 256, "bf16", "dots", "data=1", 9.10),
        slow(f"{LLAMA}2-3B", 8, 256, "bf16", "none", "data=1", 15.34),
        slow(f"{LLAMA}2-3B", 8, 256, "int8", "dots", "data=1", 6.48),
        (f"{LLAMA}2-3B", 8, 256, "nf4", "dots", "data=1", 5.35),
        slow(f"{LLAMA}1-8B", 32, 256, "bf16", "full", "fsdp=8", 2.66),
        (f"{LLAMA}1-8B", 32, 128, "bf16", "none", "data=2,fsdp=16", 2.18),
        slow(f"{LLAMA}1-70B", 256, 2048, "bf16", "full", "data=4,fsdp=64", 6.22),
        (f"{LLAMA}1-70B", 256, 2048, "bf16", "full", "data=2,fsdp=64", 9.34),
    ],
)
def test_it_is_within_30_percent(model, batch, length, base, remat, mesh, peak):
    config = config_of(batch=batch, model=model, base=base, remat=remat, mesh=mesh)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention mixes them
        found = estimate(config, load_config(model), TPU, length, 4)
    assert peak / 1.3 < found / GIB < peak * 1.3


@pytest.mark.parametrize("train", ["lora", "full"])
def test_devices_share_what_is_split(train):
    method = "ivon-lora" if train == "lora" else "adam"
    one, rows, base, heads = (
        estimate(config_of(method, train=train, mesh=mesh), SHAPE, TPU, 512, 4)
        for mesh in ("data=1", "data=8", "fsdp=8", "tensor=8")
    )
    # Eight devices never need more than one, nor less than an eighth.
    for shared in (rows, base, heads):
        assert one / 8 <= shared < one
    assert base < rows


def test_recomputation_needs_less():
    none, dots, names, offload, full = (
        estimate(config_of(remat=remat), SHAPE, TPU, 128, 4)
        for remat in ("none", "dots", "names", "offload", "full")
    )
    assert full < offload < names < dots < none


def test_a_gpus_kernel_needs_no_cudnn_here():
    def peak(attention):
        config = config_of(base="bf16", attention=attention)
        run = config, find_topology("h100", "data=1")
        with jax.numpy_dtype_promotion("standard"):  # JAX's own attention mixes them
            return next(make_plans([run], SHAPE, 512, 4)).memory.peak

    assert peak("cudnn") < peak("xla")
