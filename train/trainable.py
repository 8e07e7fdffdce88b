"""The choice of trained parameters: adapters, or all of the model."""

from typing import ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from ivon_jax.lora import Branch, Lora, LoraConfig, init_adapters, merge


@runtime_checkable
class Trainable(Protocol):
    """A choice of the parameters that are trained.

    Attributes:
        name: value of ``--train``.
        adapters: whether adapters are trained, beside a frozen base.
    """

    name: ClassVar[str]
    adapters: ClassVar[bool]

    def module(self, base: nn.Module, lora: LoraConfig, branch: Branch) -> nn.Module:
        """Returns the model to apply, given the base without adapters."""
        ...

    def fresh(self, module: nn.Module, key: Key[Array, ""]) -> PyTree:
        """Draws new values of all trained parameters."""
        ...

    def join(self, trained: PyTree, frozen: PyTree) -> PyTree:
        """Returns the model's variables."""
        ...

    def merged(self, trained: PyTree, frozen: PyTree, lora: LoraConfig) -> PyTree:
        """Returns the parameters of the equivalent model without adapters."""
        ...


class LoraOnly:
    """Adapters, beside a frozen base."""

    name: ClassVar = "lora"
    adapters: ClassVar = True

    def module(self, base: nn.Module, lora: LoraConfig, branch: Branch) -> nn.Module:
        """Adds the adapters."""
        return Lora(base, lora, branch)

    def fresh(self, module: nn.Module, key: Key[Array, ""]) -> PyTree:
        """Draws new adapters."""
        assert isinstance(module, Lora)
        return init_adapters(module, key, jnp.zeros((1, 1), jnp.int32))

    def join(self, trained: PyTree, frozen: PyTree) -> PyTree:
        """Puts both into their collections."""
        return {"params": frozen, "lora": trained}

    def merged(self, trained: PyTree, frozen: PyTree, lora: LoraConfig) -> PyTree:
        """Merges the adapters."""
        return merge(frozen, trained, lora)


class Full:
    """All parameters of the base."""

    name: ClassVar = "full"
    adapters: ClassVar = False

    def module(self, base: nn.Module, lora: LoraConfig, branch: Branch) -> nn.Module:
        """Returns the base."""
        return base

    def fresh(self, module: nn.Module, key: Key[Array, ""]) -> PyTree:
        """Draws the base's initial values, float32."""
        return module.init(key, jnp.zeros((1, 1), jnp.int32))["params"]

    def join(self, trained: PyTree, frozen: PyTree) -> PyTree:
        """Returns the trained parameters; none are frozen."""
        return {"params": trained}

    def merged(self, trained: PyTree, frozen: PyTree, lora: LoraConfig) -> PyTree:
        """Returns the parameters unchanged."""
        return trained


TRAINABLES: dict[str, Trainable] = {cls.name: cls() for cls in (LoraOnly, Full)}
