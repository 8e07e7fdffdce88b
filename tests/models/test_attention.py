"""The kernels of attention, interpreted on a CPU, against XLA's operations."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from llama_peer import SMALL, random_model
from test_packed import by_rows, in_rows, weighted

from ivon_jax.models import Llama, LlamaConfig
from ivon_jax.models.attention import (
    Causal,
    Kernel,
    Platform,
    attention,
    choose,
    tiles,
)
from ivon_jax.models.packed import packed_attention

SPLASH = Kernel("splash", interpret=True)
ROUNDING = {jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def promotion():
    """JAX's kernels mix dtypes and ranks, in their gradients too."""
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def inputs(queries, keys, rows=2, heads=4, kv_heads=2, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = [(queries, heads), (keys, kv_heads), (keys, kv_heads)]
    return [
        jnp.asarray(rng.normal(size=(rows, length, count, 64)), dtype)
        for length, count in shapes
    ]


def with_gradients(run, arrays, real=None):
    """A function's result, and gradients of a number that depends on each entry."""

    def loss(*arrays):
        out = run(*arrays).astype(jnp.float32)
        out = out if real is None else jnp.where(real[..., None, None], out, 0)
        return weighted([out]), out

    grads, out = jax.jit(
        jax.grad(loss, argnums=tuple(range(len(arrays))), has_aux=True)
    )(*arrays)
    return [out, *grads]


def assert_close(found, wanted, rounding):
    for one, two in zip(found, wanted, strict=True):
        one, two = (np.asarray(x, np.float32) for x in (one, two))
        np.testing.assert_allclose(one, two, rtol=0, atol=rounding * np.abs(two).max())


@pytest.mark.parametrize(
    ("queries", "keys", "window", "windowed", "dtype"),
    [
        (100, 100, None, None, jnp.float32),
        (100, 100, None, None, jnp.bfloat16),
        (130, 200, None, None, jnp.float32),  # after a prefix
        (130, 200, 17, None, jnp.float32),
        (40, 129, 150, None, jnp.float32),  # hides nothing
        (40, 40, 17, True, jnp.float32),  # of this layer, where others have none
        (40, 40, 17, False, jnp.float32),
    ],
)
def test_splash_is_as_xla(queries, keys, window, windowed, dtype):
    here = None if windowed is None else jnp.array(windowed)
    arrays = inputs(queries, keys, dtype=dtype)
    found, wanted = (
        with_gradients(
            lambda *x, kernel=kernel: attention(*x, Causal(window, here), kernel),
            arrays,
        )
        for kernel in (SPLASH, Kernel())
    )
    assert_close(found, wanted, ROUNDING[dtype])


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize(
    ("prefix", "lengths"),
    [
        (0, (3, 70, 9)),  # the whole row has fewer scores than three texts of 70
        (0, (30, 40, 20)),
        (20, (3, 70, 9)),
    ],
)
def test_splash_takes_texts_of_a_row(prefix, lengths, window):
    rows = [[np.zeros(n, int) for n in lengths], [np.zeros(5, int) for _ in lengths]]
    tokens, packed = in_rows(np.zeros(prefix, int), rows, 4)
    packed = jax.tree.map(jnp.asarray, packed)
    arrays = inputs(tokens.shape[1], tokens.shape[1])
    _, texts, width = packed.token.shape
    own = np.asarray(packed.place) < texts * width
    real = jnp.asarray(np.pad(own, ((0, 0), (prefix, 0)), constant_values=True))
    found, wanted = (
        with_gradients(
            lambda *x, kernel=kernel: packed_attention(
                *x, packed, Causal(window), kernel
            ),
            arrays,
            real,
        )
        for kernel in (SPLASH, Kernel())
    )
    assert_close(found, wanted, 1e-5)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_devices_share_rows_and_heads(kv_heads):
    """One head of keys cannot be shared by two: each has all of them."""
    sizes = {"data": 2, "fsdp": 2, "tensor": 2}
    mesh = jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * 3
    )
    arrays = inputs(40, 40, rows=4, kv_heads=kv_heads)
    run = functools.partial(attention, causal=Causal(), kernel=SPLASH)
    wanted = with_gradients(run, arrays)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    rules = [("batch", ("data", "fsdp")), ("heads", "tensor")]
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        found = with_gradients(run, jax.device_put(arrays, split))
    assert_close(found, wanted, 1e-5)


def test_a_decoder_is_the_same_with_it():
    """Scanned layers of which only some have a window, recomputed."""
    sizes = {"head_dim": 64, "hidden_size": 32, "num_hidden_layers": 2}
    windows = {"sliding_window": 9, "windowed_layers": (True, False)}
    config = LlamaConfig(**vars(SMALL) | sizes | windows)
    _, params = random_model(config)
    rng = np.random.default_rng(0)
    rows = [[rng.integers(1009, size=n) for n in (1, 30, 9)]]
    found = []
    for kernel in (Kernel(), SPLASH):
        model = Llama(config, remat="dots", attention=kernel)

        def loss(params, model=model):
            return weighted(by_rows(model, params, [], rows))

        found.append(jax.jit(jax.grad(loss))(params))
    wanted, got = (jax.tree.leaves(one) for one in found)
    size = max(np.abs(leaf).max() for leaf in wanted)
    for one, two in zip(got, wanted, strict=True):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kernel", [Kernel(), Kernel(blocks=4)])
