"""Conversion between tensors with HF's names and our parameter tree."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax.experimental import multihost_utils

from ivon_jax.models.families import Config, family_of, hf_names
from ivon_jax.models.placing import Place, one_device, place_leaf, place_quantized
from ivon_jax.models.quantized import Quantization, is_quantized

_ROWS = 1024  # compared at a time


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a model file: shapes known at once, contents read one by one.

    Attributes:
        shapes: shape of every tensor by HF name; linear weights are torch's (out, in).
        read: opens the tensor of a name; indexing it reads that part.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], Any]


@dataclasses.dataclass(frozen=True)
class _Slot:
    """The place of one tensor: a leaf of the tree and, if stacked, its layer."""

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
    config: Config,
    tensors: Tensors,
    dtype: Dtype,
    quantization: Quantization | None = None,
    place: Place = one_device,
) -> dict[str, Any]:
    """Reads all parameters of a model, one tensor at a time, layers stacked.

    Each tensor is placed before the next one is read; see `place_leaf`.

    Args:
        config: the model's configuration.
        tensors: the file's tensors.
        dtype: dtype of the parameters.
        quantization: format of the layers' kernels.
        place: sharding of each leaf.

    Returns:
        The `params` tree of the configuration's model; without a head if the file has
        none of its tensors.

    Raises:
        ValueError: tensors are missing, unexpected or of a wrong shape, or one has NaN
            or infinite values. Shapes are compared before anything is allocated.
    """
    if config.num_hidden_layers > len(tensors.shapes):
        raise ValueError(
            f"config field num_hidden_layers is {config.num_hidden_layers},"
            f" but the weights are only {len(tensors.shapes)} tensors"
        )
    slots = _slots(config)
    headless = {
        name: slot for name, slot in slots.items() if not _in_head(config, slot)
    }
    if not tensors.shapes.keys() & (slots.keys() - headless.keys()):
        slots = headless
    family = family_of(config)
    copies = tensors.shapes.keys() & family.copies.keys() - slots.keys()
    compare_shapes(
        {name: slot.source_shape for name, slot in slots.items()},
        {name: tensors.shapes[name] for name in tensors.shapes.keys() - copies},
        family.unused,
    )
    for name in copies:
        _check_copy(tensors, name, family.copies[name])
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


def _check_copy(tensors: Tensors, name: str, original: str) -> None:
    """Checks that a tensor to be ignored is a copy of the original.

    Raises:
        ValueError: it is not.
    """
    shape = tensors.shapes[original]
    one, other = tensors.read(name), tensors.read(original)
    starts = range(0, shape[0], _ROWS)
    parts = [slice(start, min(start + _ROWS, shape[0])) for start in starts]
    if tensors.shapes[name] != shape or not all(
        np.array_equal(one[rows], other[rows]) for rows in parts
    ):
        raise ValueError(
            f"tensor {name} is not {original}, which the config ties it to"
            " (tie_word_embeddings)"
        )


def _refuse_everywhere(bad: list[str], dtype: Dtype) -> None:
    """Raises on all processes if one of them, which reads only its parts, found NaN."""
    found = np.array(bool(bad))
    if jax.process_count() > 1:
        found = multihost_utils.process_allgather(found)
    if bad:
        shown = jnp.dtype(dtype).name
        raise ValueError(f"tensor {bad[0]} has NaN or infinite values (as {shown})")
    if found.any():
        raise ValueError("another process read NaN or infinite values")


def _slots(config: Config) -> dict[str, _Slot]:
    """Returns the place of every tensor of a model, by HF name.

    The names follow from the tree: kernels, scales and embeddings are HF's `weight`.
    """
    single = family_of(config).module(config.with_one_layer(), scan_layers=False)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(single.init, jax.random.key(0), tokens)["params"]
    slots = {}
    for single_path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items():
        path = single_path.replace("layers_0/", "layers/", 1)
        module, _, name = path.rpartition("/")
        suffix = "bias" if name == "bias" else "weight"
        for i, hf_name in enumerate(hf_names(module, config.num_hidden_layers)):
            index = i if path.startswith("layers/") else None
            slots[f"{hf_name}.{suffix}"] = _Slot(path, index, leaf.shape)
    return slots


def _in_head(config: Config, slot: _Slot) -> bool:
    return slot.path.rpartition("/")[0] in family_of(config).head


def named_tensors(
    config: Config, params: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields a model's tensors as HF stores them, one at a time: the inverse of `fill`.

    Args:
        config: the model's configuration.
        params: its `params` tree, layers stacked; a head may be missing.

    Yields:
        HF names and contents, linear weights as (out, in).
    """
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    for name, slot in _slots(config).items():
        if slot.path not in leaves and _in_head(config, slot):
            continue
        leaf = leaves[slot.path]
        tensor = np.asarray(leaf if slot.layer is None else leaf[slot.layer])
        yield name, np.ascontiguousarray(tensor.T) if slot.transposed else tensor


def compare_shapes(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    unused: str = "",
) -> None:
    """Checks a file's tensors against those of the model.

    Args:
        wanted: shapes of the model's tensors by name.
        found: shapes of the file's tensors by name.
        unused: regex of tensor names to ignore.

    Raises:
        ValueError: tensors are missing, unexpected or misshaped; it names them.
    """
    unexpected = {
        name for name in found.keys() - wanted.keys() if not re.fullmatch(unused, name)
    }
    misshaped = {
        f"{name} is {found[name]}, expected {wanted[name]}"
        for name in found.keys() & wanted.keys()
        if found[name] != wanted[name]
    }
    problems = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": unexpected,
        "misshaped": misshaped,
    }
    report = [f"{name}: {_some(names)}" for name, names in problems.items() if names]
    if report:
        raise ValueError("tensors do not fit; " + "; ".join(report))


def _some(names: Collection[str], limit: int = 4) -> str:
    shown = ", ".join(ascii(name)[1:-1][:120] for name in sorted(names)[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
