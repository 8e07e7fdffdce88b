"""A quantised base: how far it is from the original, and that adapters see one model.

Expected values come from the same model with the dequantised kernels.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_models as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ivon_jax.lora import Lora, LoraConfig, init_adapters, merge
from ivon_jax.models import load, placing
from ivon_jax.models.packed import Packed
from ivon_jax.models.quantized import BLOCK, by_bits, by_table, promote, quantize
from ivon_jax.train.data.batches import Batch
from ivon_jax.train.keys import Streams
from ivon_jax.train.methods.ivon_lora import IvonLora, IvonLoraHyper
from ivon_jax.train.objectives.label_words import LabelWords
from ivon_jax.train.pod.sharding import make_mesh, placement
from ivon_jax.train.step import Fixed, Network, first_state, train_step
from ivon_jax.train.trainable import LoraOnly

qwix = pytest.importorskip("qwix")

KINDS = ("int8", "nf4")
WIDE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
TOKENS = jnp.array([[3, 14, 15, 9, 2], [6, 5, 35, 8, 9]])
ALL = LoraConfig(rank=4, dropout=0.0, targets=("all-linear",))
# The levels of QLoRA's NF4 are quantiles of a normal distribution; the widest gap
# between two of them is the first.
WIDEST_GAP = 1 - 0.6961928


def is_quantized(leaf):
    return isinstance(leaf, qwix.QArray)


def dequantized(params):
    return jax.tree.map(
        lambda leaf: qwix.dequantize(leaf) if is_quantized(leaf) else leaf,
        params,
        is_leaf=is_quantized,
    )


def kernels(params):
    leaves = jax.tree.leaves(params, is_leaf=is_quantized)
    return [leaf for leaf in leaves if is_quantized(leaf)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    weights = {
        name: np.kron(tensor, np.ones((2,) * tensor.ndim, np.float32)) / 8
        for name, tensor in tiny.tensors().items()
    }
    rng = np.random.default_rng(1)
    weights = {k: v * rng.uniform(0.5, 1, v.shape) for k, v in weights.items()}
    weights = {k: v.astype(np.float32) for k, v in weights.items()}
    path = tmp_path_factory.mktemp("hf") / "m"
    return tiny.write_folder(path, weights, vocab_size=100, **WIDE)


@functools.cache
def loaded(folder, quantization, mesh=None):
    place = {"place": placement(make_mesh(mesh))} if mesh else {}
    return load(str(folder), quantization=quantization, tokenizer=False, **place)


@given(
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    outlier=st.booleans(),
)
@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("kind", KINDS)
def test_no_entry_is_further_off_than_half_a_step(kind, seed, size, outlier):
    kernel = size * np.random.default_rng(seed).normal(size=(2 * BLOCK, 8))
    kernel[0, 0] *= 1e3 if outlier else 1
    kernel = jnp.asarray(kernel, jnp.float32)
    error = np.abs(qwix.dequantize(quantize(kernel, kind)) - kernel)
    if kind == "int8":  # 255 steps over a column's range
        bound = np.abs(kernel).max(0, keepdims=True) / 255
    else:
        largest = np.abs(kernel).reshape(2, BLOCK, 8).max(1)
        bound = np.repeat(largest, BLOCK, 0) * WIDEST_GAP / 2
    # Quotients of up to 127.5 are rounded in float32.
    assert (error <= bound * (1 + 1e-4)).all()


def test_decoders_agree_with_qwix_to_the_bit():
    kernel = np.random.default_rng(0).normal(size=(2 * BLOCK, 32))
    quantised = quantize(jnp.asarray(kernel, jnp.float32), "nf4")
    assert len(np.unique(np.asarray(quantised.qvalue, np.int32))) == 16
    levels = by_bits(quantised.qvalue)
    np.testing.assert_array_equal(levels, by_table(quantised.qvalue))
    expected = qwix.dequantize(quantised)
    blocks = levels.reshape(2, BLOCK, 32) * quantised.scale[:, None]
    np.testing.assert_array_equal(blocks.reshape(kernel.shape), expected)
    np.testing.assert_array_equal(promote(quantised)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_layers_kernels_are_quantised(folder, kind):
    original, params = loaded(folder, None).params, loaded(folder, kind).params
    assert len(kernels(params)) == 7
    same = dict(params, layers=None), dict(original, layers=None)
    chex.assert_trees_all_equal(*same)
    bits = {"int8": 8 + 32 / BLOCK, "nf4": 4 + 32 / BLOCK}[kind]
    for kernel in kernels(params):
        assert kernel.shape[1] in (BLOCK, 2 * BLOCK)
        used = sum(
            leaf.size * jnp.finfo(leaf.dtype).bits
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf.size * jnp.iinfo(leaf.dtype).bits
            for leaf in jax.tree.leaves(kernel)
        )
        assert used <= bits * math.prod(kernel.shape)


@pytest.mark.parametrize(("kind", "remat"), [("int8", "dots"), ("nf4", "full")])
def test_adapters_see_the_dequantised_base(folder, kind, remat):
    pretrained = loaded(folder, kind)
    model = Lora(pretrained.model.clone(remat=remat), ALL)
    fresh = init_adapters(model, jax.random.key(0), TOKENS)
    adapters = jax.tree.map(lambda a: a + 0.02, fresh)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @functools.partial(jax.value_and_grad, argnums=1)
    def loss(params, adapters):
        out = model.apply({"params": params, "lora": adapters}, TOKENS)
        return jnp.mean(jnp.sin(3 * out))

    samples = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), adapters)
    found = loss(pretrained.params, samples)
    wanted = loss(dequantized(pretrained.params), samples)
    jax.tree.map(
        lambda f, w: np.testing.assert_allclose(f, w, rtol=1e-3, atol=1e-6),
        found,
        wanted,
    )
    assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(found[1]))


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_a_step_on_a_16_bit_base_mixes_no_types(folder, kind):
    base = load(str(folder), dtype=jnp.bfloat16, quantization=kind, tokenizer=False)
    lora = LoraConfig(rank=4)
    model = Lora(base.model, lora)
    network = Network(base.model, model, LoraOnly(), lora.dropout)
    hyper = IvonLoraHyper(steps=10, ess=1e5).resolve("commonsense", 2)
    method = IvonLora(hyper)
    full = np.full((2, 1), 5, np.int32)
    packed, ones = Packed.of(full, 5, 5), np.ones((2, 1), np.float32)
    batch = Batch(np.asarray(TOKENS), full, 0 * full, ones, packed=packed)
    state = first_state(network, method, None, jax.random.key(0))
    objective = LabelWords(jnp.arange(4), (), 128)
    fixed = Fixed(base.params, objective, Streams.from_seed(0))
    # Not compiled: lowered, JAX's own rule for attention's products promotes types.
    state, logs = train_step.trace(network, method, state, fixed, batch).out_info
    assert {leaf.dtype for leaf in jax.tree.leaves(logs)} == {np.dtype(np.float32)}
    kept = {leaf.dtype for leaf in jax.tree.leaves(state.params)}
    assert kept == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("kind", "mesh"),
    [
        (None, "data=8"),
        ("int8", "fsdp=8"),
        ("int8", "data=2,fsdp=2,tensor=2"),
        ("nf4", "data=2,fsdp=2,tensor=2"),
        pytest.param("nf4", "fsdp=8", marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_no_number(folder, kind, mesh):
    alone, split = loaded(folder, kind), loaded(folder, kind, mesh)
    chex.assert_trees_all_equal(split.params, alone.params)
    out = [jax.jit(m.model.apply)({"params": m.params}, TOKENS) for m in (alone, split)]
    np.testing.assert_allclose(*out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_every_device_holds_its_part_only(folder, kind):
    params = loaded(folder, kind, "fsdp=2,tensor=4").params
    kernel = params["layers"]["mlp"]["up_proj"]["kernel"]
    whole = kernel if kind is None else kernel.qvalue
    assert whole.sharding.shard_shape(whole.shape) == (2, 32, 32)
    if kind is not None:  # too few blocks to split
        scale = kernel.scale
        assert scale.sharding.shard_shape(scale.shape) == (2, 1, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_stored_without_a_copy_of_the_others(kind, monkeypatch):
    store, work = placing._store, {}

    def measured(leaf, *rest):
        entries = len(leaf.qvalue) * kernel.size
        assert leaf.qvalue.nbytes == entries * {"int8": 8, "nf4": 4}[kind] // 8
        analysis = store.lower(leaf, *rest).compile().cost_analysis()
        work[len(leaf.qvalue)] = analysis["flops"]
        return store(leaf, *rest)

    monkeypatch.setattr(placing, "_store", measured)
    kernel = np.ones((BLOCK, 8), np.float32)
    for count in (2, 12):
        layers = [lambda: kernel] * count
        where = ("layers/up_proj/kernel", layers, kernel.shape, kind, False)
        placing.place_quantized(*where, placing.one_device)
    assert work[12] == work[2] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_merged_into_a_quantised_base(folder, kind):
    pretrained = loaded(folder, kind)
    adapters = init_adapters(Lora(pretrained.model, ALL), jax.random.key(0), TOKENS)
    with pytest.raises(ValueError, match=r"_proj is quantised, .* cannot be merged"):
        merge(pretrained.params, adapters, ALL)


def test_inputs_that_blocks_do_not_divide(tmp_path):
    path = tiny.write_folder(tmp_path / "m", tiny.tensors())
    load(str(path), quantization="int8", tokenizer=False)
    with pytest.raises(ValueError, match="nf4 needs .* multiple of 64 inputs"):
        load(str(path), quantization="nf4", tokenizer=False)


def test_non_finite_tensors_are_named(tmp_path):
    weights = tiny.tensors()
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    path = tiny.write_folder(tmp_path / "m", weights)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight has NaN"):
        load(str(path), quantization="int8", tokenizer=False)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "qwix", None)
    with pytest.raises(ValueError, match=r"int8 needs qwix; pip install"):
        load(str(folder), quantization="int8", tokenizer=False)
