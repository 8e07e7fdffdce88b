"""Adapters: exactness, coverage, lifted transformations, merging and dropout."""

import dataclasses
import math
import re

import chex
import flax.linen as nn
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest
from test_low_rank import products

from ivon_jax.lora import Lora, LoraConfig, init_adapters, merge, unmerge

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 6))
ALL = LoraConfig(rank=2, alpha=3.0, dropout=0.0, targets=("all-linear",))


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Dense(8, name="up")(x))
        x = x + jnp.tanh(nn.remat(nn.Dense)(8, name="remat")(x))
        return nn.Dense(3, name="lm_head")(x)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return x + jnp.tanh(nn.Dense(6, name="up")(x)), None


class Stack(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, x):
        if self.scanned:
            layers = nn.scan(
                nn.remat(Layer, prevent_cse=False),
                variable_axes={"params": 0, "lora": 0},
                split_rngs={"params": True, "lora": True},
                length=3,
            )
            return layers(name="layers")(x)[0]
        for index in range(3):
            x, _ = Layer(name=f"layer_{index}")(x)
        return x


def setup(base, config, *inputs):
    """The model, its parameters, and adapters whose B is not zero."""
    model = Lora(base, config)
    params = base.init(KEY, *inputs)["params"]
    fresh = init_adapters(model, jax.random.key(2), *inputs)
    leaves, treedef = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noise = [
        leaf + jax.random.normal(key, leaf.shape) / 3
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return model, params, fresh, jax.tree.unflatten(treedef, noise)


def test_base_tree_and_output_are_the_models_own_at_init():
    model, params, fresh, adapters = setup(Mlp(), ALL, X)
    variables = model.init({"params": KEY, "lora": KEY}, X)
    chex.assert_trees_all_equal(variables["params"], params)
    plain = Mlp().apply({"params": params}, X)
    adapted = model.apply({"params": params, "lora": fresh}, X)
    np.testing.assert_array_equal(adapted, plain)
    trained = model.apply({"params": params, "lora": adapters}, X)
    assert float(jnp.max(jnp.abs(trained - plain))) > 0.1


def test_one_layer_by_hand_and_gradients_for_adapters():
    base = nn.Dense(4, name="out")
    model, params, _, adapters = setup(base, ALL, X)

    def out(adapters):
        return model.apply({"params": params, "lora": adapters}, X)

    x, a, b = (np.asarray(v, float) for v in (X, adapters["a"], adapters["b"]))
    y = x @ params["kernel"] + np.asarray(params["bias"])[None] + 3 / 2 * x @ a @ b
    np.testing.assert_allclose(out(adapters), y, rtol=1e-4, atol=1e-5)
    grads = jax.grad(lambda adapters: jnp.sum(out(adapters)))(adapters)
    np.testing.assert_allclose(grads["b"], 1.5 * a.T @ x.T @ np.ones((5, 4)), 1e-4)
    np.testing.assert_allclose(grads["a"], 1.5 * x.T @ np.ones((5, 4)) @ b.T, 1e-4)


@pytest.mark.parametrize(
    ("targets", "layers"),
    [
        (("all-linear",), {"up", "remat"}),
        (("up",), {"up"}),
        (("(up|lm_head)",), {"up", "lm_head"}),
        (("up", "remat"), {"up", "remat"}),
    ],
)
def test_patterns(targets, layers):
    config = LoraConfig(rank=2, targets=targets)
    adapters = init_adapters(Lora(Mlp(), config), KEY, X)
    assert set(adapters) == layers
    assert all(set(pair) == {"a", "b"} for pair in adapters.values())  # once each


def test_unmatched_pattern_lists_the_layers():
    model = Lora(Mlp(), LoraConfig(targets=("up", "q_proj")))
    message = "targets: 'q_proj' matches no linear layer; there are: lm_head, .*up"
    with pytest.raises(ValueError, match=message):
        init_adapters(model, KEY, X)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": math.nan},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"targets": ()},
        {"rank_pattern": (("up", 0),)},
        {"rank_pattern": (("up(", 2),)},
        {"alpha_pattern": (("up", math.inf),)},
        {"alpha_pattern": (("*", 2.0),)},
    ],
)
def test_wrong_config(wrong):
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: "):
        LoraConfig(**wrong)


@pytest.mark.parametrize(
    ("field", "value"), [("targets", "all-linear"), ("rank_pattern", {"up": 2})]
)
def test_patterns_are_tuples(field, value):
    config = LoraConfig()
    object.__setattr__(config, field, value)  # past the suite's own check of types
    with pytest.raises(ValueError, match=f"^{field}: .* is not a tuple$"):
        config.__post_init__()


PATTERNS = LoraConfig(
    rank=2,
    alpha=3.0,
    dropout=0.0,
    targets=("all-linear",),
    rank_pattern=((".*up", 1), ("all-linear", 4), ("up", 6)),
    alpha_pattern=(("remat|query", 10.0), (".*up", 5.0)),
)


