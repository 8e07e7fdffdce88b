"""LoRA for any Linen model, by interception of its linear layers.

`Lora(model, config)` computes y + (alpha/r) * dropout(x) A B in the chosen linear
layers. The adapters are in the collection ``lora``, at the paths of their layers, so
the base ``params`` tree is exactly the model's.

>>> import jax, jax.numpy as jnp
>>> import flax.linen as nn
>>> from ivon_jax.lora import Lora, LoraConfig
>>> model = Lora(nn.Dense(4, name="out"), LoraConfig(targets=("all-linear",)))
>>> keys = {"params": jax.random.key(0), "lora": jax.random.key(1)}
>>> variables = model.init(keys, jnp.ones((1, 3)))
>>> jax.tree.map(jnp.shape, variables["lora"])
{'a': (3, 8), 'b': (8, 4)}

The interceptor is entered inside the module's call, hence inside any jitted function:
outside, `jax.jit` could reuse a trace made without it. A model that scans its layers
must declare the collection and its key: `nn.scan` with ``"lora": 0`` among
``variable_axes`` and ``"lora": True`` (with dropout, ``"dropout": True``) among
``split_rngs``.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Key, PyTree

from ivon_jax.lora_config import LoraConfig as LoraConfig
from ivon_jax.token_draws import dropout


@runtime_checkable
class Branch(Protocol):
    """The term that an adapter adds to its layer's output.

    Its parameters are in the collection ``lora`` of the layer's module.
    """

    def __call__(
        self,
        module: nn.Module,
        x: Float[Array, "*b i"],
        features: int,
        config: LoraConfig,
    ) -> Float[Array, "*b o"]:
        """Computes the term.

        Args:
            module: the adapted layer.
            x: its input, float32, with one axis of features.
            features: number of its outputs.
            config: the adapters' configuration.
        """
        ...


def low_rank(
    module: nn.Module, x: Float[Array, "*b i"], features: int, config: LoraConfig
) -> Float[Array, "*b o"]:
    """Computes (alpha/r) dropout(x) A B, the branch of LoRA; see `Branch`.

    Args:
        module: the adapted layer.
        x: its input.
        features: number of its outputs.
        config: the adapters' configuration.
    """
    a, b = factors(module, x.shape[-1], features, config)
    return config.scale_at(module.path) * ((dropped(module, x, config) @ a) @ b)


def dropped(
    module: nn.Module, x: Float[Array, "*b i"], config: LoraConfig
) -> Float[Array, "*b i"]:
    """Applies the adapters' dropout to a layer's input, with a new mask at each call.

    See `ivon_jax.token_draws` for what a mask belongs to.

    Args:
        module: the adapted layer; without a key named ``dropout`` nothing is dropped.
        x: its input.
        config: the adapters' configuration.
    """
    if config.dropout and module.has_rng("dropout"):
        return dropout(module.make_rng("dropout"), x, config.dropout)
    return x


def factors(
    module: nn.Module, fan_in: int, fan_out: int, config: LoraConfig
) -> tuple[Float[Array, "i r"], Float[Array, "r o"]]:
    """Returns a layer's A and B, initialising them if absent.

    Args:
        module: the adapted layer.
        fan_in: number of its inputs.
        fan_out: number of its outputs.
        config: the adapters' configuration.

    Raises:
        ValueError: existing ones have other shapes.
    """
    rank = config.rank_at(module.path)
    a = module.variable(
        "lora", "a", lambda: _init_a(module.make_rng("lora"), fan_in, rank)
    ).value
    b = module.variable("lora", "b", jnp.zeros, (rank, fan_out)).value
    if (a.shape, b.shape) != ((fan_in, rank), (rank, fan_out)):
        raise ValueError(
            f"lora: {'/'.join(module.path)} maps {fan_in} to {fan_out} with rank"
            f" {rank}, its adapters are {a.shape} and {b.shape}"
        )
    return a, b


class Lora(nn.Module):
    """A model with adapters; call it like the model.

    Attributes:
        base: any Linen model whose linear layers are `nn.Dense` or `nn.DenseGeneral`;
            those of a subclass of these are left as they are. To adapt another method
            than `__call__`, give a module whose `__call__` calls it.
        config: the adapters' configuration.
        branch: the term that is added to a layer's output.
    """

    base: nn.Module
    config: LoraConfig
    branch: Branch = low_rank

    def setup(self) -> None:
        """Shares this module's scope with the base model, whose tree is unchanged."""
        nn.share_scope(self, self.base)
        _update_paths(self.base)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the model with its adapters.

        Args:
            *args: arguments of the model.
            **kwargs: arguments of the model.

        Returns:
            The model's output.

        Raises:
            ValueError: a pattern matches no linear layer that is called.
        """
        seen: list[tuple[str, ...]] = []
        with nn.intercept_methods(_interceptor(self.config, self.branch, seen)):
            out = self.base(*args, **kwargs)
        self.config.check_layers(seen)
        return out


def _update_paths(module: nn.Module) -> None:
    """Takes the former name of a moved module out of the paths of its submodules.

    `nn.share_scope` leaves it in those that are fields, as the layers of
    `nn.Sequential`, so that patterns would match other paths than the tree's.
    """
    for child in module._state.children.values():  # as flax's own function
        if not isinstance(child, nn.Module) or child.scope is None:
            continue
        if child.scope.parent is module.scope:
            child.scope.path = (*module.path, *child.path[-1:])
            _update_paths(child)


def _interceptor(
    config: LoraConfig, branch: Branch, seen: list[tuple[str, ...]]
) -> Callable[..., Any]:
    def intercept(
        next_fun: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if isinstance(context.module, nn.WeightNorm | nn.SpectralNorm):
            before = len(seen)
            y = next_fun(*args, **kwargs)
            _check_unnormalised(context.module, config, seen[before:])
            return y
        # Exact types: lifted layers (remat, scan) are subclasses that call the
        # original, and would be adapted twice.
        linear = type(context.module) in (nn.Dense, nn.DenseGeneral)
        if not (linear and context.method_name == "__call__"):
            return next_fun(*args, **kwargs)
        path = context.module.path
        seen.append(path)
        x = args[0] if args else kwargs["inputs"]
        if config.trains_in_full(path):
            return _trained_layer(context.module, x)
        y = next_fun(*args, **kwargs)
        if not config.adapts(path):
            return y
        flat = _flat_input(context.module, x)
        features = math.prod(y.shape[flat.ndim - 1 :])
        added = branch(context.module, flat, features, config)
        return y + added.reshape(y.shape).astype(y.dtype)

    return intercept


def _check_unnormalised(
    norm: nn.Module, config: LoraConfig, inside: list[tuple[str, ...]]
) -> None:
    """Checks that no adapted kernel is normalised, as merged adapters would be, too."""
    for path in inside:
        if config.adapts(path) or config.trains_in_full(path):
            wrapped = f"{'/'.join(path)} is wrapped by {type(norm).__name__}"
            raise ValueError(f"targets: {wrapped}, which cannot be adapted")


def _flat_input(module: nn.Module, x: Array) -> Float[Array, "*b i"]:
    """Returns a layer's input in float32, with one axis of features."""
    batch = x.ndim - _input_axes(module, x.ndim)
    return x.reshape(*x.shape[:batch], math.prod(x.shape[batch:])).astype(jnp.float32)


