# ruff: noqa: E501 - a compiled module is printed as it is.
"""What is read from a compiled module, against a module small enough to add up by hand."""

from alanything_jax.planning import hlo

MODULE = """HloModule little, is_scheduled=true

%gather (p: bf16[1,64]) -> bf16[16,64] {
  %p = bf16[1,64]{1,0} parameter(0)
  ROOT %all-gather.7 = bf16[16,64]{1,0} all-gather(%p), channel_id=3, replica_groups=[4,16]<=[64], dimensions={0}
}

%scatter (p: bf16[32,64]) -> bf16[8,64] {
  %p.1 = bf16[32,64]{1,0} parameter(0)
  %all-reduce.1 = bf16[32,64]{1,0} all-reduce(%p.1), replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %slice.1 = bf16[8,64]{1,0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={8,64}
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(32)
  %c = (s32[], f32[8]) parameter(0)
  %n = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%n, %bound), direction=LT
}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %async-collective-start.2 = (bf16[16,64]{1,0}, u32[]) fusion(%x), kind=kCustom, calls=%gather
  %fusion.1 = f32[8]{0} fusion(%y), kind=kOutput, calls=%other, backend_config={"estimated_cycles":"700"}
  %async-collective-done.2 = bf16[16,64]{1,0} fusion(%z), kind=kCustom, calls=%gather
  %fusion.2 = bf16[8,64]{1,0} fusion(%y), kind=kOutput, calls=%scatter, backend_config={"estimated_cycles":"50"}
  ROOT %tuple = (s32[], f32[8]) tuple(%n, %fusion.1)
}

%cheap (a: f32[8]) -> f32[8] {
  ROOT %c1 = f32[8]{0} copy(%a), backend_config={"estimated_cycles":"1"}
}

%dear (a: f32[8]) -> f32[8] {
  ROOT %c2 = f32[8]{0} copy(%a), backend_config={"estimated_cycles":"9"}
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %while.1 = (s32[], f32[8]{0}) while(%t), condition=%condition, body=%body
  %group_attention.3 = bf16[1,2,4,8]{3,2,1,0} custom-call(%a), custom_call_target="tpu_custom_call"
  %collective-permute-start.1 = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{0,1}}
  %copy.2 = f32[8]{0} copy(%a), backend_config={"estimated_cycles":"100"}
  %collective-permute-done.1 = f32[4]{0} collective-permute-done(%collective-permute-start.1)
  %gather-start = (f32[256]{0}, f32[1024]{0}) all-gather-start(%a), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
  %gather-done = f32[1024]{0} all-gather-done(%gather-start)
  %all-to-all.1 = f32[256]{0} all-to-all(%a), replica_groups={{0,1,2,3}}, dimensions={0}
  %reduce-scatter.1 = f32[64]{0} reduce-scatter(%a), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %scatter-start = (f32[256]{0}, f32[64]{0}) reduce-scatter-start(%a), replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %scatter-done = f32[64]{0} reduce-scatter-done(%scatter-start)
  %all-reduce.9 = f32[256]{0} all-reduce(%a), replica_groups=mesh['axis_0'=4,'axis_1'=16], device_ids=([4,16]T(1,0)) {'axis_1'}, to_apply=%add
  ROOT %conditional.1 = f32[8]{0} conditional(%p, %a, %a), branch_computations={%cheap, %dear}
}
"""


def test_loops_branches_and_collectives_add_up():
    events = hlo.events(MODULE)
    compute = sum(e.times * e.cycles for e in events if e.kind == "compute")
    assert compute == 32 * (700 + 50) + 100 + 9
    found = {
        (e.kind, e.times, len(e.group), e.num_bytes, e.hidden_cycles)
        for e in events
        if e.kind != "compute"
    }
    assert found == {
        # Woven into the loop's compute: counted at its start, hidden by what follows.
        ("all-gather", 32, 16, 16 * 64 * 2, 700),
        # A sum of which each keeps a slice.
        ("reduce-scatter", 32, 4, 32 * 64 * 2, 0),
        ("kernel", 1, 0, 0, 0),
        # Operand and result are there while it is under way; one of them is moved.
        ("collective-permute", 1, 2, 4 * 4, 100),
        ("all-gather", 1, 4, 1024 * 4, 0),
        # What a device has of the array is printed, or all that goes in.
        ("all-to-all", 1, 4, 4 * 256 * 4, 0),
        ("reduce-scatter", 1, 4, 4 * 64 * 4, 0),
        ("all-reduce", 1, 16, 256 * 4, 0),
    }


def test_a_kernel_has_the_dims_of_its_first_result():
    assert [e.dims for e in hlo.events(MODULE) if e.kind == "kernel"] == [(1, 2, 4, 8)]


def test_who_takes_part_in_a_collective():
    groups = {e.name: e.group for e in hlo.events(MODULE)}
    assert groups["all-gather.7"] == tuple(range(16))
    assert groups["gather-start"] == (0, 2, 4, 6)
    assert groups["collective-permute-start.1"] == (0, 1)
    # 0 .. 63 as 4 x 16, turned round, and that cut into 4 x 16: its first row.
    columns = [(n, n + 16, n + 32, n + 48) for n in range(4)]
    assert groups["all-reduce.9"] == sum(columns, ())


def test_a_loop_of_unknown_length_runs_as_often_as_is_said():
    text = MODULE.replace(
        "%bound = s32[]{:T(128)} constant(32)", "%bound = s32[] other()"
    )
    one, some = (
        sum(e.times * e.cycles for e in hlo.events(text, *n) if e.kind == "compute")
        for n in ((), (2.5,))
    )
    assert (one, some) == (750 + 109, 2.5 * 750 + 109)
