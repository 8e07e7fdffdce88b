"""Logical axes of every parameter, by its path in the tree.

The names are those of HF, so one short table covers all architectures. It says
nothing about devices; `ivon_jax.train.pod.sharding` maps these axes onto a mesh.
"""

import re

# Input and output axis of each linear layer, by the end of its path.
LAYERS: dict[str, tuple[str | None, str | None]] = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "heads"),
    "v_proj": ("embed", "heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
    "lm_head": ("embed", "vocab"),
    "query_proj": ("embed", "heads"),
    "key_proj": ("embed", "heads"),
    "value_proj": ("embed", "heads"),
    "pos_query_proj": ("embed", "heads"),
    "pos_key_proj": ("embed", "heads"),
    "attention/output/dense": ("heads", "embed"),
    "intermediate/dense": ("embed", "mlp"),
    "output/dense": ("mlp", "embed"),
    "embed_proj": (None, "embed"),
    "conv/conv": (None, "embed"),
    "pooler/dense": (None, None),
    "classifier": (None, None),
}


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """Returns the axes of a parameter, an adapter, or their optimizer state.

    Args:
        path: the leaf's path, ``/``-joined; only its end counts: the names of the
            layer and the leaf.
        ndim: number of dimensions; those that stack layers come first.

    Returns:
        A name for each dimension; None for those that are never split.

    Raises:
        ValueError: it is a matrix of a layer that is not in the table, so every device
            would hold a copy.

    Example:
        >>> logical_axes("layers/self_attn/q_proj/kernel", 3)
        (None, 'embed', 'heads')
        >>> logical_axes("method/mu/layers/self_attn/q_proj/b", 3)
        (None, None, 'heads')
    """
    # Both parts of a quantised kernel are split as the kernel is.
    path = re.sub(r"/kernel/(qvalue|scale)$", "/kernel", path)
    *layer, leaf = path.split("/")
    ends = ("/".join(layer[i:]) for i in range(len(layer)))  # the longest first
    known = next((end for end in ends if end in LAYERS), None)
    if leaf in ("kernel", "a", "b") and known is None:
        raise ValueError(
            f"{path}: layer {'/'.join(layer)!r} has no axes; add it to LAYERS"
        )
    fan_in, fan_out = LAYERS[known] if known else (None, None)
    axes = {
        "kernel": (fan_in, fan_out),
        "bias": (fan_out,),
        "embedding": ("vocab", "embed"),
        "a": (fan_in, None),
        "g": (fan_in, None),  # of A's shape, beside it
        "b": (None, fan_out),
    }.get(leaf, ())
    missing = ndim - len(axes)
    return (None,) * ndim if missing < 0 else (None,) * missing + axes