def _trained_layer(module: nn.Module, x: Float[Array, "*n i"]) -> Float[Array, "*n o"]:
    """Computes a layer with kernel and bias from the ``lora`` collection."""
    if type(module) is not nn.Dense:
        raise ValueError(
            f"modules_to_save: {'/'.join(module.path)} is not an nn.Dense; only those"
            " can be trained in full"
        )

    def leaf(name: str, init: Callable[..., Array], *shape: int) -> Array:
        def make() -> Array:
            return nn.unbox(init(module.make_rng("lora"), shape, jnp.float32))

        return module.variable("lora", name, make).value

    shape = (x.shape[-1], module.features)
    y = x.astype(jnp.float32) @ leaf("kernel", module.kernel_init, *shape)
    if module.use_bias:
        bias = leaf("bias", module.bias_init, module.features)
        y = y + jnp.expand_dims(bias, range(y.ndim - 1))
    return y.astype(module.dtype or x.dtype)


def _input_axes(module: nn.Module, ndim: int) -> int:
    """Returns the number of trailing axes of its input that a layer contracts."""
    if not isinstance(module, nn.DenseGeneral):
        return 1
    axes = module.axis if isinstance(module.axis, tuple | list) else (module.axis,)
    trailing = sorted(axis % ndim for axis in axes) == list(
        range(ndim - len(axes), ndim)
    )
    if module.batch_dims or not trailing:
        raise ValueError(
            f"targets: {'/'.join(module.path)} contracts axes {axes} of {ndim} with"
            f" batch axes {module.batch_dims}; LoRA needs trailing axes and no batch"
        )
    return len(axes)


def _init_a(key: Key[Array, ""], fan_in: int, rank: int) -> Float[Array, "i r"]:
    """Draws U(-1/sqrt(fan_in), 1/sqrt(fan_in)), as PEFT does."""
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, (fan_in, rank), minval=-bound, maxval=bound)


