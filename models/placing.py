"""Reads tensors from files into leaves on devices, a few rows at a time."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax.sharding import Sharding, SingleDeviceSharding
from jaxtyping import Array, Float, PyTree

from ivon_jax._tree import path_name
from ivon_jax.models.quantized import Quantization, quantize

# The sharding of an array, by its path in the tree and its shape.
Place = Callable[[str, tuple[int, ...]], Sharding]
# Opens a tensor; indexing it reads that part.
Open = Callable[[], Any]

_ROWS = 64  # read at a time: they stay in a core's cache while transposed
_ALIGNMENT = 64  # of memory that JAX's CPU devices adopt without a copy
_PADDING = 64  # bytes between rows: powers of 2 apart they would share cache lines


def one_device(path: str, shape: tuple[int, ...]) -> Sharding:
    """Places everything on the first device."""
    return SingleDeviceSharding(jax.local_devices()[0])


def place_leaf(
    path: str,
    layers: Sequence[Open],
    stack: tuple[int, ...],
    shape: tuple[int, ...],
    dtype: Dtype,
    transposed: bool,
    place: Place,
) -> tuple[Array, list[int]]:
    """Reads a leaf onto its devices, only the parts that this process's devices hold.

    CPU devices adopt the memory that is read into, so nothing is held twice. For other
    devices the host holds their shares of one leaf at a time.

    Args:
        path: the leaf's, `/`-joined.
        layers: its tensors; each is opened once.
        stack: the leading axis of stacked layers, empty if there is none.
        shape: of one layer.
        dtype: of the leaf.
        transposed: whether the tensors are (out, in) and the leaf is (in, out).
        place: sharding of the leaf.

    Returns:
        The leaf, and the layers in which NaN or infinite values (as `dtype`) were read.
    """
    whole = (*stack, *shape)
    sharding = place(path, whole)
    bounds = {
        device: _bounds(
            (slice(0, 1), *(index or ()))[-1 - len(shape) :], (len(layers), *shape)
        )
        for device, index in sharding.addressable_devices_indices_map(whole).items()
    }
    shares = {bound: _allocate(bound, np.dtype(dtype)) for bound in bounds.values()}
    bad = []
    for layer, open_tensor in enumerate(layers):
        tensor = open_tensor()
        finite = [
            _read(tensor, bound[1:], share[layer - bound[0][0]], transposed)
            for bound, share in shares.items()
            if layer in range(*bound[0])
        ]
        if not all(finite):
            bad.append(layer)
    arrays = [
        jax.device_put(
            shares[bound].reshape(sharding.shard_shape(whole)),
            SingleDeviceSharding(device),
        )
        for device, bound in bounds.items()
    ]
    return jax.make_array_from_single_device_arrays(whole, sharding, arrays), bad


def place_quantized(
    path: str,
    layers: Sequence[Open],
    shape: tuple[int, ...],
    quantization: Quantization,
    transposed: bool,
    place: Place,
) -> tuple[PyTree[Array], list[int]]:
    """Reads and quantises a stacked leaf, one layer at a time; see `place_leaf`."""
    kernel = jax.ShapeDtypeStruct(shape, jnp.float32)
    one = {path: jax.eval_shape(lambda x: quantize(x, quantization), kernel)}

    def zeros(part: Any, leaf: Any) -> Array:
        leaf = jax.eval_shape(_pack, leaf)
        stacked = (len(layers), *leaf.shape)
        return jnp.zeros(stacked, leaf.dtype, device=place(path_name(part), stacked))

    def complete(part: Any, leaf: Any, stack: Array) -> Array:
        if leaf.dtype != jnp.uint4:
            return stack
        where = place(path_name(part), (len(layers), *leaf.shape))
        return jax.jit(_unpack, out_shardings=where)(stack)

    leaf = jax.tree_util.tree_map_with_path(zeros, one)[path]
    bad = []
    for i, layer in enumerate(layers):
        source, wrong = place_leaf(
            path, [layer], (), shape, jnp.float32, transposed, place
        )
        # Waits, or the host would read ahead of the devices.
        leaf = jax.block_until_ready(_store(leaf, source, i, quantization))
        bad += [i] * len(wrong)
        del source  # or it is held while the next one is read
    return jax.tree_util.tree_map_with_path(complete, one, {path: leaf})[path], bad


def _pack(entries: Array) -> Array:
    """Packs two 4-bit entries of a row into a byte; other entries are unchanged.

    On CPUs XLA updates no 4-bit array in place: each layer would copy all of them.
    """
    if entries.dtype != jnp.uint4:
        return entries
    pairs = entries.reshape(*entries.shape[:-1], -1, 2)
    return jax.lax.bitcast_convert_type(pairs, jnp.uint8)


def _unpack(packed: Array) -> Array:
    pairs = jax.lax.bitcast_convert_type(packed, jnp.uint4)
    return pairs.reshape(*packed.shape[:-1], -1)


@functools.partial(jax.jit, static_argnames="quantization", donate_argnums=0)
def _store(
    leaf: PyTree[Array],
    kernel: Float[Array, "i o"],
    layer: int | Array,
    quantization: Quantization,
) -> PyTree[Array]:
    """Updates one layer of a quantised leaf in place."""

    def write(old: Array, new: Array) -> Array:
        return jax.lax.dynamic_update_index_in_dim(old, _pack(new), layer, 0)

    return jax.tree.map(write, leaf, quantize(kernel, quantization))


def _bounds(
    index: tuple[slice, ...], shape: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    parts = zip(index, shape, strict=True)
    return tuple(part.indices(size)[:2] for part, size in parts)


def _allocate(bounds: tuple[tuple[int, int], ...], dtype: np.dtype) -> np.ndarray:
    shape = [stop - start for start, stop in bounds]
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _read(
    tensor: Any, bounds: Sequence[tuple[int, int]], out: np.ndarray, transposed: bool
) -> bool:
    """Copies and converts a part of a tensor; returns whether all of it is finite."""
    if transposed:
        bounds, out = bounds[::-1], out.T
    (start, stop), *others = bounds
    columns = [slice(*bound) for bound in others]
    size = math.prod(out.shape[1:])
    room = np.empty((_ROWS, size + _PADDING // out.dtype.itemsize), out.dtype)
    finite = True
    for row in range(start, stop, _ROWS):
        rows = slice(row, min(row + _ROWS, stop))
        with np.errstate(all="ignore"):
            block = np.asarray(tensor[(rows, *columns)]).astype(out.dtype, copy=False)
        finite = finite and _is_finite(block)
        apart = _bits(room)[: len(block), :size].reshape(block.shape)
        apart[...] = _bits(block)
        _bits(out[rows.start - start : rows.stop - start])[...] = apart
    return finite


def _is_finite(block: np.ndarray) -> bool:
    if block.dtype.itemsize != 2:
        return bool(np.isfinite(block).all())
    # NumPy's test is slow for 16 bits: the bits of finite values are below infinity's.
    infinity = _bits(np.full((), np.inf, block.dtype))
    return bool((_bits(block) & 0x7FFF).max() < infinity)


def _bits(array: np.ndarray) -> np.ndarray:
    # NumPy copies its own dtypes faster than those of an extension, as bfloat16.
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))
