"""Adapters where Linen makes it hard: jit caches, scan, remat, many axes, dropout."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax.lora import Lora, LoraConfig, init_adapters, merge, unmerge

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 6))
ALL = LoraConfig(rank=2, alpha=3.0, dropout=0.0, targets=("all-linear",))
LAYERS = 3


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + jnp.tanh(nn.Dense(6, name="up")(x)), None


class Stack(nn.Module):
    """The same blocks three ways."""

    scan: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        if self.scan:
            block = nn.scan(
                block,
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True, "lora": True, "dropout": True},
                length=LAYERS,
            )
            return block(name="layers")(x)[0]
        for index in range(LAYERS):
            x, _ = block(name=f"layer_{index}")(x)
        return x


def randomised(tree, seed=3):
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [
        jax.random.normal(k, x.shape) / 3 for k, x in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, noise)


def setup(base, config, *inputs):
    params = base.init(KEY, *inputs)["params"]
    adapters = init_adapters(Lora(base, config), KEY, *inputs)
    return params, randomised(adapters)


@pytest.mark.parametrize("remat", [False, True])
def test_scan_and_remat_change_neither_outputs_nor_gradients(remat):
    params, adapters = setup(Stack(scan=True), ALL, X)

    def unstacked(tree):
        layer = lambda i: jax.tree.map(lambda x: x[i], tree["layers"])  # noqa: E731
        return {f"layer_{i}": layer(i) for i in range(LAYERS)}

    def loss(base, params, adapters):
        out = Lora(base, ALL).apply({"params": params, "lora": adapters}, X)
        return jnp.sum(jnp.sin(out)), out

    grad = jax.grad(loss, argnums=2, has_aux=True)
    grads, out = grad(Stack(scan=True, remat=remat), params, adapters)
    expected, expected_out = grad(Stack(), unstacked(params), unstacked(adapters))
    np.testing.assert_allclose(out, expected_out, rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5),
        unstacked(grads),
        expected,
    )


@pytest.mark.parametrize("base", [Stack(), Stack(remat=True), Stack(scan=True)])
def test_one_pair_of_adapters_a_layer(base):
    """Lifted layers are subclasses that call the original: not to be adapted twice."""
    _, adapters = setup(base, ALL, X)
    count = sum(leaf.size for leaf in jax.tree.leaves(adapters))
    assert count == LAYERS * (6 * 2 + 2 * 6)


def test_a_trace_of_the_plain_model_is_not_reused():
    """jax.jit caches by function: the adapted model must be one of its own."""
    base = Block()
    params, adapters = setup(base, ALL, X)

    @jax.jit
    def plain(variables, x):
        return base.apply(variables, x)[0]

    @jax.jit
    def adapted(variables, x):
        return Lora(base, ALL).apply(variables, x)[0]

    variables = {"params": params, "lora": adapters}
    before = plain(variables, X)
    changed = adapted(variables, X)
    assert float(jnp.max(jnp.abs(changed - before))) > 0.1
    np.testing.assert_array_equal(plain(variables, X), before)
    np.testing.assert_allclose(
        changed, base.apply({"params": merge(params, adapters, ALL)}, X)[0], rtol=1e-5
    )


def test_unmatched_target_is_an_error_under_jit():
    model = Lora(Block(), LoraConfig(targets=("q_proj",)))
    apply = jax.jit(lambda params, x: model.apply({"params": params}, x))
    message = "^targets: 'q_proj' matches no linear layer; there are: up"
    with pytest.raises(ValueError, match=message):
        apply(Block().init(KEY, X)["params"], X)


class Parts(nn.Module):
    """A model whose parts are fields."""

    encoder: nn.Module
    head: nn.Module

    def __call__(self, x):
        return self.head(self.encoder(x))


def test_patterns_match_the_paths_of_the_tree_where_layers_are_fields():
    encoder = nn.Sequential([nn.Dense(4), jnp.tanh, Parts(nn.Dense(5), nn.Dense(3))])
    base = Parts(encoder, nn.Dense(2))
    config = LoraConfig(
        rank=2,
        dropout=0.0,
        targets=("encoder/layers_0", "encoder/layers_2/.*", "head"),
        rank_pattern=(("[a-z]+/layers_0", 3),),
        # Not that of the whole model, which has no parent.
        alpha_pattern=((".*/head", 5.0), (".*/encoder", 7.0)),
    )
    params, adapters = setup(base, config, X)
    assert adapters["encoder"]["layers_0"]["a"].shape == (6, 3)
    adapted = Lora(base, config).apply({"params": params, "lora": adapters}, X)
    merged = base.apply({"params": merge(params, adapters, config)}, X)
    np.testing.assert_allclose(merged, adapted, rtol=1e-5, atol=1e-6)


class StackedAlong(nn.Module):
    axis: int

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            Block,
            variable_axes={"params": self.axis, "lora": 0},
            split_rngs={"params": True, "lora": True},
            length=LAYERS,
        )
        return layers(name="layers")(x)[0]


@pytest.mark.parametrize("join", [merge, unmerge])
def test_kernels_stacked_along_another_axis_are_refused(join):
    """They have as many entries as the adapters' product, in another order."""
    params, adapters = setup(StackedAlong(1), ALL, X)
    message = (
        r"^params: the kernel \(6, 3, 6\) at layers/up is not of \(3, 6, 6\);"
        " layers are stacked along the first axes$"
    )
    with pytest.raises(ValueError, match=message):
        join(params, adapters, ALL)


