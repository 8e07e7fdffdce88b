"""Attention of tokens to those before them, by the kernel that suits the chip.

Shapes: c texts of s queries, with n heads of size h, and of v keys and values, with m
heads, which divides n. The last s keys are those of the queries; before them is a
prefix.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

KernelName = Literal["xla", "splash", "cudnn"]
AttentionName = Literal["auto", "xla", "splash", "cudnn"]

# Tokens of the queries from which on a kernel is worth its launches and its padding.
SHORTEST: dict[KernelName, int] = {"splash": 1024, "cudnn": 512}
# On a CPU, queries are in at most 4 blocks, of at least 32; more compile longer.
# By their compiler, TPUs are slower with blocks.
BLOCK_QUERIES, CPU_BLOCKS = 32, 4
# A window that no text is as long as.
EVERYTHING = 2**30
TPU_BLOCK, TPU_LANES = 512, 128


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What computes attention.

    Attributes:
        name: XLA's operations; splash attention, on TPUs; or cuDNN's, on GPUs.
        shortest: number of queries below which XLA's operations do it.
        interpret: run a TPU's kernel on any device, slowly.
        blocks: maximal number of blocks of queries for XLA's operations. A block
            leaves out the keys that none of its queries sees.
    """

    name: KernelName = "xla"
    shortest: int = 0
    interpret: bool = False
    blocks: int = 1


class Causal(NamedTuple):
    """What a token may attend to: itself and the tokens before it in its text.

    Attributes:
        window: only this many tokens, its own included; None for all.
        windowed: whether this layer has the window; None if every layer has.
    """

    window: int | None = None
    windowed: Bool[Array, ""] | None = None

    def among(self, keys: int) -> "Causal":
        """Drops a window that hides none of `keys` keys."""
        return Causal() if self.window and self.window >= keys else self

    def visible(self, queries: int, keys: int) -> Bool[Array, "1 1 s v"]:
        """Returns the mask of the last `queries` of `keys` tokens.

        Example:
            >>> Causal(window=2).visible(2, 3)[0, 0].astype(int).tolist()
            [[1, 1, 0], [0, 1, 1]]
        """
        back = jnp.arange(keys - queries, keys)[:, None] - jnp.arange(keys)[None]
        return self.near(back >= 0, back)[None, None]

    def near(
        self, seen: Bool[Array, "*n"], back: Int[Array, "*n"]
    ) -> Bool[Array, "*n"]:
        """Hides tokens outside the window."""
        if self.window is None:
            return seen
        window: Any = self.window
        if self.windowed is not None:
            window = jnp.where(self.windowed, window, EVERYTHING)
        return seen & (back < window)


class Platform(NamedTuple):
    """What computes.

    Attributes:
        name: cpu, gpu or tpu.
        capability: compute capability of an NVIDIA GPU; else 0.
    """

    name: str
    capability: float = 0.0

    @classmethod
    def of(cls, device: Any) -> "Platform":
        """Returns that of one of JAX's devices."""
        try:
            capability = float(device.compute_capability)
        except (AttributeError, ValueError):  # other makers' are words, as gfx90a
            capability = 0.0
        return cls(device.platform, capability)


def choose(
    name: AttentionName, platform: Platform, dtype: Dtype, head_dim: int | None
) -> tuple[Kernel, str]:
    """Chooses the kernel of a run.

    Args:
        name: the one that is asked for; auto for the fastest that the platform, the
            dtype and the size of the heads allow.
        platform: what computes.
        dtype: of queries, keys and values.
        head_dim: size of the heads; None for a model with biases by distance.

    Returns:
        The kernel, and the reason in words.

    Raises:
        ValueError: it is not possible here.

    Example:
        >>> choose("auto", Platform("cpu"), jnp.float32, 64)[1]
        'xla, as splash needs a TPU and cudnn needs an NVIDIA GPU, Ampere or newer'
    """
    needs = {one: _needs(one, platform, dtype, head_dim) for one in SHORTEST}
    in_blocks = platform.name == "cpu" and head_dim is not None
    xla = Kernel(blocks=CPU_BLOCKS if in_blocks else 1)
    if name == "xla":
        return xla, "xla, as asked"
    if name != "auto":
        if need := needs[name]:
            raise ValueError(f"attention: {name} needs {need}")
        return Kernel(name), f"{name}, as asked"
    for one, shortest in SHORTEST.items():
        if needs[one] is None:
            reason = f"{one} from {shortest} tokens on, the fastest; xla below"
            return Kernel(one, shortest), reason
    lacking = " and ".join(f"{one} needs {need}" for one, need in needs.items())
    return xla, f"xla, as {lacking}"