@pytest.mark.parametrize(
    ("queries", "keys", "window", "windowed"),
    [
        (1, 1, None, None),
        (33, 33, None, None),
        (131, 131, None, None),
        (64, 190, None, None),  # after a prefix
        (131, 150, 9, None),
        (131, 131, 70, None),
        (131, 150, 9, True),
        (131, 150, 9, False),
    ],
)
def test_xla_is_as_jax(queries, keys, window, windowed, kernel, dtype):
    here = None if windowed is None else jnp.array(windowed)
    arrays, causal = inputs(queries, keys, dtype=dtype), Causal(window, here)
    mask = causal.visible(queries, keys)
    found = with_gradients(lambda *x: attention(*x, causal, kernel), arrays)
    wanted = with_gradients(
        lambda *x: jax.nn.dot_product_attention(*x, mask=mask), arrays
    )
    assert_close(found, wanted, ROUNDING[dtype])


@pytest.mark.parametrize(("window", "share"), [(None, 10 / 16), (64, 7 / 16)])
def test_blocks_leave_out_keys_that_none_of_them_sees(window, share):
    arrays = inputs(256, 256)

    def operations(blocks):
        causal, kernel = Causal(window), Kernel(blocks=blocks)
        run = jax.jit(lambda *x: attention(*x, causal, kernel))
        return run.lower(*arrays).compile().cost_analysis()["flops"]

    assert operations(4) < (share + 0.05) * operations(1)


def test_short_texts_are_left_to_xla():
    arrays = inputs(40, 40)
    long = Kernel("splash", shortest=41, interpret=True)
    for kernel, there in ((long, False), (SPLASH, True)):
        run = functools.partial(attention, causal=Causal(), kernel=kernel)
        assert ("pallas_call" in str(jax.make_jaxpr(run)(*arrays))) == there


@pytest.mark.parametrize(
    ("queries", "keys", "window"), [(40, 40, None), (30, 50, None), (30, 50, 7)]
)
def test_cudnn_is_asked_for_what_xla_computes(queries, keys, window, monkeypatch):
    """Its own kernel needs a GPU; the arguments mean the same to JAX's other one."""
    arrays = inputs(queries, keys)
    wanted = with_gradients(lambda *x: attention(*x, Causal(window), Kernel()), arrays)
    asked, real = [], jax.nn.dot_product_attention

    def other(*args, implementation, **settings):
        asked.append((implementation, settings.get("mask")))
        return real(*args, **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", other)
    found = with_gradients(
        lambda *x: attention(*x, Causal(window), Kernel("cudnn")), arrays
    )
    assert set(asked) == {("cudnn", None)}
    assert_close(found, wanted, 1e-5)


@pytest.mark.parametrize("length", [1, 128, 129, 512, 513, 1100, 5000])
def test_blocks_cover_a_length_and_little_more(length):
    block, covered = tiles(length)
    assert block % 128 == 0 and block <= 512 and covered % block == 0
    assert length <= covered < length + 128 * covered // block


TPU, H100, V100 = Platform("tpu"), Platform("gpu", 9.0), Platform("gpu", 7.0)
CPU = Platform("cpu")


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "wanted"),
    [
        (TPU, jnp.bfloat16, 128, "splash"),
        (TPU, jnp.float32, 64, "splash"),
        (TPU, jnp.bfloat16, 80, "xla"),
        (TPU, jnp.bfloat16, None, "xla"),
        (H100, jnp.bfloat16, 80, "cudnn"),
        (H100, jnp.float32, 64, "xla"),
        (H100, jnp.bfloat16, 256, "xla"),
        (V100, jnp.bfloat16, 64, "xla"),
        (CPU, jnp.bfloat16, 64, "xla"),
    ],
)
def test_the_kernel_is_chosen_by_platform_dtype_and_heads(
    platform, dtype, head_dim, wanted
):
    kernel, reason = choose("auto", platform, dtype, head_dim)
    assert kernel.name == wanted and reason.startswith(wanted)
    assert (kernel.shortest > 0) == (wanted != "xla")
    for name in ("splash", "cudnn"):
        refused: contextlib.AbstractContextManager = contextlib.nullcontext()
        if name != wanted:
            refused = pytest.raises(ValueError, match=rf"^attention: {name} needs ")
        with refused:
            assert choose(name, platform, dtype, head_dim)[0] == Kernel(name)
    plain = choose("xla", platform, dtype, head_dim)[0]
    assert (plain.name, plain.blocks > 1) == ("xla", platform == CPU)
    assert wanted != "xla" or kernel == plain


def test_an_encoder_has_no_blocks():
    assert choose("auto", CPU, jnp.float32, None)[0] == Kernel()


def test_a_device_says_what_it_is():
    assert Platform.of(jax.devices()[0]) == CPU

    class Gpu:
        platform = "gpu"
        compute_capability = "gfx90a"

    assert Platform.of(Gpu()) == Platform("gpu")
