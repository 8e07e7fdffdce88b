"""Attention's kernels where no chip is: their operations, and cuDNN's version."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

from ivon_jax.models.attention import Platform

# Products of two s x s matrices' size: of queries and keys, and of weights and values;
# backwards those that remake them, and the gradients' own.
PRODUCTS = {"_fwd": 2, "_dq": 3, "_dkv": 4}

CUDNN = 91000  # the version that the GPU's description has, too


@contextlib.contextmanager
def planned_cudnn(platform: Platform) -> Iterator[None]:
    """Answers what JAX asks of this machine's cuDNN and GPU for those of a plan.

    It only compares their versions: the kernel is the compiler's.

    Args:
        platform: that of the plan.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    before = cudnn.check_cudnn_version, cudnn.check_compute_capability
    cudnn.check_cudnn_version = lambda: CUDNN
    cudnn.check_compute_capability = lambda least: platform.capability >= float(least)
    try:
        yield
    finally:
        cudnn.check_cudnn_version, cudnn.check_compute_capability = before


def kernel_operations(jaxpr: Any) -> float:
    """Counts the operations of a traced function's TPU kernels on one device.

    Of causal attention half of the scores are counted, whatever the window and the
    texts of a row.

    Args:
        jaxpr: the function, with its gradients.
    """
    total = 0.0
    read = {id(v) for v in jaxpr.outvars}.union(
        *({id(v) for v in eqn.invars} for eqn in jaxpr.eqns)
    )
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "pallas_call":
            # JAX leaves some in that are never read, and that a compiler drops.
            if any(id(v) in read for v in eqn.outvars):
                total += _operations(eqn)
            continue
        inner = [kernel_operations(body) for body in bodies(eqn.params)]
        if eqn.primitive.name == "cond":
            total += max(inner)
        else:
            total += eqn.params.get("length", 1) * sum(inner)
    return total


def _operations(eqn: Any) -> float:
    """Counts one call: the queries are its first array of numbers, then the keys."""
    name = str(eqn.params["name"])
    found = next((count for part, count in PRODUCTS.items() if part in name), None)
    if found is None:
        raise ValueError(f"plan: kernel {name} is unknown")
    query, key = [x.aval.shape for x in eqn.invars if x.aval.dtype.kind in "fV"][:2]
    queries, keys = query[-2], key[-2]
    seen = keys - (queries - 1) / 2  # by a query in the mean
    return 2.0 * found * math.prod(query[:-1]) * query[-1] * seen


def bodies(params: dict[str, Any]) -> list[Any]:
    """Returns the functions among the parameters of an equation."""
    found = []
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if hasattr(one, "jaxpr") or hasattr(one, "eqns"):
                found.append(getattr(one, "jaxpr", one))
    return found