def init_adapters(
    model: Lora, key: Key[Array, ""], *args: Any, **kwargs: Any
) -> PyTree[Float[Array, "..."]]:
    """Draws initial adapters without computing the base model's initial values.

    Args:
        model: the adapted model.
        key: key of the A matrices; B is zero, so the model's output is unchanged.
        *args: example inputs of the model.
        **kwargs: further inputs.

    Returns:
        The ``lora`` collection, float32.

    Raises:
        ValueError: a pattern matches no linear layer.

    Example:
        >>> model = Lora(nn.Dense(4), LoraConfig(targets=("all-linear",)))
        >>> adapters = init_adapters(model, jax.random.key(0), jnp.ones((1, 3)))
        >>> jax.tree.map(jnp.shape, adapters)
        {'a': (3, 8), 'b': (8, 4)}
    """

    @jax.jit
    def init(key: Key[Array, ""]) -> PyTree:
        # Only the adapters are returned, so XLA removes the rest.
        rngs = {"params": jax.random.key(0), "lora": key}
        return model.init(rngs, *args, **kwargs)["lora"]

    return init(key)


def merge(params: PyTree, adapters: PyTree, config: LoraConfig) -> PyTree:
    """Adds adapters to their kernels, and replaces layers trained in full.

    Args:
        params: the base model's parameters.
        adapters: the ``lora`` collection.
        config: the configuration they were trained with.

    Returns:
        Parameters with which the base model gives the same output (without dropout),
        if stacked layers are so along the first axes of both trees.

    Raises:
        ValueError: an adapter has another rank, or no kernel of its shape at its path.

    Example:
        >>> model, x = nn.Dense(4), jnp.ones((1, 3))
        >>> adapted = Lora(model, LoraConfig(targets=("all-linear",)))
        >>> keys = {"params": jax.random.key(0), "lora": jax.random.key(1)}
        >>> variables = adapted.init(keys, x)
        >>> params = merge(variables["params"], variables["lora"], adapted.config)
        >>> same = model.apply({"params": params}, x) == adapted.apply(variables, x)
        >>> print(same.all())
        True
    """
    return _add_to_kernels(params, adapters, config, 1)


def unmerge(params: PyTree, adapters: PyTree, config: LoraConfig) -> PyTree:
    """Subtracts merged adapters, exact to rounding; see `merge`.

    Raises:
        ValueError: see `merge`; or a layer was trained in full, so its base is unknown.
    """
    return _add_to_kernels(params, adapters, config, -1)


def _add_to_kernels(
    params: PyTree, adapters: PyTree, config: LoraConfig, sign: int
) -> PyTree:
    flat = flatten_dict(params)
    adapters = flatten_dict(adapters)
    for (*path, name), leaf in adapters.items():
        if name in ("kernel", "bias"):
            if sign < 0:
                raise ValueError(
                    f"adapters: {'/'.join(path)} was trained in full, without a base"
                )
            box = flat.get((*path, name), leaf)
            trained = leaf.astype(nn.unbox(box).dtype)
            flat[(*path, name)] = nn.meta.replace_boxed(box, trained)
        if name != "a":
            continue
        a, b = adapters[(*path, "a")], adapters[(*path, "b")]
        rank = config.rank_at(tuple(path))
        if a.shape[-1] != rank:
            raise ValueError(
                f"adapters: {'/'.join(path)} has rank {a.shape[-1]}, not {rank}"
            )
        box = flat.get((*path, "kernel"))
        kernel = _checked_kernel("/".join(path), nn.unbox(box), a, b)
        with jax.default_matmul_precision("highest"):  # not in bfloat16 or TF32
            product = a @ b
        delta = sign * config.scale_at(tuple(path)) * product.reshape(kernel.shape)
        moved = (kernel.astype(delta.dtype) + delta).astype(kernel.dtype)
        flat[(*path, "kernel")] = nn.meta.replace_boxed(box, moved)
    return unflatten_dict(flat)


def _checked_kernel(
    path: str, kernel: Any, a: Float[Array, "*l i r"], b: Float[Array, "*l r o"]
) -> Array:
    """Returns a kernel whose axes are those of A B: stacked layers, inputs, outputs.

    Equal sizes are not enough: a stack along another axis would be added to other
    entries.
    """
    if kernel is not None and not hasattr(kernel, "size"):
        raise ValueError(
            f"params: {path} is quantised, adapters cannot be merged"
            " into it; ivon_jax.models.quantized.dequantize makes it an array"
        )
    *stack, fan_in, _ = a.shape
    fan_out = b.shape[-1]
    size = math.prod((*stack, fan_in, fan_out))
    if kernel is None or kernel.size != size:
        raise ValueError(f"adapters: no kernel of {size} entries at {path}")
    axes = kernel.shape[len(stack) :]
    inputs = [math.prod(axes[:end]) for end in range(len(axes) + 1)]
    if [*kernel.shape[: len(stack)]] != stack or fan_in not in inputs:
        raise ValueError(
            f"params: the kernel {kernel.shape} at {path} is not of"
            f" {(*stack, fan_in, fan_out)}; layers are stacked along the first axes"
        )
    return kernel
