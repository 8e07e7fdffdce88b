"""Leaves of a pytree by path name."""

from typing import Any

import jax
from jaxtyping import PyTree


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a pytree path as ``a/b/c``, the same for dicts and attributes.

    >>> jax.tree_util.tree_map_with_path(lambda p, _: path_name(p), {"a": {"b": 0}})
    {'a': {'b': 'a/b'}}
    """
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