def _needs(
    name: KernelName, platform: Platform, dtype: Dtype, head_dim: int | None
) -> str | None:
    """Returns why a kernel cannot be used; None if it can."""
    if name == "splash" and platform.name != "tpu":
        return "a TPU"
    if name == "cudnn":
        if platform.capability < 8:
            return "an NVIDIA GPU, Ampere or newer"
        if dtype != jnp.bfloat16:
            return "a 16-bit base, not f32"
    if head_dim is None:
        return "a decoder: it adds no biases to the scores"
    if name == "splash" and head_dim % 64:
        return f"heads of a multiple of 64, not of {head_dim}"
    if name == "cudnn" and (head_dim % 8 or head_dim > 128):
        return f"heads of a multiple of 8 up to 128, not of {head_dim}"
    return None


def attention(
    query: Float[Array, "c s n h"],
    key: Float[Array, "c v m h"],
    value: Float[Array, "c v m h"],
    causal: Causal,
    kernel: Kernel,
    segments: Int[Array, "c v"] | None = None,
) -> Float[Array, "c s n h"]:
    """Attends from every token to those that it may see.

    Args:
        query: rotated queries.
        key: rotated keys.
        value: the values.
        causal: what a token may see.
        kernel: what computes it; splash if there are segments.
        segments: the text that each token belongs to, where a row has several without a
            prefix; others are hidden. None for one text in each row.

    Returns:
        The means of the values.
    """
    causal = causal.among(key.shape[1])
    if kernel.name == "xla" or query.shape[1] < kernel.shortest:
        assert segments is None
        return _in_blocks(query, key, value, causal, kernel.blocks)

    def by(window: int | None) -> Callable[..., Array]:
        if kernel.name == "cudnn":
            assert segments is None
            return _on_shards(functools.partial(_cudnn, window=window))
        return _on_shards(
            functools.partial(_splash, window=window, interpret=kernel.interpret)
        )

    inputs = (query, key, value) if segments is None else (query, key, value, segments)
    if causal.windowed is None:
        return by(causal.window)(*inputs)
    return jax.lax.cond(causal.windowed, by(causal.window), by(None), *inputs)


