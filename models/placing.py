"""From tensors in files to leaves on devices, one tensor on the host at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array, Bool, PyTree

from ivon_jax.models.quantized import Quantization, quantize
from ivon_jax.noise import path_name

# Where an array lives, by its path in the tree and its shape.
Place = Callable[[str, tuple[int, ...]], Sharding]


def one_device(path: str, shape: tuple[int, ...]) -> Sharding:
    """Put everything on the first device."""
    return SingleDeviceSharding(jax.local_devices()[0])


def empty(
    path: str,
    stack: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: Dtype,
    quantization: Quantization | None,
    place: Place,
) -> PyTree[Array]:
    """Make a leaf of zeros where it belongs.

    Args:
        path: The leaf's, `/`-joined.
        stack: The number of layers, if the leaf stacks them.
        shape: Of one layer.
        dtype: Of the leaf.
        quantization: What it is quantised to, instead.
        place: Where it lives.

    Returns:
        The array, or the quantised array.
    """
    source = jax.ShapeDtypeStruct(shape, dtype)
    convert = functools.partial(_convert, dtype=dtype, quantization=quantization)

    def zeros(part: Any, leaf: Any) -> Array:
        whole = (*stack, *leaf.shape)
        return jnp.zeros(whole, leaf.dtype, device=place(path_name(part), whole))

    tree = {path: jax.eval_shape(convert, source)[0]}
    return jax.tree_util.tree_map_with_path(zeros, tree)[path]


def send(
    path: str, shape: tuple[int, ...], tensor: Any, transposed: bool, place: Place
) -> Array:
    """Send a tensor where one layer of a leaf lives, in its own dtype.

    Args:
        path: The leaf's.
        shape: Of the layer.
        tensor: Reads the part that it is indexed with: only what this process's
            devices hold is read.
        transposed: Whether the tensor is (out, in) and the leaf is (in, out).
        place: Where the leaf lives.

    Returns:
        The layer.
    """

    def part(index: Any) -> np.ndarray:
        return tensor[index[::-1]].T if transposed else tensor[index]

    return jax.make_array_from_callback(shape, place(path, shape), part)


@functools.partial(jax.jit, static_argnames=("dtype", "quantization"), donate_argnums=0)
def store(
    leaf: PyTree[Array],
    source: Array,
    layer: int | Array,
    dtype: Dtype,
    quantization: Quantization | None,
) -> tuple[PyTree[Array], Bool[Array, ""]]:
    """Write one layer of a leaf in place, converted or quantised.

    Args:
        leaf: See `empty`; its buffers are reused.
        source: The layer, or the whole of a leaf that stacks none.
        layer: Its number; 0 if the leaf stacks none.
        dtype: Of the leaf.
        quantization: What it is quantised to, instead.

    Returns:
        The leaf, and whether all of the layer is finite in its new dtype.
    """
    value, finite = _convert(source, dtype, quantization)

    def write(old: Array, new: Array) -> Array:
        new = new.reshape(*[1] * (old.ndim - new.ndim), *new.shape)
        start = [layer] + [0] * (old.ndim - 1)
        return jax.lax.dynamic_update_slice(old, new, start)

    return jax.tree.map(write, leaf, value), finite


def _convert(
    source: Array, dtype: Dtype, quantization: Quantization | None
) -> tuple[PyTree[Array], Bool[Array, ""]]:
    value = source.astype(jnp.float32 if quantization else dtype)
    finite = jnp.isfinite(value).all()
    return quantize(value, quantization) if quantization else value, finite
