"""The chips' own compilers, run on a machine that has neither, in a child process.

The environment of Google's library must be set before it is loaded, it can end its
process, and it and NVIDIA's would take part in whatever else the process computes.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import requires, version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from packaging.requirements import Requirement

from ivon_jax.train.config import TrainConfig
from ivon_jax.train.config_json import to_json
from ivon_jax.train.plan.chips import SLICES
from ivon_jax.train.plan.hlo import Collective, Cost
from ivon_jax.train.plan.topology import Topology

# Without a TPU's host around it, and without its messages.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# Programs for chips that this machine lacks cannot be loaded from a cache; and a child
# that simulates as many CPUs as a test does would be slow.
UNSET = ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")
GPU_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


class Program(NamedTuple):
    """A compiler's analysis of a step, on one device.

    Attributes:
        peak: bytes, at the most.
        cost: its transfers and cycles; of what does not fit there are none.
        copied: bytes of results that are not written over donated arguments.
        fits: whether the compiler found enough memory.
        kernels: operations of its kernels, see `kernel_operations`.
        host: bytes of activations in the host's memory.
    """

    peak: int
    cost: Cost = Cost([], 0)
    copied: int = 0
    fits: bool = True
    kernels: float = 0.0
    host: int = 0


def missing(topology: Topology) -> str | None:
    """Says why the compiler of a chip cannot be used here; None if it can.

    Args:
        topology: the chips.
    """
    install = "pip install 'ivon-jax[plan]', on Linux x86-64"
    if topology.chip not in SLICES:
        if any(find_spec(name) for name in GPU_PLUGINS):
            return None
        return f"the compiler of {topology.chip} is not installed: {install}"
    if find_spec("libtpu") is None:
        return f"the compiler of {topology.chip} is not installed: {install}"
    found = version("libtpu")
    for wanted in map(Requirement, requires("jax") or ()):
        if wanted.name == "libtpu" and not wanted.specifier.contains(found):
            return (
                f"libtpu {found} is not jax's, which is {wanted.specifier}: {install}"
            )
    return None


def compile_for_chips(
    runs: Sequence[tuple[TrainConfig, Topology]], seq_length: int, classes: int | None
) -> Iterator[Program]:
    """Compiles the training steps of resolved runs, one after another.

    Args:
        runs: the runs and their chips, whose compilers are not `missing`.
        seq_length: tokens of a prompt, padding included.
        classes: see `step_shapes`.

    Yields:
        What the compiler says of each.

    Raises:
        ValueError: the compiler refuses a step, or ends.
    """
    request = {
        "runs": [(to_json(config), topology) for config, topology in runs],
        "seq_length": seq_length,
        "classes": classes,
    }
    kept = {name: value for name, value in os.environ.items() if name not in UNSET}
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=kept | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(_path())},
        ) as child,
    ):
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(request))
            child.stdin.close()
            for _ in runs:
                line = child.stdout.readline()
                if not line:
                    raise ValueError(f"compiler: ended: {_last(errors, child.wait())}")
                answer: dict[str, Any] = json.loads(line)
                if "error" in answer:
                    raise ValueError(answer["error"])
                transfers, cycles = answer.pop("cost")
                cost = Cost([Collective(*one) for one in transfers], cycles)
                yield Program(cost=cost, **answer)
        finally:
            child.kill()


def _path() -> list[str]:
    """Returns what this process imports from: the child's folder may be another."""
    return [str(Path(place).resolve()) for place in sys.path]


def _last(errors: Any, code: int) -> str:
    errors.seek(0)
    lines = errors.read().split("\n")
    return next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
