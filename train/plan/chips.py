"""Accelerators: peak performance from data sheets, memory and shapes of what is sold.

TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, whose inter-chip bandwidths
count both directions (400, 1200 and 800 GB/s): half of each is here. GPUs: NVIDIA's
data sheets of the SXM modules (A100 and H100 with 80 GB), whose NVLink bandwidths (600
and 900 GB/s) count both directions too, and hold between the GPUs of one NVLink domain
only. The memory is what their compilers leave to a program.
"""

from typing import Literal, NamedTuple

ChipName = Literal["v5e", "v5p", "v6e", "a100", "h100", "h200"]
CompilerName = Literal["auto", "chip", "cpu"]


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
        flops: bfloat16 operations a second, without sparsity; a GPU has half as many in
            TF32, in which it multiplies float32 matrices.
        memory: bytes.
        bandwidth: bytes a second from its memory.
        network: bytes a second to its neighbours, one direction, all links together.
        clock: of a TPU, cycles a second; those of v5p and v6e are not published, and
            the same is assumed of both.
    """

    flops: float
    memory: float
    bandwidth: float
    network: float
    clock: float = 0.0


GIB = 2**30

CHIPS: dict[ChipName, Chip] = {
    "v5e": Chip(197e12, 15.75 * GIB, 819e9, 200e9, 1.5e9),
    "v5p": Chip(459e12, 95.74 * GIB, 2765e9, 600e9, 1.75e9),
    "v6e": Chip(918e12, 31.25 * GIB, 1640e9, 400e9, 1.75e9),
    "a100": Chip(312e12, 85_100_068_864, 2039e9, 300e9),
    "h100": Chip(989e12, 84_942_979_072, 3350e9, 450e9),
    "h200": Chip(989e12, 151_397_597_184, 4800e9, 450e9),
}

# The chips along each axis of the slices of TPUs that the compiler was tried with.
SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
SLICES: dict[ChipName, tuple[str, ...]] = {"v5e": SQUARES, "v6e": SQUARES, "v5p": CUBES}
GPUS_OF_A_NODE = 8

# What XLA is told of a GPU that is not there: compute capability, cores, arithmetic
# units and shared memory of each, and its largest block's, level-2 cache, clock in GHz.
_HOPPER = (9, 132, 128, 233472, 232448, 52428800, 1.98)
_GPUS: dict[ChipName, tuple[int, int, int, int, int, int, float]] = {
    "a100": (8, 108, 64, 167936, 166912, 41943040, 1.41),
    "h100": _HOPPER,
    "h200": _HOPPER,
}
CAPABILITIES = {name: float(fields[0]) for name, fields in _GPUS.items()}


def target_config(name: ChipName) -> str:
    """Describes a GPU to its compiler, as a text protocol buffer of XLA.

    The fields are those of XLA's ``stream_executor/device_description.proto``.

    Args:
        name: a GPU.
    """
    major, cores, units, shared, largest, cache, clock = _GPUS[name]
    chip = CHIPS[name]
    device = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": largest,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": units,
        "block_dim_limit_x": 2**31 - 1,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "memory_bandwidth": int(chip.bandwidth),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": int(chip.memory),
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }
    fields = " ".join(f"{key}: {value}" for key, value in device.items())
    return (
        f"gpu_device_info {{ {fields} cuda_compute_capability {{ major: {major} }} }}"
        ' platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }'
        f' device_description_str: "{name}"'
    )