def test_scale():
    assert LoraConfig(rank=4, alpha=6.0).scale_at(("l",)) == 1.5
    assert LoraConfig(rank=4, alpha=6.0, rslora=True).scale_at(("l",)) == 3.0
    assert PATTERNS.scale_at(("up",)) == 5.0
    assert PATTERNS.scale_at(("remat",)) == 2.5
    assert PATTERNS.scale_at(("lm_head",)) == 1.5


def test_ranks_and_alphas_of_single_layers_by_hand():
    model, params, _, adapters = setup(Mlp(), PATTERNS, X)
    assert jax.tree.map(jnp.shape, adapters) == {
        "up": {"a": (6, 1), "b": (1, 8)},
        "remat": {"a": (8, 4), "b": (4, 8)},
    }
    up, remat, head = (params[name] for name in ("up", "remat", "lm_head"))
    product = {name: pair["a"] @ pair["b"] for name, pair in adapters.items()}
    x = jnp.tanh(X @ (up["kernel"] + 5 * product["up"]) + up["bias"][None])
    y = x @ (remat["kernel"] + 2.5 * product["remat"]) + remat["bias"][None]
    out = (x + jnp.tanh(y)) @ head["kernel"] + head["bias"][None]
    adapted = model.apply({"params": params, "lora": adapters}, X)
    np.testing.assert_allclose(adapted, out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("layer", ["lm_head", "q_proj", "up/.*"])
def test_a_pattern_for_no_adapted_layer_is_an_error(field, layer):
    pattern = {field: (("up", 4), (layer, 3))}
    model = Lora(Mlp(), LoraConfig(targets=("up", "remat"), **pattern))
    message = f"{field}: '{layer}' matches no layer of targets; there are: remat, up"
    with pytest.raises(ValueError, match=re.escape(message)):
        init_adapters(model, KEY, X)


def test_init_of_a_and_b():
    model = Lora(nn.Dense(7), LoraConfig(rank=64, targets=("all-linear",)))
    adapters = init_adapters(model, KEY, jnp.ones((1, 400)))
    a, bound = np.asarray(adapters["a"], float), 1 / math.sqrt(400)
    assert a.dtype == float and adapters["a"].dtype == jnp.float32
    assert np.abs(a).max() <= bound and np.abs(a).max() > 0.99 * bound
    # Var[u^2] = 4/45 bound^4 for u uniform on (-bound, bound).
    error = bound**2 * math.sqrt(4 / 45 / a.size)
    assert abs(np.mean(a**2) - bound**2 / 3) < 4 * error
    assert not adapters["b"].any()


BASES = {
    "mlp": (Mlp(), (X,)),
    "scanned": (Stack(scanned=True), (X,)),
    "attention": (
        nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=8),
        (jax.random.normal(KEY, (2, 4, 6)),),
    ),
}


PATTERNS_OF = {
    "mlp": PATTERNS,
    "scanned": dataclasses.replace(PATTERNS, alpha_pattern=(("layers/up", 5.0),)),
    "attention": dataclasses.replace(
        PATTERNS, rank_pattern=(("query", 1), ("(key|out)", 3)), rslora=True,
        alpha_pattern=(("(query|value)", 5.0),),
    ),
}  # fmt: skip


@pytest.mark.parametrize("patterns", [False, True])
@pytest.mark.parametrize("name", BASES)
def test_merged_plain_model_equals_adapted(name, patterns):
    base, inputs = BASES[name]
    config = PATTERNS_OF[name] if patterns else ALL
    model, params, fresh, adapters = setup(base, config, *inputs)
    adapted = model.apply({"params": params, "lora": adapters}, *inputs)
    merged = merge(params, adapters, config)
    plain = base.apply({"params": params}, *inputs)
    assert float(jnp.max(jnp.abs(adapted - plain))) > 0.01
    np.testing.assert_allclose(
        base.apply({"params": merged}, *inputs), adapted, rtol=1e-4, atol=1e-5
    )
    back = unmerge(merged, adapters, config)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), back, params)
    chex.assert_trees_all_equal(merge(params, fresh, config), params)


def test_adapters_are_merged_in_float32_on_every_chip():
    _, params, _, adapters = setup(Mlp(), ALL, X)
    found = products(lambda *trees: merge(*trees, ALL), params, adapters)
    assert found and set(found) == {"(Precision.HIGHEST,"}


def test_merge_of_a_stranger_is_an_error():
    _, params, _, adapters = setup(Mlp(), ALL, X)
    with pytest.raises(ValueError, match="adapters: no kernel of 48 entries at other"):
        merge(params, {"other": adapters["up"]}, ALL)


