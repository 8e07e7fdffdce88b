"""Programs' transfers and cycles, against programs counted by hand."""

# ruff: noqa: E501 -- lines of programs

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ivon_jax.train.plan.hlo import program_cost


def collectives(text: str) -> dict[str, int]:
    return program_cost(text).traffic()


def test_traffic_of_a_loop_counts_every_turn():
    mesh = jax.make_mesh((8,), ("x",), (AxisType.Auto,))

    def shape(sizes, *axes):
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=sharding)

    def loss(kernels, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, kernels)[0].sum()

    # A product along a split axis is added up in every turn: (16, 64) float32.
    kernels, x = shape((5, 64, 64), None, "x"), shape((16, 64))
    found = collectives(jax.jit(loss).lower(kernels, x).compile().as_text())
    assert found["all-reduce"] in (5 * 16 * 64 * 4, 5 * 16 * 64 * 4 + 4)


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="^program: has no entry"):
        collectives("nothing")


# A loop of five turns in the manner of a TPU's program: a gather of 128 bf16 that is
# started, carried on and awaited in three fusions, and no number of turns but in the
# loop's condition; then a sum of 32 f32 outside of it.
TPU = """HloModule step

%start (p.0: bf16[32]) -> bf16[128] {
  %all-gather.1 = bf16[128]{0:T(256)} all-gather(%p.0), channel_id=7, dimensions={0}, metadata={op_name="loop/up_proj"}
  ROOT %custom-call.1 = bf16[128]{0} custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%carry (p.1: bf16[32]) -> bf16[128] {
  %inner = f32[8]{0} add(%a, %b), backend_config={"estimated_cycles":"1000"}
  ROOT %all-gather.2 = bf16[128]{0:T(256)S(1)} all-gather(%p.1), channel_id=7, dimensions={0}
}

%body (t.0: (s32[], bf16[32])) -> (s32[], bf16[32]) {
  %fusion.1 = bf16[128]{0} fusion(%x), kind=kCustom, calls=%start, backend_config={"estimated_cycles":"40"}
  %fusion.2 = bf16[128]{0} fusion(%x), kind=kOutput, calls=%carry, backend_config={"estimated_cycles":"60"}
  ROOT %tuple.1 = (s32[], bf16[32]) tuple(%i, %x)
}

%condition (t.1: (s32[], bf16[32])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(5)
  ROOT %lt.1 = pred[] compare(%i, %constant.1), direction=LT
}

%add (a.0: f32[], b.0: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(%a.0, %b.0)
}

ENTRY %main (arg.0: bf16[32]) -> f32[32] {
  %while.1 = (s32[], bf16[32]) while(%t), condition=%condition, body=%body
  %copy.1 = f32[32]{0} copy(%y), backend_config={"estimated_cycles":"7"}
  ROOT %all-reduce.1 = f32[32]{0} all-reduce(%copy.1), channel_id=9, to_apply=%add
}
"""


def test_a_channel_counts_once_and_a_turn_each_time():
    cost = program_cost(TPU)
    assert cost.traffic() == {"all-gather": 5 * 128 * 2, "all-reduce": 32 * 4}
    assert cost.cycles == 5 * (40 + 60) + 7  # what is fused is in its fusion's
    gather = next(one for one in cost.collectives if one.kind == "all-gather")
    assert (gather.turns, gather.source) == (5, "loop/up_proj")


def test_what_is_started_returns_its_operand_too():
    started = """ENTRY %main (a: f32[8]) -> f32[32] {
  %start = (f32[8]{0}, f32[32]{0}) all-gather-start(%a), channel_id=1, dimensions={0}
  %permute = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%a), channel_id=2
  %sum = (f32[8]{0}, f32[16]{0}) all-reduce-start(%a, %b), channel_id=3, to_apply=%add
  %many = ((f32[8]{0}, f32[2]{0}), (f32[2]{0}, /*index=3*/bf16[2]{0})) reduce-scatter-start(%a, %b), channel_id=4
  ROOT %done = f32[32]{0} all-gather-done(%start)
}
"""
    assert collectives(started) == {
        "all-gather": 32 * 4,
        "collective-permute": 8 * 4,
        "all-reduce": (8 + 16) * 4,
        "reduce-scatter": 2 * 4 + 2 * 2,
    }
