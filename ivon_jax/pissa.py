"""PiSSA: adapters that start at the principal part of their kernels.

References:
    Meng et al., PiSSA: Principal Singular Values and Singular Vectors Adaptation,
    NeurIPS 2024 (arXiv 2404.02948).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree

from ivon_jax._tree import by_path, nest
from ivon_jax.lora_config import LoraConfig


def principal(
    params: PyTree, shapes: PyTree, config: LoraConfig
) -> tuple[PyTree, PyTree]:
    r"""Splits adapted kernels into a residual and adapters.

    With the singular value decomposition W = U S V^T of a kernel and the r largest of
    its values, the adapters are

    .. math::
        A = U_r (S_r / s)^{1/2}, \quad B = (S_r / s)^{1/2} V_r^T

    where s is the scale of the branch, and W - s A B remains. The decomposition is in
    float32. The product A B, and so the residual, is the same on every machine up to
    rounding; the signs of its factors need not be.

    Args:
        params: the base model's parameters.
        shapes: shapes of the ``lora`` collection.
        config: the adapters' configuration.

    Returns:
        The parameters with residuals in place of the adapted kernels, and the
        adapters, float32; together the model computes what it did.

    Raises:
        ValueError: a kernel is smaller than the rank, quantised, or absent.

    Example:
        >>> kernel = {"out": {"kernel": jnp.diag(jnp.array([1.0, 4.0, 2.0]))}}
        >>> config = LoraConfig(rank=1, alpha=1.0)
        >>> shapes = {"out": {"a": jnp.zeros((3, 1)), "b": jnp.zeros((1, 3))}}
        >>> residual, adapters = principal(kernel, shapes, config)
        >>> print(residual["out"]["kernel"].diagonal().round(4))
        [1. 0. 2.]
    """
    leaves, wanted = by_path(params), by_path(shapes)
    adapters: dict[str, Array] = {}
    for path, shape in wanted.items():
        module, _, name = path.rpartition("/")
        if name != "a":
            continue
        kernel = leaves.get(f"{module}/kernel")
        fan_in, rank = shape.shape[-2:]
        fan_out = wanted[f"{module}/b"].shape[-1]
        if not isinstance(kernel, jax.Array):
            raise ValueError(f"init: {module} has no kernel to decompose for pissa")
        if rank > min(fan_in, fan_out):
            raise ValueError(
                f"init: pissa needs rank <= {min(fan_in, fan_out)} at {module},"
                f" not {rank}"
            )
        scale = config.scale_at(tuple(module.split("/")))
        split = jax.jit(_split, static_argnums=(1, 2, 3), out_shardings=_places(kernel))
        lead = shape.shape[:-2]
        rest, a, b = split(kernel, (*lead, fan_in, fan_out), rank, scale)
        leaves[f"{module}/kernel"] = rest
        adapters |= {f"{module}/a": a, f"{module}/b": b}
    return nest(leaves), nest(adapters)


def _places(kernel: Array) -> tuple[object, object, object]:
    """Returns the sharding of the kernel, and of whole arrays beside it."""
    whole = kernel.sharding
    if isinstance(whole, NamedSharding):
        whole = NamedSharding(whole.mesh, PartitionSpec())
    return kernel.sharding, whole, whole


def _split(
    kernel: Float[Array, "..."], shape: tuple[int, ...], rank: int, scale: float
) -> tuple[Float[Array, "..."], Float[Array, "*l i r"], Float[Array, "*l r o"]]:
    """Splits a kernel, or those of stacked layers one after the other."""
    *lead, fan_in, fan_out = shape

    def one(matrix: Float[Array, "i o"]) -> tuple[Array, Array, Array]:
        whole = matrix.astype(jnp.float32)
        u, s, v = jnp.linalg.svd(whole, full_matrices=False)
        root = jnp.sqrt(s[:rank] / scale)
        a, b = u[:, :rank] * root[None], root[:, None] * v[:rank]
        with jax.default_matmul_precision("highest"):  # not in bfloat16 or TF32
            return (whole - scale * (a @ b)).astype(matrix.dtype), a, b

    rest, a, b = jax.lax.map(one, kernel.reshape(-1, fan_in, fan_out))
    factors = a.reshape(*lead, fan_in, rank), b.reshape(*lead, rank, fan_out)
    return rest.reshape(kernel.shape), *factors


def without_start(
    adapters: PyTree, start: PyTree, config: LoraConfig
) -> tuple[PyTree, LoraConfig]:
    """Returns plain adapters of the unchanged base, of twice the rank.

    They add s (A B - A0 B0), as [A, A0] [B; -B0] of the same scale s.

    Args:
        adapters: the ``lora`` collection of a model whose base is the residual.
        start: what `principal` took out of the base.
        config: the adapters' configuration.

    Returns:
        The adapters, and their configuration.
    """
    new, start = by_path(adapters), by_path(start)
    for path, leaf in start.items():
        if path.rpartition("/")[2] == "a":
            new[path] = jnp.concatenate([new[path], leaf], axis=-1)
        else:
            new[path] = jnp.concatenate([new[path], -leaf], axis=-2)
    grown = math.sqrt(2) if config.rslora else 2.0
    return nest(new), dataclasses.replace(
        config,
        init="default",
        rank=2 * config.rank,
        alpha=grown * config.alpha,
        rank_pattern=tuple((k, 2 * rank) for k, rank in config.rank_pattern),
        alpha_pattern=tuple((k, grown * alpha) for k, alpha in config.alpha_pattern),
    )
