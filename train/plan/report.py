"""Plans as text: one in full with advice, and several as a table."""

import math
from collections.abc import Sequence

from ivon_jax.train.plan.chips import GIB
from ivon_jax.train.plan.plan import Plan
from ivon_jax.train.pod.sharding import parse_mesh
from ivon_jax.train.trainable import TRAINABLES

BY_CHIP = "compiled by the chip's own compiler; nothing was run"
BY_SHAPES = (
    "memory: estimated from shapes, within 30 % of the compilers of v5e and v5p in the"
    " ten cases it was compared in; transfers: a CPU's program, which sends 16-bit"
    " kernels as float32; the extra `plan` has the chips' own compilers"
)
CAVEAT = (
    "  too short: waits for the network and reshapes have no cycles, kernels are taken"
    " to reach 40 % of the peak, and the memory is 1.4 times slower; compare plans for"
    " one chip only"
)


def report(plan: Plan) -> str:
    """Formats a plan, with advice if it does not fit."""
    config, limit = plan.config, plan.chip.memory
    lines = [
        f"{config.model} on {plan.topology}, mesh {config.mesh}, batch"
        f" {config.hyper.batch_size}, base {config.base}, remat {config.remat}",
        f"attention: {plan.attention}",
        BY_CHIP if plan.compiled else BY_SHAPES,
        "",
        f"memory of one device, of {limit / GIB:.2f} GiB:",
        *(
            f"  {name:<12} {size / GIB:9.3f} GiB"
            for name, size in plan.memory._asdict().items()
        ),
        *_host(plan),
        "",
        *_traffic(plan),
        f"operations: {plan.flops:.3g} in all",
        "seconds a step, if each were the only limit (operations / peak, base read"
        " from memory / bandwidth, received / network):",
        *(f"  {name:<12} {seconds:9.4f}" for name, seconds in plan.bounds.items()),
        *_time(plan),
        "",
        *_advice(plan),
    ]
    return "\n".join(lines)


def _host(plan: Plan) -> list[str]:
    if not plan.host:
        return []
    return [
        f"host's memory for one device: {plan.host / GIB:.3f} GiB, sent there and back"
        " in a step; no time below has it"
    ]


def _traffic(plan: Plan) -> list[str]:
    if not plan.traffic:  # one device, or no program
        return []
    return [
        "received by one device in a step:",
        *(
            f"  {name:<18} {size / GIB:9.3f} GiB"
            for name, size in sorted(plan.traffic.items())
        ),
        "",
    ]


def _time(plan: Plan) -> list[str]:
    bounds = plan.bounds
    best, worst = max(bounds.values()), sum(bounds.values())
    if plan.estimated is None:
        return [
            f"step between {best:.4f} s (all overlap) and {worst:.4f} s (none does):"
            f" MFU from {bounds['compute'] / worst:.0%} to"
            f" {bounds['compute'] / best:.0%} at the very best"
        ]
    return [
        f"step by the compiler's estimate of cycles: {plan.estimated:.4f} s, MFU"
        f" {bounds['compute'] / plan.estimated:.0%};",
        CAVEAT,
    ]


def _advice(plan: Plan) -> list[str]:
    limit, memory, config = plan.chip.memory, plan.memory, plan.config
    if plan.fits:
        return [f"fits: {memory.peak / limit:.0%} of the memory"]
    lines = [f"does not fit: {memory.peak / limit:.2f} times the memory; try"]
    trained = memory.trained + memory.optimizer
    # A part that takes half of the memory is too large; without one, the largest.
    large = min(limit / 2, max(memory.base, trained, memory.activations))
    if memory.base >= large:
        need = max(2, math.ceil(memory.base / (limit / 2)))
        formats = {"f32": "bf16, int8 or nf4", "bf16": "int8 or nf4", "int8": "nf4"}
        other = formats.get(config.base)
        smaller = f", or --base {other}" if other else ""
        lines.append(f"  large base: {need} times the fsdp or tensor axis{smaller}")
    if trained >= large:
        if TRAINABLES[config.train].adapters:
            advice = "adapters: a lower --rank, fewer --targets, more fsdp"
        else:
            advice = "model and optimizer: more fsdp or tensor, or --train lora"
        lines.append(f"  large {advice}")
    if memory.activations >= large:
        sizes = parse_mesh(config.mesh)
        parts = sizes["data"] * sizes["fsdp"] * config.accumulate
        ways = [] if config.remat == "full" else ["--remat full"]
        if config.hyper.batch_size > parts:  # type: ignore[operator]
            ways += ["--accumulate", "a smaller batch", "more devices along data"]
        else:  # one prompt each
            ways += ["a lower --seq-length", "more devices along tensor"]
        lines.append(f"  large activations: {', '.join(ways)}")
    return lines


def table(plans: Sequence[Plan]) -> str:
    """Formats plans as a table, and names the fastest that fits.

    A time is the compiler's estimate; where it gives none, the lower bound by
    operations and the base's reads, which cannot tell what writing activations costs.

    Args:
        plans: those of one model.
    """
    known = all(plan.estimated or not plan.fits for plan in plans)
    head = (
        "base",
        "mesh",
        "batch",
        "parts",
        "remat",
        "peak GiB",
        "",
        "s, est." if known else "s >=",
    )
    rows = [head, *(_row(plan, known=known) for plan in plans)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", _best(plans, known=known)])


def _row(plan: Plan, *, known: bool) -> tuple[str, ...]:
    config = plan.config
    host = f" + {plan.host / GIB:.2f} GiB to the host and back" if plan.host else ""
    return (
        config.base,
        config.mesh,
        str(config.hyper.batch_size),
        str(config.accumulate),
        config.remat,
        f"{plan.memory.peak / GIB:.2f}",
        "fits" if plan.fits else "does not fit",
        f"{_least(plan, known=known):.4f}{host}" if plan.fits else "",
    )


def _least(plan: Plan, *, known: bool) -> float:
    if known:
        return plan.seconds
    return max(plan.bounds["compute"], plan.bounds["memory"])


def _best(plans: Sequence[Plan], *, known: bool) -> str:
    fit = [plan for plan in plans if plan.fits]
    if not fit:
        return "none of these fits"

    def cost(plan: Plan) -> tuple[bool, float, int]:
        prompts: int = plan.config.hyper.batch_size  # type: ignore[assignment]
        each = _least(plan, known=known) / prompts * plan.topology.used
        unknown = plan.config.remat == "offload"  # the time to the host and back
        return unknown, each, plan.memory.peak

    best = min(fit, key=cost).config
    named = (
        f"--remat {best.remat} --base {best.base} --mesh {best.mesh}"
        f" --batch-size {best.hyper.batch_size} --accumulate {best.accumulate}"
    )
    if known:
        return f"fastest that fits, by prompts a second and chip: {named}"
    return (
        f"fewest operations of what fits, and of equal ones the least memory: {named}"
    )
