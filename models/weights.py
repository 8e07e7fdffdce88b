"""From named tensors, as HF names them, to our parameter tree."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax.experimental import multihost_utils

from ivon_jax.models.config import LlamaConfig
from ivon_jax.models.llama import Llama
from ivon_jax.models.placing import Place, one_device, place_leaf, place_quantized
from ivon_jax.models.quantized import Quantization, is_quantized


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a model file: shapes known at once, contents read one by one.

    Attributes:
        shapes: Shape of every tensor under its HF name; linear weights are
            (out, in), as torch stores them.
        read: Opens the tensor of a name, which reads the part that it is indexed
            with.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class _Slot:
    """Where one tensor goes: a leaf of the tree and, if stacked, a layer of it."""

    path: str
    layer: int | None
    shape: tuple[int, ...]

    @property
    def transposed(self) -> bool:
        return self.path.endswith("/kernel")

    @property
    def source_shape(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape


def fill(
    config: LlamaConfig,
    tensors: Tensors,
    dtype: Dtype,
    quantization: Quantization | None = None,
    place: Place = one_device,
) -> dict[str, Any]:
    """Read all parameters of a model, one tensor at a time, layers stacked.

    Each tensor is written where it belongs before the next one is read; see
    `place_leaf` for what is held meanwhile.

    Args:
        config: The model they belong to.
        tensors: Where they come from.
        dtype: What to convert them to.
        quantization: What to quantise the kernels of the layers to.
        place: Where each leaf lives.

    Returns:
        The `params` tree of `Llama(config)`.

    Raises:
        ValueError: If tensors are missing, unexpected or of a wrong shape, or one
            holds NaN or infinite values. Shapes are compared before anything is
            allocated.
    """
    if config.num_hidden_layers > len(tensors.shapes):
        raise ValueError(
            f"config field num_hidden_layers is {config.num_hidden_layers},"
            f" but the weights are only {len(tensors.shapes)} tensors"
        )
    slots = _slots(config)
    compare_shapes(
        {name: slot.source_shape for name, slot in slots.items()}, tensors.shapes
    )
    leaves: dict[str, Any] = {}
    bad: list[str] = []
    for path, group in itertools.groupby(slots.items(), lambda item: item[1].path):
        names, (slot, *_) = zip(*group, strict=True)
        layers = [functools.partial(tensors.read, name) for name in names]
        if quantization and is_quantized(path):
            leaf, wrong = place_quantized(
                path, layers, slot.shape, quantization, slot.transposed, place
            )
        else:
            stack = () if slot.layer is None else (len(layers),)
            leaf, wrong = place_leaf(
                path, layers, stack, slot.shape, dtype, slot.transposed, place
            )
        leaves[path] = leaf
        bad += [names[i] for i in wrong]
    _refuse_everywhere(bad, dtype)
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def _refuse_everywhere(bad: list[str], dtype: Dtype) -> None:
    """Stop all processes if one of them, which read its parts only, found NaN."""
    found = np.array(bool(bad))
    if jax.process_count() > 1:
        found = multihost_utils.process_allgather(found)
    if bad:
        shown = jnp.dtype(dtype).name
        raise ValueError(f"tensor {bad[0]} has NaN or infinite values (as {shown})")
    if found.any():
        raise ValueError("another process read NaN or infinite values")


def hf_names(module: str, num_layers: int) -> list[str]:
    """HF's names of one of our modules; HF differs only in the prefix `model.`.

    Args:
        module: Path in our tree, as `layers/self_attn/q_proj`.
        num_layers: How many layers are stacked under `layers`.

    Returns:
        One name, or one a layer for what is stacked.

    Example:
        >>> hf_names("layers/mlp/up_proj", 2)
        ['model.layers.0.mlp.up_proj', 'model.layers.1.mlp.up_proj']
    """
    first, *rest = module.split("/")
    if first == "layers":
        return [".".join(["model.layers", str(i), *rest]) for i in range(num_layers)]
    prefix = "" if first == "lm_head" else "model."
    return [prefix + ".".join([first, *rest])]


def _slots(config: LlamaConfig) -> dict[str, _Slot]:
    """Every tensor the model needs, by HF name.

    The names follow from the tree itself: HF calls kernels, scales and embeddings
    all `weight`.
    """
    one: dict[str, Any] = {
        "num_hidden_layers": 1,
        "sliding_window": None,
        "windowed_layers": (),
    }
    single = Llama(dataclasses.replace(config, **one), scan_layers=False)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(single.init, jax.random.key(0), tokens)["params"]
    slots = {}
    for single_path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items():
        path = single_path.replace("layers_0/", "layers/", 1)
        module, _, kind = path.rpartition("/")
        suffix = "bias" if kind == "bias" else "weight"
        for i, name in enumerate(hf_names(module, config.num_hidden_layers)):
            index = i if path.startswith("layers/") else None
            slots[f"{name}.{suffix}"] = _Slot(path, index, leaf.shape)
    return slots


def named_tensors(
    config: LlamaConfig, params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """The inverse of `fill`: a model's tensors as HF stores them, one at a time.

    Args:
        config: The model's.
        params: The `params` tree of `Llama(config)`, layers stacked.

    Yields:
        HF names with contents, linear weights as (out, in).
    """
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    for name, slot in _slots(config).items():
        leaf = leaves[slot.path]
        tensor = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
        yield name, np.ascontiguousarray(tensor.T) if slot.transposed else tensor


def compare_shapes(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Compare the tensors that are needed with those that are there.

    Args:
        wanted: Shapes by name.
        found: The same of a file.

    Raises:
        ValueError: If tensors are missing, unexpected or misshaped; it names them.
    """
    unused = {name for name in found.keys() - wanted.keys() if not _harmless(name)}
    misshaped = {
        f"{name} is {found[name]}, expected {wanted[name]}"
        for name in found.keys() & wanted.keys()
        if found[name] != wanted[name]
    }
    problems = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": unused,
        "misshaped": misshaped,
    }
    report = [f"{kind}: {_some(names)}" for kind, names in problems.items() if names]
    if report:
        raise ValueError("tensors do not fit; " + "; ".join(report))


def _harmless(name: str) -> bool:
    # Old files store the rotary frequencies, and tied models a copy of the
    # embedding (an untied model wants `lm_head.weight`, so it never gets here).
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def _some(names: Collection[str], limit: int = 4) -> str:
    shown = ", ".join(ascii(name)[1:-1][:120] for name in sorted(names)[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
