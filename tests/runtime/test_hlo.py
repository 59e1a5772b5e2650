"""The text of compiled programs, as several compilers write it."""

import pytest

from jaxrec.runtime import hlo, hlo_loops

LOOP = """HloModule m

FileNames
1 "/home/someone/jaxrec/jaxrec/nn/bias.py"
2 "/usr/lib/python3/site-packages/flax/linen/linear.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=135 end_line=135 column=1 end_column=2}
2 {file_name_id=2 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %step = s32[] constant(STEP)
  %next = s32[] add(%step, %i)
  %x = f32[8,4]{1,0:T(8,128)} get-tuple-element(%p), index=1
  %y = f32[8,4]{1,0:T(8,128)} negate(%x), metadata={op_name="jit(f)/neg" stack_frame_id=2}
  ROOT %out = (s32[], f32[8,4]{1,0:T(8,128)}) tuple(%next, %y)
}

%compared (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %c = pred[] compare(%a, %b), direction=DIRECTION
}

%condition (p: (s32[], f32[8,4])) -> pred[] {
  %p.1 = (s32[], f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %limit = s32[] constant(LIMIT)
  ROOT %c.1 = pred[] fusion(ORDER), kind=kLoop, calls=%compared
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x.1 = f32[8,4]{1,0:T(8,128)} parameter(0)
  %zero = s32[] constant(START)
  %copied = s32[] copy(%zero)
  %carry = (s32[], f32[8,4]{1,0:T(8,128)}) tuple(%copied, %x.1)
  %loop = (s32[], f32[8,4]{1,0:T(8,128)}) while(%carry), condition=%condition, body=%body
  ROOT %result = f32[8,4]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""


def loop(start=0, limit=10, step=3, direction="LT", order="%i.1, %limit"):
    text = LOOP.replace("START", str(start)).replace("LIMIT", str(limit)).replace("ORDER", order)
    return hlo.parse(text.replace("STEP", str(step)).replace("DIRECTION", direction))


def turns(module):
    found = hlo_loops.executions(module, lambda name: 0)
    return found.times["body"], found.assumed


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 4),
        ({"direction": "LE", "limit": 9}, 4),
        ({"direction": "GT", "order": "%limit, %i.1"}, 4),
        ({"start": 9, "limit": 0, "step": -1, "direction": "GE"}, 10),
        ({"start": 9, "limit": 0, "step": -1, "direction": "GT"}, 9),
        ({"direction": "NE", "limit": 12}, 4),
        ({"start": 20}, 0),
    ],
)
def test_a_loop_is_counted_from_its_counter(given, expected):
    assert turns(loop(**given)) == (expected, [])


def test_a_loop_that_never_ends_is_not_counted():
    times, assumed = turns(loop(step=-1))
    assert times == 1
    assert assumed == ["a loop of unknown length, 1 turns: loop"]


def test_what_the_compiler_says_of_a_loop_comes_first():
    module = loop()
    main = module.computations["main"]
    stated = main.instructions["loop"]._replace(
        rest=main.instructions["loop"].rest
        + ', backend_config={"known_trip_count":{"n":"7"},"known_init_step":{}}'
    )
    assert hlo_loops.trips(module, main, stated) == 7


def test_shapes_with_tiles_and_memories():
    (array,) = hlo.arrays("bf16[2,264,8]{1,2,0:T(8,128)(2,1)S(1)}")
    assert array.dims == (2, 264, 8)
    assert array.space == 1
    assert array.bytes == 2 * 8 * 384 * 2
    assert array.logical_bytes == 2 * 264 * 8 * 2
    nested = hlo.arrays("((f32[3]{0}), /*index=5*/f32[4]{0:T(128)}, s32[]{:S(2)}, token[])")
    assert [(a.dims, a.bytes, a.space) for a in nested] == [
        ((3,), 12, 0),
        ((4,), 512, 0),
        ((), 4, 2),
    ]


def test_source_lines_leave_out_installed_packages_and_machines():
    module = loop()
    negate = module.computations["body"].instructions["y"]
    assert module.source(negate) == "jaxrec/nn/bias.py:135"
    assert hlo.op_name(negate) == "jit(f)/neg"


def test_operands_with_and_without_shapes():
    text = """ENTRY %main (a: f32[2,4], b: s32[]) -> f32[2] {
  %x = f32[2,4]{1,0} dynamic-slice(f32[8,4]{1,0:T(8,128)} %a, s32[] %b, s32[] %c), sizes={2,4}
  y = f32[2,4]{1,0} add(a, b.1), metadata={op_name="f(x)"}
}
"""
    found = hlo.parse(text).computations["main"].instructions
    assert found["x"].operands == ("a", "b", "c")
    assert found["y"].operands == ("a", "b.1")
    assert found["x"].rest == ", sizes={2,4}"
