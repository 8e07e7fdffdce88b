"""From named tensors, as HF names them, to our parameter tree."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype

from ivon_jax.models.config import LlamaConfig
from ivon_jax.models.llama import Llama


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of a model file: shapes known at once, contents read one by one.

    Attributes:
        shapes: Shape of every tensor under its HF name; linear weights are
            (out, in), as torch stores them.
        read: Reads the tensor of a name.
    """

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


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


def fill(config: LlamaConfig, tensors: Tensors, dtype: Dtype) -> dict[str, Any]:
    """Read all parameters of a model, one tensor at a time, layers stacked.

    Args:
        config: The model they belong to.
        tensors: Where they come from.
        dtype: What to convert them to.

    Returns:
        The `params` tree of `Llama(config)`, as NumPy arrays on the host.

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
    _compare({name: slot.source_shape for name, slot in slots.items()}, tensors.shapes)
    leaves: dict[str, np.ndarray] = {}
    for name, slot in slots.items():
        stack = () if slot.layer is None else (config.num_hidden_layers,)
        if slot.path not in leaves:
            leaves[slot.path] = np.empty(stack + slot.shape, jnp.dtype(dtype))
        target = leaves[slot.path][... if slot.layer is None else slot.layer]
        tensor = tensors.read(name)
        with np.errstate(over="ignore"):  # what overflows is reported below
            target[...] = tensor.T if slot.transposed else tensor
        if not np.isfinite(target).all():
            kind = jnp.dtype(dtype).name
            raise ValueError(f"tensor {name} has NaN or infinite values (as {kind})")
    return flax.traverse_util.unflatten_dict(leaves, sep="/")


def _slots(config: LlamaConfig) -> dict[str, _Slot]:
    """Every tensor the model needs, by HF name.

    The names follow from the tree itself: HF differs only in the prefix `model.`,
    and in calling kernels, scales and embeddings all `weight`.
    """
    single = Llama(dataclasses.replace(config, num_hidden_layers=1), scan_layers=False)
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tree = jax.eval_shape(single.init, jax.random.key(0), tokens)["params"]
    slots = {}
    for path, leaf in flax.traverse_util.flatten_dict(tree, sep="/").items():
        *modules, kind = path.split("/")
        suffix = "bias" if kind == "bias" else "weight"
        if modules[0] != "layers_0":
            prefix = "" if modules[0] == "lm_head" else "model."
            slots[f"{prefix}{modules[0]}.{suffix}"] = _Slot(path, None, leaf.shape)
            continue
        stacked = "/".join(["layers", *modules[1:], kind])
        for i in range(config.num_hidden_layers):
            name = ".".join(["model.layers", str(i), *modules[1:], suffix])
            slots[name] = _Slot(stacked, i, leaf.shape)
    return slots


def _compare(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
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
        raise ValueError("weights do not fit the config; " + "; ".join(report))


def _harmless(name: str) -> bool:
    # Old files store the rotary frequencies, and tied models a copy of the
    # embedding (an untied model wants `lm_head.weight`, so it never gets here).
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def _some(names: Collection[str], limit: int = 4) -> str:
    shown = ", ".join(ascii(name)[1:-1][:120] for name in sorted(names)[:limit])
    more = len(names) - limit
    return f"{shown} and {more} more" if more > 0 else shown
