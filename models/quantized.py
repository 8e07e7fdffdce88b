"""Kernels of a frozen base in 8 or 4 bits, by qwix's pure functions.

A quantised kernel replaces the kernel in the tree. `nn.Dense` dequantises it through
`promote`, so layers and adapters need no change.
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float, PyTree, UInt4

Quantization = Literal["int8", "nf4"]
BLOCK = 64  # inputs that share a scale in NF4, as in QLoRA
# The levels of NF4, from appendix E of Dettmers et al.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def is_quantized(path: str) -> bool:
    """Returns whether a leaf of a quantised model is quantised: only layers' kernels.

    Args:
        path: the leaf's, `/`-joined, in the tree with stacked layers.
    """
    return path.startswith("layers/") and path.endswith("/kernel")


def quantize(kernel: Float[Array, "i o"], quantization: Quantization) -> Any:
    """Quantises a kernel.

    Args:
        kernel: the kernel, float32.
        quantization: `"int8"` with a scale for each output; or `"nf4"`, the 4-bit
            NormalFloat of Dettmers et al. (2023, arXiv:2305.14314), with a scale for
            each output and each 64 inputs. Scales are float32.

    Returns:
        A `qwix.QArray`.

    Raises:
        ValueError: qwix is missing, or for NF4 the inputs are no multiple of 64 or the
            outputs not even.
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
    """Promotes a layer's operands as flax does, dequantising its kernel.

    XLA fuses this into the layer's product; only the quantised kernel is stored.

    Args:
        *args: the layer's input, kernel, and bias if it has one.
        dtype: dtype of the computation.
        inexact: whether it must be a floating-point dtype.

    Returns:
        The operands as arrays of one dtype.
    """
    arrays = [arg if arg is None else _dequantize(arg) for arg in args]
    return nn.dtypes.promote_dtype(*arrays, dtype=dtype, inexact=inexact)


def dequantize(params: PyTree, dtype: Dtype) -> PyTree[Array]:
    """Turns quantised kernels into arrays, so that adapters can be merged in.

    The arrays are those the layers compute with. Quantising the merged model again, as
    loading it with a quantization does, rounds the adapters too.

    Args:
        params: parameters loaded with a quantization.
        dtype: dtype of the computation.

    Returns:
        The same tree, of arrays of that dtype.
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

    if array.qtype != "nf4":
        return qwix.dequantize(array)
    levels = jax.lax.platform_dependent(array.qvalue, tpu=by_bits, default=by_table)
    blocks = levels.reshape(array.scale.shape[0], -1, array.scale.shape[1])
    return (blocks * array.scale[:, None]).reshape(array.qvalue.shape)


def by_table(codes: UInt4[Array, "..."]) -> Float[Array, "..."]:
    """Decodes NF4 by a table, which a GPU fuses into the product.

    Args:
        codes: codes of 4 bits.

    Returns:
        Their levels, float32.
    """
    return jnp.array(NF4, jnp.float32)[codes]


def by_bits(codes: UInt4[Array, "..."]) -> Float[Array, "..."]:
    """Decodes NF4 by halving the levels by each bit, to the bit as `by_table`.

    A TPU would look codes up by masks as large as the kernel, one for each level; a GPU
    would keep a copy of the constants as large.

    Args:
        codes: codes of 4 bits.

    Returns:
        Their levels, float32.
    """
    wide = codes.astype(jnp.int32)
    # JAX moves what depends on no layer out of a scan: 16 constants, each as large as
    # the kernel. The sum keeps them inside, where the compiler drops it.
    nothing = (wide & 0).astype(jnp.float32)
    levels = [level + nothing for level in NF4]
    for bit in range(4):
        high = (wide >> bit) & 1 == 1
        pairs = zip(levels[1::2], levels[::2], strict=True)
        levels = [jnp.where(high, odd, even) for odd, even in pairs]
    return levels[0]