def test_kernels_with_names_of_axes_are_merged_in_their_boxes():
    config = LoraConfig(
        rank=2, dropout=0.0, targets=("layers_0",), modules_to_save=("layers_1",)
    )
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    bias = nn.with_partitioning(nn.initializers.zeros, ("out",))
    kwargs = {"kernel_init": kernel, "bias_init": bias}
    base = nn.Sequential([nn.Dense(4, **kwargs), nn.Dense(3, **kwargs)])
    params, adapters = setup(base, config, X)
    merged = merge(params, adapters, config)
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert merged["layers_0"]["kernel"].names == ("in", "out")
    variables = {"params": params, "lora": adapters}
    np.testing.assert_allclose(
        base.apply({"params": merged}, X),
        Lora(base, config).apply(variables, X),
        rtol=1e-5,
    )


WIDE = jax.random.normal(jax.random.key(4), (2, 3, 4, 5))
DENSE = {
    "one axis": nn.DenseGeneral(7),
    "many features": nn.DenseGeneral((2, 3)),
    "two axes": nn.DenseGeneral((2, 3), axis=(-2, -1)),
    "two axes, swapped": nn.DenseGeneral(7, axis=(-1, -2)),
    "three axes": nn.DenseGeneral(7, axis=(1, 2, 3), use_bias=False),
}


@pytest.mark.parametrize("layer", DENSE.values(), ids=DENSE)
def test_general_layers_with_many_axes(layer):
    params, adapters = setup(layer, ALL, WIDE)
    model = Lora(layer, ALL)
    adapted = model.apply({"params": params, "lora": adapters}, WIDE)
    plain = layer.apply({"params": params}, WIDE)
    assert float(jnp.max(jnp.abs(adapted - plain))) > 0.1
    merged = merge(params, adapters, ALL)
    out = layer.apply({"params": merged}, WIDE)
    np.testing.assert_allclose(out, adapted, rtol=1e-4, atol=1e-4)
    by_keyword = model.apply({"params": params, "lora": adapters}, inputs=WIDE)
    np.testing.assert_array_equal(by_keyword, adapted)
    back = unmerge(merged, adapters, ALL)
    np.testing.assert_allclose(back["kernel"], params["kernel"], atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [nn.DenseGeneral(7, axis=1), nn.DenseGeneral(7, axis=-1, batch_dims=(0,))],
    ids=["inner axis", "batch axis"],
)
def test_other_contractions_are_refused(layer):
    with pytest.raises(ValueError, match=r"^targets: .* contracts axes \(-?1,\) of 4"):
        init_adapters(Lora(layer, ALL), KEY, WIDE)


def test_adapters_of_another_rank_are_refused():
    """Their product would fit, but alpha/r would be that of the wrong r."""
    params, adapters = setup(Block(), ALL, X)
    other = LoraConfig(rank=3, alpha=3.0, dropout=0.0, targets=("all-linear",))
    message = "^lora: up maps 6 to 6 with rank 3, its adapters are "
    with pytest.raises(ValueError, match=message):
        Lora(Block(), other).apply({"params": params, "lora": adapters}, X)
    for change in (merge, unmerge):
        with pytest.raises(ValueError, match="^adapters: up has rank 2, not 3$"):
            change(params, adapters, other)


