"""Bytes that a compiled program sends between devices, read from its text.

A program is a set of named computations. One that is called in a loop counts once per
iteration; the compiler notes the number of iterations where it knows it.
"""

import math
import re
from collections import Counter
from typing import NamedTuple

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_RESULT = re.compile(r"= (\(?[^=]*?\)?) (" + "|".join(COLLECTIVES) + r")(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALL = re.compile(r"(?:body|condition|calls|to_apply)=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Computation(NamedTuple):
    """One computation: the bytes it sends, and its callees with their trip counts."""

    sent: Counter[str]
    calls: list[tuple[str, int]]


def collectives(text: str) -> dict[str, int]:
    """Adds up what each device receives in one run of a program.

    Args:
        text: text of the compiled program, as ``compiled.as_text()`` returns it.

    Returns:
        Bytes of the results on one device, by collective.

    Raises:
        ValueError: the text is no program.
    """
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("program: has no entry computation")
    done: dict[str, Counter[str]] = {}

    def total(name: str) -> Counter[str]:
        if name not in done:
            sent, calls = computations[name]
            done[name] = Counter(sent)
            for callee, trips in calls:
                for collective, size in total(callee).items():
                    done[name][collective] += trips * size
        return done[name]

    return dict(total(entry))


def _computations(text: str) -> tuple[dict[str, Computation], str | None]:
    computations: dict[str, Computation] = {}
    entry, current = None, Computation(Counter(), [])
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations[head[2]] = Computation(Counter(), [])
            entry = head[2] if head[1] else entry
            continue
        if found := _RESULT.search(line):
            current.sent[found[2]] += _size(found[1])
        trips = _TRIPS.search(line)
        for callee in _CALL.findall(line):
            current.calls.append((callee, int(trips[1]) if trips else 1))
    return computations, entry


def _size(shape: str) -> int:
    """Returns the bytes of an array, or of a tuple of arrays."""
    return sum(
        _bits(dtype) * math.prod(int(n) for n in sizes.split(",") if n) // 8
        for dtype, sizes in _ARRAY.findall(shape)
    )


def _bits(dtype: str) -> int:
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return BITS.get(dtype) or (int(digits[1]) if digits else 8)