def test_scanned_stack_equals_unscanned():
    model, params, _, adapters = setup(Stack(scanned=True), ALL, X)
    a = adapters["layers"]["up"]["a"]
    assert a.shape == (3, 6, 2)
    assert len({bytes(np.asarray(layer).data) for layer in a}) == 3
    unstack = lambda tree: {  # noqa: E731
        f"layer_{i}": jax.tree.map(lambda x: x[i], tree["layers"])  # noqa: B023
        for i in range(3)
    }
    loop = Lora(Stack(scanned=False), ALL)
    np.testing.assert_allclose(
        model.apply({"params": params, "lora": adapters}, X),
        loop.apply({"params": unstack(params), "lora": unstack(adapters)}, X),
        rtol=1e-5,
        atol=1e-6,
    )


def test_dropout_acts_only_with_a_key():
    config = LoraConfig(rank=2, alpha=3.0, dropout=0.5, targets=("all-linear",))
    _, params, _, adapters = setup(Mlp(), ALL, X)
    variables = {"params": params, "lora": adapters}
    model = Lora(Mlp(), config)
    without = Lora(Mlp(), ALL).apply(variables, X)
    np.testing.assert_array_equal(model.apply(variables, X), without)
    one, same, two = (
        model.apply(variables, X, rngs={"dropout": jax.random.key(i)})
        for i in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != two).any() and (one != without).any()


def test_vmap_over_adapters_keeps_the_base_product_unbatched():
    model, params, _, adapters = setup(nn.Dense(4), ALL, X)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, -leaf]), adapters)

    def out(adapters):
        return model.apply({"params": params, "lora": adapters}, X)

    jaxpr = jax.make_jaxpr(jax.vmap(out))(many).jaxpr

    def dots(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield [var.aval.shape for var in eqn.invars]
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from dots(inner)

    shapes = list(dots(jaxpr))
    assert [(5, 6), (6, 4)] in shapes  # without the axis of 3
    assert len(shapes) == 3
    np.testing.assert_allclose(
        jax.vmap(out)(many)[1], out(jax.tree.map(lambda x: 2 * x, adapters)), 1e-5
    )


@pytest.mark.parametrize("patterns", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_equals_peft(rslora, patterns):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    ranks = {"m": 3, "l|m": 2} if patterns else {}
    alphas = {"l": 5.0} if patterns else {}
    config = LoraConfig(
        rank=4, alpha=6.0, dropout=0.0, targets=("l", "m"), rslora=rslora,
        rank_pattern=tuple(ranks.items()), alpha_pattern=tuple(alphas.items()),
    )  # fmt: skip

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="m")(nn.Dense(5, name="l")(x))

    model, params, _, adapters = setup(Two(), config, X)
    base = torch.nn.Sequential()
    base.add_module("l", torch.nn.Linear(6, 5))
    base.add_module("m", torch.nn.Linear(5, 3))
    wrapped = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=4, lora_alpha=6.0, lora_dropout=0.0, target_modules=["l", "m"],
            use_rslora=rslora, rank_pattern=ranks, alpha_pattern=alphas,
        ),
    )  # fmt: skip
    for name in ("l", "m"):
        layer = getattr(wrapped.base_model.model, name)
        pairs = [
            (layer.base_layer.weight, params[name]["kernel"].T),
            (layer.base_layer.bias, params[name]["bias"]),
            (layer.lora_A["default"].weight, adapters[name]["a"].T),
            (layer.lora_B["default"].weight, adapters[name]["b"].T),
        ]
        with torch.no_grad():
            for tensor, value in pairs:
                tensor.copy_(torch.tensor(np.array(value)))
    theirs = wrapped(torch.tensor(np.array(X))).detach().numpy()
    ours = model.apply({"params": params, "lora": adapters}, X)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_layer_trained_whole_is_a_dense_layer_of_its_own():
    config = LoraConfig(
        rank=2, dropout=0.0, modules_to_save=("lm_head",), targets=("up",)
    )
    model, params, _, adapters = setup(Mlp(), config, X)
    assert adapters.keys() == {"up", "lm_head"}
    assert jax.tree.map(jnp.shape, adapters["lm_head"]) == {
        "kernel": (8, 3),
        "bias": (3,),
    }
    headless = {name: leaf for name, leaf in params.items() if name != "lm_head"}
    out = model.apply({"params": headless, "lora": adapters}, X)
    merged = merge(headless, adapters, config)
    np.testing.assert_allclose(Mlp().apply({"params": merged}, X), out, atol=1e-5)
    assert jnp.array_equal(merged["lm_head"]["kernel"], adapters["lm_head"]["kernel"])
    with pytest.raises(ValueError, match="lm_head was trained in full"):
        unmerge(merged, adapters, config)


def test_no_layer_to_save_of_that_name():
    config = LoraConfig(targets=("up",), modules_to_save=("score",))
    with pytest.raises(ValueError, match="modules_to_save: 'score' matches no linear"):
        init_adapters(Lora(Mlp(), config), KEY, X)


@pytest.mark.parametrize("name", ["q_proj", "v_proj", "query_proj", "value_proj"])
def test_by_default_queries_and_values_are_adapted(name):
    class Attention(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, name="k_proj")(x) + nn.Dense(4, name=name)(x)

    assert init_adapters(Lora(Attention(), LoraConfig()), KEY, X).keys() == {name}
