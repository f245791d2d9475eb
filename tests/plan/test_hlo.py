"""Operations and collectives of an HLO text written by hand."""

import pytest

from lmx.plan.hlo import HLOOp, measure, parse_group, parse_hlo

# As the compiler of TPUs prints it: layouts, comments in shapes, attributes with line
# breaks, a loop within a loop, one collective spread over three operations.
TEXT = """\
HloModule jit_step

%fused_start (p: bf16[4,8]) -> bf16[16,8] {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %ag.1 = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, \
replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

%fused_done (p: bf16[16,8]) -> bf16[16,8] {
  %p = bf16[16,8]{1,0} parameter(0)
  ROOT %ag.2 = bf16[16,8]{1,0} all-gather(%p), channel_id=7, \
replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

%fused_product (a: f32[8,8], b: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  ROOT %c = f32[8,8]{1,0} convolution(%a, %b), dim_labels=bf_io->bf
}

%fused_inner (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  ROOT %n = f32[8]{0} negate(%a), backend_config={"estimated_cycles":"1000"}
}

%within (t: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %t = (s32[]{:T(128)}, /*index=1*/f32[8,8]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,8]{1,0} fusion(%t), kind=kOutput, calls=%fused_product, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %r = (s32[], f32[8,8]) tuple(%t, %x)
}

%within_if (t: (s32[], f32[8,8])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %t = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %five), direction=LT
}

%body (t: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %t = (s32[], f32[8,8]) parameter(0)
  %start = bf16[16,8]{1,0} fusion(%t), kind=kCustom, calls=%fused_start
  %w = (s32[], f32[8,8]) while(%t), condition=%within_if, body=%within
  %done = bf16[16,8]{1,0} fusion(%start), kind=kCustom, calls=%fused_done
  %kernel.3 = f32[8]{0} custom-call(%t), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"name":"splash"
}}, metadata={op_name="x"}
  %sum = f32[8]{0} all-reduce(%kernel.3), channel_id=9, replica_groups={{0,1},{2,3}}
  %pass = f32[8]{0} fusion(%sum), kind=kLoop, calls=%fused_inner, \
backend_config={"estimated_cycles":"10"}
  ROOT %r = (s32[], f32[8,8]) tuple(%t, %pass)
}

%body_if (t: (s32[], f32[8,8])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %t = (s32[], f32[8,8]) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  ROOT %lt = pred[] compare(%i, %three), direction=LT
}

ENTRY %main (t: (s32[], f32[8,8])) -> f32[8,8] {
  %t = (s32[], f32[8,8]) parameter(0)
  %w = (s32[], f32[8,8]) while(%t), condition=%body_if, body=%body
  ROOT %out = f32[8,8]{1,0} copy(%w), backend_config={"estimated_cycles":"1"}
}
"""


def test_loops_count_by_trips_and_fusions_as_one_operation():
    got = measure(parse_hlo(TEXT))
    assert got.matmul_cycles == 3 * 5 * 100
    assert got.other_cycles == 3 * 10 + 1
    assert got.kernels == {"kernel": 3}


def test_a_collective_spread_over_operations_is_overlapped():
    spread, loose = sorted(measure(parse_hlo(TEXT)).collectives)
    assert spread == ("all-gather", (0, 2, 4, 6), 3 * 16 * 8 * 2, 3, True)
    assert loose == ("all-reduce", (0, 1), 3 * 8 * 4, 3, False)


SLOW = """\
ENTRY %main (t: f32[8]) -> f32[8] {
  %t = f32[8]{0} parameter(0)
  %s = (f32[8]{0}, u32[], token[]) send(%t, %a), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_host_transfer_rendezvous="all-reduce.35_0",_xla_megascale_transfer_type="ALL"}
  %d = token[] send-done(%s), channel_id=4, is_host_transfer=true, \
frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %o = (f32[8]{0}, u32[], token[]) send(%t, %a), channel_id=5
  ROOT %out = f32[8]{0} copy(%t)
}
"""


def test_data_sent_to_other_slices_is_a_collective():
    [use] = measure(parse_hlo(SLOW), [0, 16]).collectives
    assert use == ("all-reduce", (0, 16), 8 * 4, 1, False)


def test_a_loop_without_a_trip_count_is_refused():
    unknown = TEXT.replace("%five = s32[]{:T(128)} constant(5)", "")
    with pytest.raises(ValueError, match="no trip count for the loop w"):
        measure(parse_hlo(unknown))


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,3},{1,2}}, x", [0, 3]),
        ("replica_groups=[2,4]<=[8], x", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, x", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}, x", [*range(8)]),
        (
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}",
            [0, 1, 2, 3],
        ),
        ("replica_groups=mesh['a'=8] {'a':(2)2}, x", [0, 2]),
        ("source_target_pairs={{0,0},{1,2},{2,1}}, x", [1, 2]),
    ],
)
def test_the_first_group_is_parsed_in_every_form(groups, first):
    assert parse_group(HLOOp("x", "f32[]", "all-gather", f"%y), {groups}")) == first