def _in_blocks(
    query: Float[Array, "c s n h"],
    key: Float[Array, "c v m h"],
    value: Float[Array, "c v m h"],
    causal: Causal,
    most: int,
) -> Float[Array, "c s n h"]:
    """Attends from blocks of queries to the keys that any of a block may see."""
    queries, prefix = query.shape[1], key.shape[1] - query.shape[1]
    far = causal.window if causal.windowed is None else None
    size = -(-queries // min(max(queries // BLOCK_QUERIES, 1), most))
    out = []
    for start in range(0, queries, size):
        stop = min(start + size, queries)
        first = max(0, prefix + start + 1 - (far or EVERYTHING))
        seen = slice(first, prefix + stop)
        mask = causal.visible(stop - start, prefix + stop)[..., first:]
        own = query[:, start:stop]
        out.append(dot_product(own, key[:, seen], value[:, seen], mask))
    return jnp.concatenate(out, axis=1)


def dot_product(
    query: Float[Array, "c s n h"],
    key: Float[Array, "c v m h"],
    value: Float[Array, "c v m h"],
    mask: Bool[Array, "_ 1 s v"],
) -> Float[Array, "c s n h"]:
    """Attends to what the mask shows, by XLA's operations, with float32 softmax.

    Heads come before tokens in all products. With tokens first, as
    `jax.nn.dot_product_attention` has them, a CPU takes up to twice the time.
    """
    grouped = query.reshape(*query.shape[:2], key.shape[2], -1, query.shape[3])
    grouped = grouped.transpose(0, 2, 3, 1, 4)
    key, value = key.swapaxes(1, 2), value.swapaxes(1, 2)
    scores = jnp.einsum(
        "cmgsh,cmvh->cmgsv", grouped, key, preferred_element_type=jnp.float32
    )
    scores = scores * query.shape[3] ** -0.5
    scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(value.dtype)
    out = jnp.einsum("cmgsv,cmvh->cmgsh", weights, value)
    return out.transpose(0, 3, 1, 2, 4).reshape(query.shape)


def _on_shards(run: Callable[..., Array]) -> Callable[..., Array]:
    """Runs a kernel on each device's rows and heads: XLA cannot split it."""

    def split(*inputs: Array) -> Array:
        mesh: Any = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return run(*inputs)
        axes: Any = nn.logical_to_mesh_axes(("batch", "heads"))
        rows, heads = axes
        rows = rows if _divides(mesh, rows, [len(inputs[0])]) else None
        counts = [x.shape[2] for x in inputs[:3]]
        heads = heads if _divides(mesh, heads, counts) else None
        whole = PartitionSpec(rows, None, heads, None)
        specs = [whole if x.ndim == 4 else PartitionSpec(rows, None) for x in inputs]
        mapped = jax.shard_map(
            run, in_specs=tuple(specs), out_specs=whole, check_vma=False
        )
        return mapped(*inputs)

    return split


def _divides(mesh: Any, axes: Any, counts: list[int]) -> bool:
    names = (axes,) if isinstance(axes, str) else axes or ()
    parts = math.prod(mesh.shape[name] for name in names)
    return all(count % parts == 0 for count in counts)


def _cudnn(
    query: Float[Array, "c s n h"],
    key: Float[Array, "c v m h"],
    value: Float[Array, "c v m h"],
    *,
    window: int | None,
) -> Float[Array, "c s n h"]:
    # Its mask has the first query beside the first key: a prefix asks for nothing.
    prefix = key.shape[1] - query.shape[1]
    query = jnp.pad(query, ((0, 0), (prefix, 0), (0, 0), (0, 0)))
    out = jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )
    return out[:, prefix:]


def _splash(
    query: Float[Array, "c s n h"],
    key: Float[Array, "c v m h"],
    value: Float[Array, "c v m h"],
    segments: Int[Array, "c v"] | None = None,
    *,
    window: int | None,
    interpret: bool,
) -> Float[Array, "c s n h"]:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    queries, prefix = query.shape[1], key.shape[1] - query.shape[1]
    # Padding comes last, where no token sees it; padded queries see padded keys.
    block_q, length = tiles(queries)
    block_kv, keys = tiles(prefix + length)
    shape = (length, keys)
    if window is None:
        mask: Any = splash.CausalMask(shape, prefix)
    else:
        mask = splash.LocalMask(shape, (window - 1, 0), prefix)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * query.shape[2]),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
        residual_checkpoint_name="attention",
        block_sizes=splash.BlockSizes(
            block_q=block_q,
            block_kv=block_kv,
            block_q_dkv=block_q,
            block_kv_dkv=block_kv,
            block_q_dq=block_q,
            block_kv_dq=block_kv,
        ),
    )

    def heads_first(x: Float[Array, "c _ k h"], length: int) -> Array:
        x = jnp.pad(x, ((0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)))
        return x.swapaxes(1, 2)

    scaled = (query.astype(jnp.float32) * query.shape[-1] ** -0.5).astype(query.dtype)
    inputs: list[Any] = [
        heads_first(scaled, length),
        heads_first(key, keys),
        heads_first(value, keys),
    ]
    if segments is not None:
        assert not prefix
        padding = ((0, 0), (0, keys - queries))
        ids = jnp.pad(segments, padding, constant_values=-1)
        inputs.append(splash.SegmentIds(ids[:, :length], ids))
    return jax.vmap(kernel)(*inputs).swapaxes(1, 2)[:, :queries]


def tiles(length: int) -> tuple[int, int]:
    """Returns the size of a TPU's blocks, and the length that they cover.

    >>> tiles(100), tiles(600), tiles(2048)
    ((128, 128), (384, 768), (512, 2048))
    """
    count = -(-length // TPU_BLOCK)
    block = -(-length // (count * TPU_LANES)) * TPU_LANES
    return block, count * block