def test_16_bit_base_keeps_its_type_and_float32_adapters():
    base = nn.Dense(4, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
    params, adapters = setup(base, ALL, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(adapters)} == {jnp.dtype("float32")}
    out = Lora(base, ALL).apply({"params": params, "lora": adapters}, X)
    assert out.dtype == jnp.bfloat16
    product = 1.5 * (X @ adapters["a"] @ adapters["b"])
    plain = base.apply({"params": params}, X)
    np.testing.assert_array_equal(out, plain + product.astype(jnp.bfloat16))


# --- dropout ------------------------------------------------------------------------

DROPPED = LoraConfig(rank=2, alpha=3.0, dropout=0.3, targets=("all-linear",))


def test_dropout_touches_the_adapter_branch_alone():
    base = Stack(scan=True, remat=True)
    params, adapters = setup(base, DROPPED, X)
    adapters["layers"]["up"]["b"] = jnp.zeros_like(adapters["layers"]["up"]["b"])
    out = Lora(base, DROPPED).apply(
        {"params": params, "lora": adapters}, X, rngs={"dropout": KEY}
    )
    np.testing.assert_allclose(out, base.apply({"params": params}, X), rtol=1e-6)


def test_dropout_keeps_the_mean_of_the_adapters_output():
    """Var = s^2 p/(1-p) sum_i x_i^2 (AB)_ij^2 for each output, by hand."""
    base, draws, rate = nn.Dense(4), 20_000, 0.3
    params, adapters = setup(base, DROPPED, X)
    variables = {"params": params, "lora": adapters}
    model = Lora(base, DROPPED)
    outs = jax.vmap(lambda key: model.apply(variables, X, rngs={"dropout": key}))(
        jax.random.split(KEY, draws)
    )
    ab = 1.5 * np.asarray(adapters["a"] @ adapters["b"], float)
    variance = rate / (1 - rate) * np.asarray(X, float) ** 2 @ ab**2
    error = np.asarray(outs, float).mean(0) - model.apply(variables, X)
    assert (np.abs(error) < 4.5 * np.sqrt(variance / draws) + 1e-5).all()
    np.testing.assert_allclose(outs.var(0), variance, rtol=0.06)


def test_scanned_layers_drop_different_entries():
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x, nn.Dense(1, use_bias=False, name="up")(x)

    scanned = nn.scan(
        Linear,
        variable_axes={"params": 0, "lora": 0},
        split_rngs={"params": True, "lora": True, "dropout": True},
        length=2,
    )()
    config = LoraConfig(rank=1, alpha=1.0, dropout=0.5, targets=("up",))
    model, ones = Lora(scanned, config), jnp.ones((400, 1))
    zeros = scanned.init(KEY, ones, None)["params"]
    zeros = jax.tree.map(jnp.zeros_like, zeros)
    adapters = {"up": {"a": jnp.ones((2, 1, 1)), "b": jnp.ones((2, 1, 1))}}
    _, masks = model.apply(
        {"params": zeros, "lora": adapters}, ones, None, rngs={"dropout": KEY}
    )
    np.testing.assert_allclose(np.unique(masks), [0, 2], rtol=1e-6)
    agreement = np.mean(masks[0] == masks[1])
    assert abs(agreement - 0.5) < 4 * 0.5 / np.sqrt(400)


class Normalised(nn.Module):
    """Two layers, of which the second is normalised."""

    norm: str

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, name="first")(x)
        layer = nn.Dense(3, name="second")
        if self.norm == "WeightNorm":
            return nn.WeightNorm(layer, use_scale=False)(x)
        return nn.SpectralNorm(layer)(x, update_stats=False)


@pytest.mark.parametrize("norm", ["WeightNorm", "SpectralNorm"])
@pytest.mark.parametrize("field", ["targets", "modules_to_save"])
def test_layers_that_are_normalised_are_refused(norm, field):
    base = Normalised(norm)
    config = LoraConfig(**{"targets": ("first",), field: ("second",)})
    message = f"^targets: second is wrapped by {norm}, which cannot be adapted"
    with pytest.raises(ValueError, match=message):
        init_adapters(Lora(base, config), KEY, X)
    others = LoraConfig(rank=2, dropout=0.0, targets=("first",))
    variables = base.init(KEY, X)
    adapters = randomised(init_adapters(Lora(base, others), KEY, X))
    adapted = Lora(base, others).apply({**variables, "lora": adapters}, X)
    merged = {**variables, "params": merge(variables["params"], adapters, others)}
    np.testing.assert_allclose(base.apply(merged, X), adapted, rtol=1e-5, atol=1e-6)


class Encoder(nn.Module):
    """The model's other method as `__call__`, with the model's tree."""

    model: nn.Module

    def setup(self):
        nn.share_scope(self, self.model)

    def __call__(self, x):
        return self.model.encode(x)


class TwoMethods(nn.Module):
    def setup(self):
        self.inner, self.head = nn.Dense(4), nn.Dense(2)

    def encode(self, x):
        return jnp.tanh(self.inner(x))

    def __call__(self, x):
        return self.head(self.encode(x))


def test_another_method_is_adapted_by_a_module_that_calls_it():
    model, config = TwoMethods(), LoraConfig(rank=2, dropout=0.0, targets=("inner",))
    params, adapters = setup(model, config, X)
    variables = {"params": params, "lora": adapters}
    found = Lora(Encoder(model), config).apply(variables, X)
    merged = {"params": merge(params, adapters, config)}
    expected = model.apply(merged, X, method="encode")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
