"""What an older commit wrote, compared with what this one writes."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

FIXTURES = Path(__file__).parent / "fixtures"


def machine() -> dict[str, object]:
    """All that may change the last bit of a number computed here."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    kind = sorted({x for x in lines if x.startswith(("model name", "flags"))})
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()
    return {
        "jax": importlib.metadata.version("jax"),
        "jaxlib": importlib.metadata.version("jaxlib"),
        "architecture": platform.machine(),
        "cpu": hashlib.sha256("\n".join(kind).encode()).hexdigest(),
        "threads": len(usable) or os.cpu_count(),
    }


def summary(path: Path) -> dict[str, dict[str, object]]:
    """Norm and a projection of each tensor, too short to restore it."""
    out: dict[str, dict[str, object]] = {}
    for name, tensor in sorted(load_file(path).items()):
        values = tensor.astype(np.float64).ravel()
        out[name] = {
            "dtype": str(tensor.dtype),
            "shape": "x".join(map(str, tensor.shape)),
            "norm": float(np.linalg.norm(values)),
            "projection": float(values @ np.cos(np.arange(values.size))),
        }
    return out


def header(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself."""
    with safe_open(path, "np") as file:
        return file.metadata() or {}
