"""Seeded damage: to any bytes, to JSON, and to the JSON header of safetensors."""

import copy
import json
import re
import struct
from collections.abc import Callable

import numpy as np

Damage = Callable[[np.random.Generator, bytes], bytes]

LENGTHS = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
DEEP = "@deep"  # stands for more brackets than Python can write, or read
VALUES = (
    None,
    True,
    False,
    0,
    -1,
    -(2**63),
    2**31,
    2**64,
    10**30,
    10**400,
    0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\n\x00\ud800",
    "../x",
    DEEP,
    [],
    [[1], None],
    ["x", -1],
    {},
    {"x": {"x": [{}]}},
)


def pick(rng: np.random.Generator, choices):
    return choices[rng.integers(len(choices))]


def damaged(rng: np.random.Generator, content: bytes) -> bytes:
    """One to three changes; half of them near the start, where headers are."""
    for _ in range(rng.integers(1, 4)):
        end = len(content) if rng.random() < 0.5 else min(len(content), 512)
        at = int(rng.integers(end + 1))
        length = int(rng.integers(1, 9))
        noise = rng.bytes(length)
        before, after = content[:at], content[at:]
        match rng.integers(8):
            case 0:
                content = before
            case 1:  # one bit
                bit = 1 << int(rng.integers(8))
                content = before + bytes(b ^ bit for b in after[:1]) + after[1:]
            case 2:
                content = before + noise + after[length:]
            case 3:
                content = before + struct.pack("<Q", pick(rng, LENGTHS)) + after[8:]
            case 4:
                content = before + struct.pack("<I", pick(rng, LENGTHS[:6])) + after[4:]
            case 5:
                content = before + noise + after
            case 6:
                content = before + after[length:]
            case 7:  # another file that begins as this one
                content = before[:16] + rng.bytes(60)
    return content


def damaged_json(rng: np.random.Generator, content: bytes) -> bytes:
    """Sometimes to the bytes, else to some of the values and keys."""
    if rng.random() < 0.25:
        return damaged(rng, content)
    value = json.loads(content)
    for _ in range(rng.integers(1, 3)):
        value = _swapped(rng, value)
    text = json.dumps(value)
    return re.sub(f'"{DEEP}"', "[" * 10**5, text).encode()


def damaged_safetensors(rng: np.random.Generator, content: bytes) -> bytes:
    """Half of the time to the bytes, else to the values in the header."""
    if rng.random() < 0.5:
        return damaged(rng, content)
    end = 8 + int.from_bytes(content[:8], "little")
    header = damaged_json(rng, content[8:end])
    return struct.pack("<Q", len(header)) + header + content[end:]


def _swapped(rng: np.random.Generator, value):
    """Change a value anywhere in the tree, or a key; the old tree stays."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return copy.deepcopy(pick(rng, VALUES))
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = pick(rng, keys)
    changed = copy.copy(value)
    kind = rng.random()
    if kind < 0.1:
        del changed[key]
    elif kind < 0.2 and isinstance(value, dict):
        changed[pick(rng, ["x", "\n", *keys])] = changed.pop(key)
    elif kind < 0.3:  # the value of another
        changed[key] = value[pick(rng, keys)]
    else:
        changed[key] = _swapped(rng, value[key])
    return changed
