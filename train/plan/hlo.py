"""Communication of a compiled program between devices, and its time, by its text.

A program is a set of named computations, each defined before it is called. One that is
the body of a loop counts once for each turn. TPU programs carry one collective through
several computations, a part of it in each: those have one channel, which counts once.
Their compiler also notes the cycles that it expects of each fusion and copy.
"""

import dataclasses
import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
BITS = {"pred": 8, "s4": 4, "u4": 4, "c64": 64}

_HEAD = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .* \{$")
_RESULT = re.compile(r"^[^=]*= (.*?) (" + "|".join(KINDS) + r")(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,]*)\]")
_CALLEE = re.compile(r"\b(?:body|condition|calls|to_apply)=%?([\w.-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_CONDITION = re.compile(r"\bcondition=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONSTANT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """A transfer between devices.

    Attributes:
        kind: one of `KINDS`.
        size: bytes of its result on one device.
        turns: how often it runs.
        source: the operation of the traced function that it belongs to.
    """

    kind: str
    size: int
    turns: int
    source: str


class Cost(NamedTuple):
    """What one run of a program costs a device.

    Attributes:
        collectives: its transfers.
        cycles: the compiler's estimate of its fusions and copies; 0 if it gives none.
    """

    collectives: list[Collective]
    cycles: int

    def traffic(self) -> dict[str, int]:
        """Adds up the bytes received, by kind of transfer."""
        total: Counter[str] = Counter()
        for one in self.collectives:
            total[one.kind] += one.turns * one.size
        return dict(total)


@dataclasses.dataclass
class _Computation:
    """One computation.

    Attributes:
        transfers: channel or line, kind, bytes and source of each.
        cycles: of its own instructions.
        calls: each callee, the condition of its loop, the trips if they are noted, and
            whether it runs as instructions of its own rather than fused.
        constants: the largest integer among its constants.
    """

    transfers: list[tuple[str, str, int, str]] = dataclasses.field(default_factory=list)
    cycles: int = 0
    calls: list[tuple[str, str | None, int | None, bool]] = dataclasses.field(
        default_factory=list
    )
    constant: int = 0


def program_cost(text: str) -> Cost:
    """Adds up the transfers and the estimated cycles of a program.

    Args:
        text: text of the compiled program, as ``compiled.as_text()`` returns it.

    Raises:
        ValueError: the text is no program.
    """
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("program: has no entry computation")
    turns = _turns(computations, entry, fused=True)
    found: dict[str, Collective] = {}
    for name, computation in computations.items():
        for channel, kind, size, source in computation.transfers:
            one = Collective(kind, size, turns[name], source)
            found[channel] = max(found.get(channel, one), one, key=_total)
    run = _turns(computations, entry, fused=False)
    cycles = sum(run[name] * one.cycles for name, one in computations.items())
    return Cost([one for one in found.values() if one.turns], cycles)


def _total(one: Collective) -> int:
    return one.turns * one.size


def _turns(
    computations: dict[str, _Computation], entry: str, *, fused: bool
) -> Counter[str]:
    """Counts how often each computation runs, with or without fused ones."""
    turns = Counter({entry: 1})
    for name in reversed(computations):  # callers first
        for callee, condition, trips, own in computations[name].calls:
            if condition and trips is None:
                # TPU programs do not note it: the counter is compared with a constant.
                trips = _bound(computations, condition)
            if own or fused:
                turns[callee] += turns[name] * (trips or 1)
    return turns


def _bound(computations: dict[str, _Computation], name: str) -> int:
    """Returns the largest constant of a condition and of what it calls."""
    computation = computations[name]
    called = (_bound(computations, callee) for callee, *_ in computation.calls)
    return max(computation.constant, *called, 0)


def _computations(text: str) -> tuple[dict[str, _Computation], str | None]:
    computations: dict[str, _Computation] = {}
    entry, current = None, _Computation()
    for number, line in enumerate(text.splitlines()):
        if head := _HEAD.match(line):
            current = computations[head[2]] = _Computation()
            entry = head[2] if head[1] else entry
            continue
        if found := _RESULT.search(line):
            channel, source = _CHANNEL.search(line), _SOURCE.search(line)
            size = _size(found[1], started=bool(found[3]) and found[2] in _DOUBLED)
            key = channel[1] if channel else f"line {number}"
            current.transfers.append((key, found[2], size, source[1] if source else ""))
        if cycles := _CYCLES.search(line):
            current.cycles += int(cycles[1])
        if constant := _CONSTANT.search(line):
            current.constant = max(current.constant, int(constant[1]))
        current.calls += _calls(line)
    return computations, entry


def _calls(line: str) -> list[tuple[str, str | None, int | None, bool]]:
    condition, trips = _CONDITION.search(line), _TRIPS.search(line)
    own = " while(" in line or " call(" in line or " conditional(" in line
    names = _CALLEE.findall(line)
    if branches := _BRANCHES.search(line):
        names += re.findall(r"[\w.-]+", branches[1])
    return [
        (
            name,
            condition[1] if condition else None,
            int(trips[1]) if trips else None,
            own,
        )
        for name in names
    ]


# What starts one returns the operands too, and scalars of its own, but for sums.
_DOUBLED = tuple(kind for kind in KINDS if kind != "all-reduce")


def _size(shape: str, *, started: bool) -> int:
    """Returns the bytes of an array, or of a tuple of arrays."""
    arrays = _ARRAY.findall(shape)
    if started:
        arrays = [(dtype, sizes) for dtype, sizes in arrays if sizes]
        arrays = arrays[len(arrays) // 2 :]
    return sum(
        _bits(dtype) * math.prod(int(n) for n in sizes.split(",") if n) // 8
        for dtype, sizes in arrays
    )


def _bits(dtype: str) -> int:
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return BITS.get(dtype) or (int(digits[1]) if digits else 8)
