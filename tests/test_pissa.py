"""PiSSA splits a kernel where its singular values say, and undoes it for others."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivon_jax._tree import by_path
from ivon_jax.lora import Lora, LoraConfig
from ivon_jax.pissa import principal, without_start

RNG = np.random.default_rng(0)
CONFIG = LoraConfig(rank=3, alpha=5.0, dropout=0.0, targets=("all-linear",))
CONFIGS = {
    "plain": CONFIG,
    "rslora": dataclasses.replace(CONFIG, rslora=True),
    "patterns": dataclasses.replace(
        CONFIG, rank_pattern=(("up", 2),), alpha_pattern=(("heads", 7.0),)
    ),
}


class Net(nn.Module):
    """A stack, as scanned models have it, is a kernel with a leading axis."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(7, name="up")(x))
        return nn.DenseGeneral((2, 4), name="heads")(x)


def started(config):
    net, x = Net(), jnp.asarray(RNG.normal(size=(6, 5)), jnp.float32)
    model = Lora(net, config)
    keys = {"params": jax.random.key(0), "lora": jax.random.key(1)}
    variables = model.init(keys, x)
    residual, adapters = principal(variables["params"], variables["lora"], config)
    return net, model, x, variables["params"], residual, adapters


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_model_computes_what_it_did(config):
    net, model, x, params, residual, adapters = started(config)
    before = net.apply({"params": params}, x)
    after = model.apply({"params": residual, "lora": adapters}, x)
    np.testing.assert_allclose(after, before, atol=1e-5)
    alone = net.apply({"params": residual}, x)
    assert np.abs(alone - before).max() > 0.1


@pytest.mark.parametrize("stacked", [False, True])
def test_the_adapters_have_the_largest_singular_values(stacked):
    lead = (2,) if stacked else ()
    kernel = jnp.asarray(RNG.normal(size=(*lead, 6, 9)), jnp.float32)
    shapes = {
        "layer": {
            "a": jax.ShapeDtypeStruct((*lead, 6, 3), jnp.float32),
            "b": jax.ShapeDtypeStruct((*lead, 3, 9), jnp.float32),
        }
    }
    residual, adapters = principal({"layer": {"kernel": kernel}}, shapes, CONFIG)
    a, b = adapters["layer"]["a"], adapters["layer"]["b"]
    values = np.linalg.svd(kernel, compute_uv=False)
    scaled = CONFIG.alpha / CONFIG.rank
    np.testing.assert_allclose(
        np.linalg.svd(scaled * a @ b, compute_uv=False)[..., :3],
        values[..., :3],
        rtol=1e-4,
    )
    rest = np.linalg.svd(residual["layer"]["kernel"], compute_uv=False)
    np.testing.assert_allclose(rest[..., :3], values[..., 3:], rtol=1e-4)
    np.testing.assert_allclose(rest[..., 3:], 0, atol=1e-5)
    # Both factors have half of each value.
    np.testing.assert_allclose(
        np.linalg.norm(a, axis=-2), np.linalg.norm(b, axis=-1), rtol=1e-4
    )


def test_peft_starts_in_the_same_place():
    peft = pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    kernel = RNG.normal(size=(6, 9)).astype(np.float32)
    linear = torch.nn.Linear(6, 9, bias=False)
    linear.weight.data = torch.tensor(kernel.T)
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["layer"], init_lora_weights="pissa"
    )
    wrapped = peft.get_peft_model(
        torch.nn.ModuleDict({"layer": linear}), settings
    ).base_model.model["layer"]
    shapes = {"layer": {"a": jnp.zeros((6, 3)), "b": jnp.zeros((3, 9))}}
    params = {"layer": {"kernel": jnp.asarray(kernel)}}
    residual, adapters = principal(params, shapes, CONFIG)
    theirs = wrapped.base_layer.weight.detach().numpy().T
    np.testing.assert_allclose(residual["layer"]["kernel"], theirs, atol=1e-5)
    a = wrapped.lora_A["default"].weight.detach().numpy().T
    b = wrapped.lora_B["default"].weight.detach().numpy().T
    ours = adapters["layer"]["a"] @ adapters["layer"]["b"]
    np.testing.assert_allclose(ours, a @ b, atol=1e-5)
    # The same factors, but for signs.
    np.testing.assert_allclose(abs(adapters["layer"]["a"]), abs(a), atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_plain_adapters_of_the_whole_base_do_the_same(config):
    net, model, x, params, residual, start = started(config)
    trained = jax.tree.map(
        lambda leaf: leaf + jnp.asarray(RNG.normal(size=leaf.shape), jnp.float32), start
    )
    wanted = model.apply({"params": residual, "lora": trained}, x)
    plain, plain_config = without_start(trained, start, config)
    assert plain_config.init == "default"
    found = Lora(net, plain_config).apply({"params": params, "lora": plain}, x)
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    sizes = {k: v.shape for k, v in by_path(plain).items()}
    assert sizes["heads/a"] == (7, 6)


@pytest.mark.parametrize(
    "kernel, message",
    [
        (jnp.ones((6, 2)), "init: pissa needs rank <= 2 at layer, not 3"),
        (np.ones((6, 9)), "init: layer has no kernel to decompose"),
    ],
)
def test_a_kernel_that_cannot_be_split_is_refused(kernel, message):
    fan_out = kernel.shape[1]
    shapes = {"layer": {"a": jnp.zeros((6, 3)), "b": jnp.zeros((3, fan_out))}}
    with pytest.raises(ValueError, match=message):
        principal({"layer": {"kernel": kernel}}, shapes, CONFIG)


def test_another_start_is_refused():
    # The type checker of the tests comes before our own message.
    with pytest.raises((ValueError, TypeError), match="init"):
        LoraConfig(init="dora")
