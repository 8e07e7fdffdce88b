"""Every kind of a GGUF file's tensors, decoded bit by bit."""

import numpy as np
import pytest
import tiny_models as tiny

from ivon_jax.models.gguf_io import read_gguf


def half(low, high):
    """A 16-bit float, by the definition of its bits."""
    sign, exponent = (-1) ** (high >> 7), high >> 2 & 31
    fraction = (high & 3) << 8 | low
    if exponent == 31:
        return sign * (float("nan") if fraction else float("inf"))
    if exponent == 0:
        return sign * fraction * 2.0**-24
    return sign * (1024 + fraction) * 2.0 ** (exponent - 25)


def brain(low, high):
    """A bfloat16: the upper half of a 32-bit float."""
    sign, exponent = (-1) ** (high >> 7), (high & 127) << 1 | low >> 7
    fraction = low & 127
    if exponent == 255:
        return sign * (float("nan") if fraction else float("inf"))
    if exponent == 0:
        return sign * fraction * 2.0**-133
    return sign * (128 + fraction) * 2.0 ** (exponent - 134)


def signed(byte):
    return byte - 256 if byte > 127 else byte


def q8_0(block):
    """A scale, and 32 signed bytes."""
    return [half(*block[:2]) * signed(q) for q in block[2:]]


def nibbles(data):
    """The lower halves of all bytes, then the upper ones."""
    return [q & 15 for q in data] + [q >> 4 for q in data]


def q4_0(block):
    """A scale, and 32 numbers from -8 to 7."""
    return [half(*block[:2]) * (q - 8) for q in nibbles(block[2:])]


def q4_1(block):
    """A scale, an offset, and 32 numbers from 0 to 15."""
    scale, offset = half(*block[:2]), half(*block[2:4])
    return [scale * q + offset for q in nibbles(block[4:])]


def sub_scales(packed):
    """Eight pairs of 6 bits, (scale, offset), out of 12 bytes.

    The first four pairs fill the lower bits of bytes 0 to 3 and 4 to 7. Of the others
    the lower bits share bytes 8 to 11, and the two upper ones top those of the first.
    """
    first, second, last = packed[:4], packed[4:8], packed[8:]
    return [(a & 63, b & 63) for a, b in zip(first, second, strict=True)] + [
        (c & 15 | a >> 6 << 4, c >> 4 | b >> 6 << 4)
        for a, b, c in zip(first, second, last, strict=True)
    ]


def of_eight(block, numbers):
    """256 numbers in eight parts of 32, each with its own scale and offset."""
    scale, offset = half(*block[:2]), half(*block[2:4])
    return [
        scale * s * q - offset * m
        for (s, m), part in zip(sub_scales(block[4:16]), numbers, strict=True)
        for q in part
    ]


def q4_k(block):
    """Of each 32 bytes the lower halves are one part, the upper halves the next."""
    whole = [nibbles(block[i : i + 32]) for i in range(16, 144, 32)]
    return of_eight(block, [p for both in whole for p in (both[:32], both[32:])])


def q5_k(block):
    """As Q4_K, with the fifth bit of part i as bit i of the 32 bytes before."""
    fifth, parts = block[16:48], []
    for i in range(8):
        data = block[48 + i // 2 * 32 :][:32]
        lower = [q >> 4 if i % 2 else q & 15 for q in data]
        parts.append([q | (b >> i & 1) << 4 for q, b in zip(lower, fifth, strict=True)])
    return of_eight(block, parts)


def q6_k(block):
    """Two halves of four parts: 4 bits in the first 128 bytes, 2 in the next 64.

    Each 16 numbers, from -32 to 31, have a signed byte as scale; a scale of all ends
    the block.
    """
    lower, upper, scales, scale = (
        block[:128],
        block[128:192],
        block[192:208],
        block[208:],
    )
    out = []
    for i in range(256):
        side, part, j = i // 128, i // 32 % 4, i % 32
        four = lower[64 * side + 32 * (part % 2) + j] >> 4 * (part // 2) & 15
        two = upper[32 * side + j] >> 2 * part & 3
        number = (two << 4 | four) - 32
        out.append(half(*scale) * signed(scales[i // 16]) * number)
    return out


# By kind: bytes of a block, where its 16-bit scales are, and what it stands for.
KINDS = {
    "F16": (2, (), lambda block: [half(*block)]),
    "BF16": (2, (), lambda block: [brain(*block)]),
    "Q8_0": (34, (0,), q8_0),
    "Q4_0": (18, (0,), q4_0),
    "Q4_1": (20, (0, 2), q4_1),
    "Q4_K": (144, (0, 2), q4_k),
    "Q5_K": (176, (0, 2), q5_k),
    "Q6_K": (210, (208,), q6_k),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tensor_is_what_its_bits_say(kind, tmp_path):
    from gguf import GGMLQuantizationType

    size, scales, decode = KINDS[kind]
    if size == 2:  # every number there is
        raw = np.arange(2**16, dtype="<u2").view(np.uint8).reshape(256, 512)
    else:
        raw = np.random.default_rng(0).integers(256, size=(6, 4, size), dtype=np.uint8)
        for at in scales:
            raw[..., at + 1] &= 0xBF  # a finite one
        raw = raw.reshape(6, -1)

    def add(writer):
        writer.add_tensor("output.weight", raw, raw_dtype=GGMLQuantizationType[kind])

    _, tensors = read_gguf(tiny.gguf_with(tmp_path / "m.gguf", add))
    blocks = raw.reshape(-1, size).tolist()
    wanted = np.array([x for block in blocks for x in decode(block)], np.float32)
    found = tensors.read("lm_head.weight")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted.reshape(len(raw), -1))
