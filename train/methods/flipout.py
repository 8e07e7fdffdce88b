"""Flipout in the branch of LoRA: noise of A that differs from token to token."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ivon_jax.lora import LoraConfig, dropped, factors
from ivon_jax.token_draws import signs


@dataclasses.dataclass(frozen=True)
class Flipout:
    """The branch of an adapter whose A has the standard deviation g^2.

    With a key named ``noise`` an application computes, for each token's input x,

        (alpha/r) [dropout(x) A + ((dropout'(x) * s) (g^2 * E)) * q] B

    where the standard normal E is drawn once, and the signs s of the inputs and q of
    the hidden units are drawn for each token. A token alone sees A + g^2 * E, as E is
    symmetric; two tokens' noises are uncorrelated, which lowers the variance of a
    batch's gradient (Wen et al., 2018, arXiv 1803.04386). Without the key it is
    `ivon_jax.lora.low_rank`.

    Attributes:
        root_init: largest initial entry of g, which is beside A and of its shape; the
            entries are uniform between it and its share 1/sqrt(2).

    Example:
        >>> from ivon_jax.lora import Lora
        >>> config = LoraConfig(rank=2, targets=("all-linear",))
        >>> model = Lora(nn.Dense(4, name="out"), config, Flipout(0.05))
        >>> keys = {"params": jax.random.key(0), "lora": jax.random.key(1)}
        >>> variables = model.init(keys, jnp.ones((1, 3)))
        >>> jax.tree.map(jnp.shape, variables["lora"])
        {'a': (3, 2), 'b': (2, 4), 'g': (3, 2)}
    """

    root_init: float

    def __call__(
        self,
        module: nn.Module,
        x: Float[Array, "*b i"],
        features: int,
        config: LoraConfig,
    ) -> Float[Array, "*b o"]:
        """Computes the branch; see `ivon_jax.lora.Branch`."""
        a, b = factors(module, x.shape[-1], features, config)

        def init() -> Array:
            top, key = self.root_init, module.make_rng("lora")
            return jax.random.uniform(key, a.shape, a.dtype, top / 2**0.5, top)

        root = module.variable("lora", "g", init).value
        hidden = dropped(module, x, config) @ a
        if module.has_rng("noise"):
            keys = jax.random.split(module.make_rng("noise"), 3)
            noise = jnp.square(root) * jax.random.normal(keys[0], a.shape, a.dtype)
            flipped = dropped(module, x, config) * signs(keys[1], x)
            hidden += (flipped @ noise) * signs(keys[2], hidden)
        return config.scale_at(module.path) * (hidden @ b)
