# ruff: noqa: E501 - a compiled module is printed as it is.
"""Bytes of memory that a module moves, against one small enough to add up by hand."""

from alanything_jax.planning import traffic

MODULE = """HloModule moves, is_scheduled=true

%cut (p: f32[8,100], q: f32[100]) -> f32[100] {
  %p = f32[8,100]{1,0} parameter(0)
  %q = f32[100]{0} parameter(1)
  %bits = f32[800]{0} bitcast(%p)
  %slice = f32[100]{0} dynamic-slice(%bits, %n), dynamic_slice_sizes={100}
  ROOT %sum = f32[100]{0} add(%slice, %q)
}

%keep (p: f32[8,100], q: f32[1,100]) -> (f32[8,100], f32[100]) {
  %p.1 = f32[8,100]{1,0} parameter(0)
  %q.1 = f32[1,100]{1,0} parameter(1)
  %kept = f32[8,100]{1,0} dynamic-update-slice(%p.1, %q.1, %n, %n)
  %same = f32[8,100]{1,0} bitcast(%kept)
  %flat = f32[100]{0} bitcast(%q.1)
  ROOT %both = (f32[8,100]{1,0}, f32[100]{0}) tuple(%same, %flat)
}

%condition (c: (s32[], f32[100])) -> pred[] {
  %bound = s32[] constant(5)
  ROOT %lt = pred[] compare(%n, %bound), direction=LT
}

%body (b: (s32[], f32[100])) -> (s32[], f32[100]) {
  %b = (s32[], f32[100]{0}) parameter(0)
  %stack = f32[8,100]{1,0} get-tuple-element(%b), index=0
  %x = f32[100]{0} get-tuple-element(%b), index=1
  %near = f32[100]{0:T(8)S(1)} get-tuple-element(%b), index=2
  %row = f32[1,100]{1,0} get-tuple-element(%b), index=3
  %fusion.1 = f32[100]{0} fusion(%stack, %x), kind=kLoop, calls=%cut
  %fusion.2 = (f32[8,100]{1,0}, f32[100]{0:S(1)}) fusion(%stack, %row), kind=kLoop, calls=%keep
  %add.1 = f32[100]{0} add(%near, %x)
  ROOT %t = (s32[], f32[100]{0}) tuple(%n, %add.1)
}

%little (a: f32[10]) -> f32[10] {
  %a = f32[10]{0} parameter(0)
  ROOT %c1 = f32[10]{0} copy(%a)
}

%large (a: f32[10]) -> f32[10] {
  %a = f32[10]{0} parameter(0)
  %c2 = f32[10]{0} copy(%a)
  ROOT %c3 = f32[10]{0} copy(%c2)
}

ENTRY %main (a: f32[10]) -> f32[10] {
  %a = f32[10]{0} parameter(0)
  %room = f32[1000]{0} custom-call(), custom_call_target="AllocateBuffer"
  %while.1 = (s32[], f32[100]{0}) while(%t), condition=%condition, body=%body
  %copy-start.1 = (f32[10]{0:S(1)}, f32[10]{0}, u32[]) copy-start(%a)
  %copy-done.1 = f32[10]{0:S(1)} copy-done(%copy-start.1)
  ROOT %conditional.1 = f32[10]{0} conditional(%p, %a, %a), branch_computations={%little, %large}
}
"""


def test_bytes_add_up():
    in_the_loop = (
        # A row of the stack and the whole of the other; the sum.
        (100 + 100 + 100)
        # The row that is read, and written into the stack; the other result is near.
        + (100 + 100)
        # One operand is near.
        + (100 + 100)
    )
    # Fetched into the cores' memory; and of the branches the larger.
    expected = 4 * (5 * in_the_loop + 10 + 4 * 10)
    assert traffic.of_module(MODULE) == expected
    text = MODULE.replace("%bound = s32[] constant(5)", "%bound = s32[] other()")
    assert traffic.of_module(text, 2.5) == 4 * (2.5 * in_the_loop + 10 + 4 * 10)
