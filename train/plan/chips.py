"""Peak performance of accelerators, from their makers' data sheets.

TPUs: docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e}, whose inter-chip bandwidths
count both directions (400, 1200 and 800 GB/s): half of each is here. GPUs: NVIDIA's
data sheets of the SXM modules with 80 GB, whose NVLink bandwidths (600 and 900 GB/s)
count both directions too, and hold between the GPUs of one NVLink domain only.
"""

from typing import Literal, NamedTuple

ChipName = Literal["v5e", "v5p", "v6e", "a100", "h100"]


class Chip(NamedTuple):
    """One accelerator.

    Attributes:
        flops: bfloat16 operations a second, without sparsity.
        memory: bytes.
        bandwidth: bytes a second from its memory.
        network: bytes a second to its neighbours, one direction, all links together.
    """

    flops: float
    memory: float
    bandwidth: float
    network: float


GIB = 2**30

CHIPS: dict[ChipName, Chip] = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9),
    "v6e": Chip(918e12, 32 * GIB, 1640e9, 400e9),
    "a100": Chip(312e12, 80 * GIB, 2039e9, 300e9),
    "h100": Chip(989e12, 80 * GIB, 3350e9, 450e9),
}
