"""Operations of kernels against a closed form."""

import jax
import jax.numpy as jnp
import pytest
from llama_peer import SMALL, random_tokens

from ivon_jax.models import Llama, LlamaConfig
from ivon_jax.models.attention import Kernel
from ivon_jax.train.plan.kernels import kernel_operations


@pytest.mark.parametrize(
    ("remat", "products"),
    # 2 forward and 7 backward; the kernel's output is kept but with "full".
    [("none", 9), ("dots", 9), ("names", 9), ("full", 11)],
)
def test_a_kernel_is_computed_again_only_with_whole_layers(remat, products):
    config = LlamaConfig(**vars(SMALL) | {"head_dim": 64})
    model = Llama(config, remat=remat, attention=Kernel("splash"))
    tokens = random_tokens(3, 200)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)

    def loss(params):
        return model.apply(params, tokens).astype(jnp.float32).sum()

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        traced = jax.make_jaxpr(jax.grad(loss))(params)
    scores = 256 * 257 / 2  # of 200 tokens, padded to blocks of 128
    heads = config.num_hidden_layers * config.num_attention_heads * 3
    assert kernel_operations(traced.jaxpr) == 2 * products * heads * scores * 64


def test_what_is_no_kernel_counts_nothing():
    traced = jax.make_jaxpr(lambda x: jnp.tanh(x @ x.T))(jnp.ones((3, 4)))
    assert kernel_operations(traced.jaxpr) == 0
