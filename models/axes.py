"""What the dimensions of every parameter stand for, by the names of the tree.

The names are those of HF, so one short table covers all architectures. It says
nothing about devices; `ivon_jax.train.sharding` maps these axes onto a mesh.
"""

import re

# Input and output axis of each linear layer.
LAYERS: dict[str, tuple[str, str]] = {
    "q_proj": ("embed", "heads"),
    "k_proj": ("embed", "heads"),
    "v_proj": ("embed", "heads"),
    "o_proj": ("heads", "embed"),
    "gate_proj": ("embed", "mlp"),
    "up_proj": ("embed", "mlp"),
    "down_proj": ("mlp", "embed"),
    "lm_head": ("embed", "vocab"),
}


def logical_axes(path: str, ndim: int) -> tuple[str | None, ...]:
    """Names the axes of a parameter, an adapter, or a value kept for one of them.

    Args:
        path: the leaf's path, ``/``-joined; only the layer's name and the leaf's
            own count, so optimizer states are covered too.
        ndim: its number of dimensions; those that stack layers come first.

    Returns:
        A name for each dimension; None for those that are never split.

    Raises:
        ValueError: the matrix of a layer that is not in the table, which would end up
            whole on every device.

    Example:
        >>> logical_axes("layers/self_attn/q_proj/kernel", 3)
        (None, 'embed', 'heads')
        >>> logical_axes("method/mu/layers/self_attn/q_proj/b", 3)
        (None, None, 'heads')
    """
    # Both parts of a quantised kernel are split as the kernel is.
    path = re.sub(r"/kernel/(qvalue|scale)$", "/kernel", path)
    *_, layer, kind = ["", *path.split("/")]
    if kind in ("kernel", "a", "b") and layer not in LAYERS:
        raise ValueError(f"{path}: layer {layer!r} has no axes; add it to LAYERS")
    fan_in, fan_out = LAYERS.get(layer, (None, None))
    axes = {
        "kernel": (fan_in, fan_out),
        "bias": (fan_out,),
        "embedding": ("vocab", "embed"),
        "a": (fan_in, None),
        "b": (None, fan_out),
    }.get(kind, ())
    missing = ndim - len(axes)
    return (None,) * ndim if missing < 0 else (None,) * missing + axes
