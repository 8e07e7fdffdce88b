"""Which chips a mesh is laid over."""

import dataclasses
import re

import pytest

from ivon_jax.train.plan.chips import CHIPS, SLICES, target_config
from ivon_jax.train.plan.topology import find_topology, size
from ivon_jax.train.pod.sharding import make_mesh


@pytest.mark.parametrize(
    ("chip", "mesh", "shape", "slices", "name"),
    [
        ("v5e", "data=1", None, 1, "v5e:2x2"),
        ("v5e", "data=2", None, 1, "v5e:2x2"),
        ("v6e", "data=4,fsdp=64", None, 1, "v6e:16x16"),
        ("v6e", "data=8,fsdp=64", None, 2, "2 slices of v6e:16x16"),
        ("v5p", "data=2,fsdp=64", None, 1, "v5p:4x4x8"),
        ("v5p", "fsdp=512", None, 1, "v5p:8x8x8"),
        ("v5p", "fsdp=8", "2x2x2", 1, "v5p:2x2x2"),
        ("a100", "tensor=3", None, 1, "1 node of 3 a100"),
        ("h100", "data=4,fsdp=8", None, 1, "4 nodes of 8 h100"),
        ("h200", "fsdp=8", "2x4", 1, "2 nodes of 4 h200"),
    ],
)
def test_chips_of_a_mesh(chip, mesh, shape, slices, name):
    assert str(find_topology(chip, mesh, shape, slices)) == name


@pytest.mark.parametrize(
    ("chip", "mesh", "shape", "slices", "message"),
    [
        ("v5e", "fsdp=12", None, 1, "mesh: fsdp=12 is 12 chips a slice; slices of v5e"),
        (
            "v5e",
            "fsdp=512",
            None,
            1,
            "mesh: fsdp=512 is 512 chips a slice; .* 128, 256",
        ),
        ("v5e", "fsdp=8", "8x1", 1, "topology: v5e has no '8x1'; it has 2x2, 2x4"),
        ("v5p", "fsdp=8", "2x4", 1, "topology: v5p has no '2x4'; it has 2x2x1"),
        (
            "v5e",
            "fsdp=8",
            "4x4",
            1,
            "topology: 4x4 has 16 chips, mesh fsdp=8 8 a slice",
        ),
        ("v5e", "data=2", None, 2, "mesh: data=2 is 1 chips a slice; slices of v5e"),
        ("v5e", "fsdp=8", None, 2, "slices: 2 do not divide data of mesh fsdp=8"),
        ("v5e", "fsdp=8", None, 0, "slices: 0 of v5e"),
        ("h100", "data=2", None, 2, "slices: 2 of h100; several are only of TPUs"),
        ("h100", "data=17", None, 1, "mesh: data=17 is 17 GPUs"),
        ("h100", "fsdp=8", "1x16", 1, "topology: '1x16' is not NODESxGPUS of h100"),
        ("h100", "fsdp=8", "2x2x2", 1, "topology: '2x2x2' is not NODESxGPUS"),
        ("h100", "fsdp=8", "2x8", 1, "topology: 2x8 has 16 GPUs, mesh fsdp=8 8"),
    ],
)
def test_refusals(chip, mesh, shape, slices, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        find_topology(chip, mesh, shape, slices)


def test_sizes_of_slices_are_the_powers_of_two_from_a_host_on():
    for shapes in SLICES.values():
        sizes = [size(shape) for shape in shapes]
        assert sizes == [4 * 2**i for i in range(len(shapes))]


def test_every_chip_is_a_tpu_or_described_to_the_compiler():
    for chip in CHIPS.keys() - SLICES.keys():
        text = target_config(chip)
        memory = re.search(r"device_memory_size: (\d+)", text)
        assert int(memory[1]) == CHIPS[chip].memory
    assert all(CHIPS[chip].clock for chip in SLICES)


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A chip of a torus, as JAX describes it."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"
    core_on_chip: int = 0
    process_index: int = 0


def torus(side: int, slices: int) -> list[Tpu]:
    places = [(x, y, 0) for x in range(side) for y in range(side)]
    chips = [(place, i) for i in range(slices) for place in places]
    return [Tpu(n, place, i) for n, (place, i) in enumerate(chips)]


def test_an_axis_may_be_longer_than_the_side_of_a_slice():
    mesh = make_mesh("data=2,fsdp=8", torus(4, 1))
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(16))


def test_slices_split_the_data_only():
    mesh = make_mesh("data=4,fsdp=8", torus(4, 2))
    slices = [{chip.slice_index for chip in row.flat} for row in mesh.devices]
    assert slices == [{0}, {0}, {1}, {1}]
    with pytest.raises(ValueError, match=r"^mesh: fsdp=32 on 2 slices, which do not"):
        make_mesh("fsdp=32", torus(4, 2))


def test_chips_that_are_no_rectangle():
    with pytest.raises(ValueError, match="^mesh: data=3: "):
        make_mesh("data=3", torus(2, 1))
