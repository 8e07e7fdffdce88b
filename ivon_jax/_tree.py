"""Leaves of a pytree by path name."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a pytree path as ``a/b/c``, the same for dicts and attributes.

    >>> jax.tree_util.tree_map_with_path(lambda p, _: path_name(p), {"a": {"b": 0}})
    {'a': {'b': 'a/b'}}
    """
    # An array and its variable of flax's nnx have one name: a sample is drawn of the
    # variables, and `nnx.Optimizer` calls `update` with their arrays.
    if path[-1:] == (jax.tree_util.GetAttrKey("value"),):
        path = path[:-1]
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_path(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by path name, in flattening order.

    Raises:
        ValueError: two leaves have the same name, as in {"a": {"b": x}, "a/b": y}.
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_name(path)
        if name in leaves:
            raise ValueError(f"params: two leaves are named {name!r}")
        leaves[name] = leaf
    return leaves


def nest(leaves: dict[str, Any]) -> dict[str, Any]:
    """Turns {"a/b": x} into {"a": {"b": x}}.

    Raises:
        ValueError: a leaf's path is a prefix of another's.
    """
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ValueError(f"{name!r} lies inside another tensor")
        if last in node:
            raise ValueError(f"other tensors lie inside {name!r}")
        node[last] = leaf
    return tree


def saved_leaves(field: str, tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by path name, of a tree that `nest` makes again.

    Raises:
        ValueError: it is not a tree of nested dicts, or a key has a slash.
    """
    leaves = by_path(tree)
    nested: Any = jax.tree.structure(nest(leaves))
    if nested != jax.tree.structure(tree):
        raise ValueError(
            f"{field}: only trees of nested dicts can be saved, whose keys are text"
            " without '/'"
        )
    return leaves


def gathered(leaf: Array) -> Array:
    """Replicates a leaf whose mesh has Explicit axes, so that its axes can be mixed."""
    mesh = jax.typeof(leaf).sharding.mesh
    return _resharded(leaf, NamedSharding(mesh, PartitionSpec()))


def sharded_like(leaf: Array, other: Array) -> Array:
    """Shards a leaf as another of its shape, if the mesh has Explicit axes."""
    return _resharded(leaf, jax.typeof(other).sharding)


def _resharded(leaf: Array, sharding: NamedSharding) -> Array:
    # Of Auto axes the compiler decides.
    if AxisType.Explicit not in sharding.mesh.axis_types:
        return leaf
    return jax.sharding.reshard(leaf, sharding)


def added(tree: PyTree, noise: dict[str, Float[Array, "..."]]) -> PyTree:
    """Adds noise to the leaves of the same path, in their own dtype."""

    def add(leaf: ArrayLike, noise: Array) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf + noise.astype(leaf.dtype)

    return _map_some(add, tree, noise)


def zeroed(tree: PyTree, drop: dict[str, Bool[Array, "..."]]) -> PyTree:
    """Sets the chosen entries of the leaves of the same path to zero."""
    return _map_some(lambda leaf, mask: jnp.where(mask, 0, leaf), tree, drop)


def _map_some(
    fn: Callable[[ArrayLike, Array], Array], tree: PyTree, others: dict[str, Any]
) -> PyTree:
    """Applies fn(leaf, other) to leaves of the same path; others stay."""

    def leaf(path: Any, value: ArrayLike) -> Any:
        other = others.get(path_name(path))
        return value if other is None else fn(value, other)

    return jax.tree_util.tree_map_with_path(leaf, tree)
