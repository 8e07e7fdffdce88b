"""A stack of equal layers: scanned over stacked parameters, or unrolled."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

Remat = Literal["none", "full", "dots", "names", "offload"]
# Maps hidden states and further inputs to hidden states and outputs of the layers.
Stack = Callable[..., tuple[Array, Any]]


# What layers name of what the backward pass reads; the rest is little work to compute
# again. A kernel's output and its sums are "attention".
NAMES = ("query", "key", "value", "attention", "residual", "gate", "up")

# The largest of them, which can be kept in the host's memory.
WIDE = ("gate", "up")

# Features below which a product is no work: half of those a TPU multiplies at a time.
FEW = 64


def policy_of(remat: Remat) -> Callable[..., Any] | None:
    """Returns which values of a layer are kept for the backward pass; None for none."""
    policies = jax.checkpoint_policies
    if remat == "names":
        return policies.save_only_these_names(*NAMES)
    if remat == "offload":
        return policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[name for name in NAMES if name not in WIDE],
            names_which_can_be_offloaded=list(WIDE),
            offload_src="device",
            offload_dst="pinned_host",
        )
    if remat == "dots":
        # Kernels are no products to this policy, but theirs are the dearest.
        return policies.save_from_both_policies(
            _dear_products, policies.save_only_these_names("attention")
        )
    return None


def _dear_products(primitive: Any, *inputs: Any, **params: Any) -> bool:
    """Keeps products without batch, but not those of few features, as an adapter's B.

    Their results are as large as their layer's, and little work to compute again.
    """
    keep = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    if not keep(primitive, *inputs, **params):
        return False
    (contracted, _), _ = params["dimension_numbers"]
    return math.prod(inputs[0].shape[axis] for axis in contracted) >= FEW


def stack(
    layer: type[nn.Module],
    settings: Sequence[Any],
    count: int,
    in_axes: tuple[Any, ...],
    *,
    scan_layers: bool,
    remat: Remat,
) -> Stack:
    """Makes a model's layers, inside its compact method.

    Args:
        layer: maps hidden states and further inputs to hidden states and an output.
        settings: arguments of every layer.
        count: number of layers.
        in_axes: for each further input 0, if each layer has its own along the first
            axis, or `nn.broadcast`.
        scan_layers: compile one layer and loop over parameters stacked under `layers`;
            otherwise the layers are `layers_0`, `layers_1`, ...
        remat: recomputation in the backward pass: none, whole layers, all but matrix
            products, or all but what layers name, which can be offloaded in part.

    Returns:
        A function of the hidden states and the further inputs. It returns the last
        hidden states, and the outputs of all layers stacked. The scan carries the
        collection `lora`.
    """
    layer_class = layer
    if remat != "none":
        # Inside a scan the compiler cannot undo the recomputation anyway.
        layer_class = nn.remat(
            layer, prevent_cse=not scan_layers, policy=policy_of(remat)
        )
    if not scan_layers:
        layers = [layer_class(*settings, name=f"layers_{i}") for i in range(count)]
        return _loop(layers, in_axes)
    scanned = nn.scan(
        layer_class,
        variable_axes={"params": 0, "lora": 0},
        split_rngs=dict.fromkeys(("params", "lora", "dropout", "noise"), True),
        in_axes=in_axes,
        length=count,
    )
    return scanned(*settings, name="layers")


def _loop(layers: Sequence[Callable[..., Any]], in_axes: tuple[Any, ...]) -> Stack:
    """Returns unrolled layers with the signature of the scanned stack."""

    def apply(x: Array, *inputs: Any) -> tuple[Array, Any]:
        outputs = []
        for i, layer in enumerate(layers):
            own = [
                jax.tree.map(lambda leaf: leaf[i], value) if axis == 0 else value  # noqa: B023
                for value, axis in zip(inputs, in_axes, strict=True)
            ]
            x, output = layer(x, *own)
            outputs.append(output)
        return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)

    return apply


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Unstacks `layers` to `layers_0`, `layers_1`, ...: for `scan_layers=False`."""
    rest = {name: leaf for name, leaf in params.items() if name != "layers"}
    count = len(jax.tree.leaves(params["layers"])[0])
    layers = {
        f"layers_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        for i in range(count)
    }
    return rest | layers


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """Stacks `layers_0`, `layers_1`, ... to `layers`: for `scan_layers=True`."""
    rest = {k: leaf for k, leaf in params.items() if not k.startswith("layers_")}
    layers = [params[f"layers_{i}"] for i in range(len(params) - len(rest))]
    return rest | {"layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}
