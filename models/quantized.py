"""Kernels of a frozen base in 8 or 4 bits, through qwix's pure functions.

A quantised kernel stands in the tree where the kernel stood. `nn.Dense` reads it
through `promote`, so layers stay what they are and adapters find them as ever.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float, PyTree

Quantization = Literal["int8", "nf4"]
BLOCK = 64  # inputs that share a scale in NF4, as in QLoRA


def is_quantized(path: str) -> bool:
    """Whether a quantised model quantises a leaf: the layers' kernels only.

    Args:
        path: the leaf's, `/`-joined, in the tree with stacked layers.
    """
    return path.startswith("layers/") and path.endswith("/kernel")


def quantize(kernel: Float[Array, "i o"], quantization: Quantization) -> Any:
    """Quantises a kernel.

    Args:
        kernel: in float32.
        quantization: `"int8"` with a scale for each output; or `"nf4"`, the 4-bit
            NormalFloat of Dettmers et al. (2023, arXiv:2305.14314), with a scale for
            each output and each 64 inputs. Scales are float32.

    Returns:
        A `qwix.QArray`.

    Raises:
        ValueError: qwix is missing, NF4's blocks do not divide the inputs, or its
            entries do not fill bytes.
    """
    try:
        import qwix
    except ImportError as error:
        raise ValueError(
            f"quantization: {quantization} needs qwix; pip install ivon-jax[quant]"
        ) from error
    if quantization == "int8":
        return qwix.quantize(kernel, jnp.int8, channelwise_axes=[1])
    inputs, outputs = kernel.shape
    if inputs % BLOCK or outputs % 2:
        raise ValueError(
            f"quantization: nf4 needs layers with a multiple of {BLOCK} inputs and of 2"
            f" outputs, one has {inputs} and {outputs}"
        )
    return qwix.quantize(kernel, "nf4", channelwise_axes=[1], tiled_axes={0: BLOCK})


def promote(*args: Any, dtype: Any = None, inexact: bool = True) -> list[Any]:
    """Casts what a layer computes with, as flax does, dequantising its kernel.

    XLA fuses this into the layer's product; only the quantised kernel is stored.

    Args:
        *args: the layer's input, kernel, and bias if it has one.
        dtype: what to compute in.
        inexact: whether that must be a type of floating-point numbers.

    Returns:
        The same as arrays of one type.
    """
    arrays = [arg if arg is None else _dequantize(arg) for arg in args]
    return nn.dtypes.promote_dtype(*arrays, dtype=dtype, inexact=inexact)


def dequantize(params: PyTree, dtype: Dtype) -> PyTree[Array]:
    """Turns quantised kernels back into arrays, so that adapters can be merged in.

    They are what the layers compute with, and no longer small: quantising the merged
    model again, as loading it with a quantization does, rounds the adapters too.

    Args:
        params: as `load` returns them with a quantization.
        dtype: what the model computes in.

    Returns:
        The same tree, of arrays of that type.
    """
    return jax.tree.map(
        lambda leaf: _dequantize(leaf).astype(dtype),
        params,
        is_leaf=lambda leaf: hasattr(leaf, "qvalue"),
    )


def _dequantize(array: Any) -> Array:
    if isinstance(array, jax.Array):
        return array
    import qwix

    return qwix.dequantize(array)
