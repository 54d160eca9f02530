"""Counts of kernels, host reads, bytes and operations against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks.program_costs import Cost, Program, operations, size

# A loop over three layers: a product with a layer of a stack, an update of a cache in place, and a
# custom call that reads one layer of the cache and needs scratch memory.
TEXT = """
HloModule jit_step, is_scheduled=true

%fused_product (p.0: bf16[3,20,30], p.1: s32[], p.2: bf16[30]) -> f32[20] {
  %p.0 = bf16[3,20,30]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %p.2 = bf16[30]{0} parameter(2)
  %zero = s32[] constant(0)
  %slice = bf16[1,20,30]{2,1,0} dynamic-slice(%p.0, %p.1, %zero, %zero)
  ROOT %sum = f32[20]{0} fusion(%slice, %p.2), kind=kCustom, calls=%fused_sum
}

%fused_sum (q.0: bf16[1,20,30], q.1: bf16[30]) -> f32[20] {
  %q.0 = bf16[1,20,30]{2,1,0} parameter(0)
  %q.1 = bf16[30]{0} parameter(1)
  ROOT %dot = f32[20]{0} dot(%q.0, %q.1), lhs_contracting_dims={2}, rhs_contracting_dims={0}
}

%fused_update (u.0: bf16[3,100,4], u.1: f32[20], u.2: s32[]) -> bf16[3,100,4] {
  %u.0 = bf16[3,100,4]{2,1,0} parameter(0)
  %u.1 = f32[20]{0} parameter(1)
  %u.2 = s32[] parameter(2)
  %row = bf16[1,1,4]{2,1,0} convert(%u.1)
  ROOT %update = bf16[3,100,4]{2,1,0} dynamic-update-slice(%u.0, %row, %u.2, %u.2, %u.2)
}

%layer (state: STATE) -> STATE {
  %state = STATE parameter(0)
  %index = s32[] get-tuple-element(%state), index=0
  %weights = bf16[3,20,30]{2,1,0} get-tuple-element(%state), index=1
  %cache = bf16[3,100,4]{2,1,0} get-tuple-element(%state), index=2
  %x = bf16[30]{0} get-tuple-element(%state), index=3
  %product = f32[20]{0} fusion(%weights, %index, %x), kind=kInput, calls=%fused_product
  %written = bf16[3,100,4]{2,1,0} fusion(%cache, %product, %index), kind=kLoop, calls=%fused_update
  %attended = (bf16[30]{0}, s8[4096]{0}) custom-call(%product, %written, %index)
  %y = bf16[30]{0} get-tuple-element(%attended), index=0
  ROOT %next = STATE tuple(%index, %weights, %written, %y)
}

%below (limit: STATE) -> pred[] {
  %limit = STATE parameter(0)
  %number = s32[] get-tuple-element(%limit), index=0
  ROOT %less = pred[] fusion(%number), kind=kLoop, calls=%fused_less
}

%fused_less (n: s32[]) -> pred[] {
  %n = s32[] parameter(0)
  %three = s32[] constant(3)
  ROOT %is = pred[] compare(%n, %three), direction=LT
}

%draw (d: bf16[30]) -> bf16[30] {
  %d = bf16[30]{0} parameter(0)
  ROOT %sorted = bf16[30]{0} sort(%d), dimensions={0}, to_apply=%fused_less
}

%keep (k: bf16[30]) -> bf16[30] {
  ROOT %k = bf16[30]{0} parameter(0)
}

ENTRY %main (a.0: STATE, a.1: pred[]) -> bf16[30] {
  %a.0 = STATE parameter(0)
  %a.1 = pred[] parameter(1)
  %loop = STATE while(%a.0), condition=%below, body=%layer, CONFIG
  %last = bf16[30]{0} get-tuple-element(%loop), index=3
  ROOT %drawn = bf16[30]{0} conditional(%a.1, %last, %last), branch_computations={%draw, %keep}
}
"""
STATE = "(s32[], bf16[3,20,30]{2,1,0}, bf16[3,100,4]{2,1,0}, /*index=3*/bf16[30]{0})"
KNOWN = 'backend_config={"known_trip_count":{"n":"3"}}'
# The product reads a layer, the index and x; the update reads the product and the index; the call
# reads the product, a layer of the cache and the index.
PRODUCT = 20 * 30 * 2 + 4 + 60 + 80
UPDATE = 80 + 4 + 8
CALL = 80 + 100 * 4 * 2 + 4 + 60
LAYER = Cost(kernels=3, launches=3, moved=PRODUCT + UPDATE + CALL)
DRAW = Cost(kernels=1, launches=1, reads=1, moved=2 * 60)


def compiled(config: str, more: tuple[str, str] = ("", "")) -> Program:
    text = TEXT.replace("STATE", STATE).replace("CONFIG", config).replace(*more)
    return Program(text, layers=3)


def test_loops_branches_and_slices():
    program = compiled(KNOWN)
    assert list(program.layer_loops()) == [LAYER]
    assert program.cost() == LAYER.times(3).plus(DRAW)


def test_a_loop_of_unknown_length_counts_once_and_reads_its_predicate():
    program = compiled("backend_config={}")
    assert list(program.layer_loops()) == []
    predicate = Cost(kernels=1, launches=1, reads=1, moved=4 + 1)
    assert program.cost() == LAYER.plus(predicate).plus(DRAW)


def test_five_kernels_in_a_row_are_a_command_buffer():
    """The branches are entered by the host, between two launches."""
    line = "  %last = bf16[30]{0} get-tuple-element(%loop), index=3\n"
    for copies, launches in ((4, 4), (5, 1)):
        more = line + "".join(f"  %c.{i} = bf16[30]{{0}} copy(%last)\n" for i in range(copies))
        cost = compiled(KNOWN, more=(line, more)).cost()
        assert cost.kernels - LAYER.kernels * 3 - DRAW.kernels == copies
        assert cost.launches - LAYER.launches * 3 - DRAW.launches == launches


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("pred[]", 1), ("(s32[], (bf16[3,5]{1,0}, s4[10]{0:E(4)}))", 39), ("f8e4m3fn[7]{0}", 7)],
)
def test_sizes_of_shapes(shape, expected):
    assert size(shape) == expected


def test_operations_of_loops_and_branches():
    def run(x, w):
        def step(x, _):
            return jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: (x @ w) @ w), None

        x, _ = jax.lax.scan(step, x, length=5)
        return jax.lax.while_loop(lambda x: x[0, 0] > 0, lambda x: jax.jit(jnp.dot)(x, w), x)

    jaxpr = jax.make_jaxpr(run)(jnp.zeros((3, 8)), jnp.zeros((8, 8)))
    assert operations(jaxpr.jaxpr) == (5 * 2 + 1) * 2 * 3 * 8 * 8
