"""Memory traffic and FLOPs: loops as often as they turn, and XLA's count where there is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxrec.runtime import hlo, hlo_cost, plan

TURNS = 7


def shape(*dims, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(dims, dtype)


def compiled(function, *given):
    return jax.jit(function).lower(*given).compile()


def counted(function, *given):
    return hlo_cost.count(compiled(function, *given).as_text())


def layer(x, w):
    return jnp.tanh(x @ w) + x


def scanned(x, w):
    return lax.scan(lambda x, w: (layer(x, w), None), x, w)[0]


def unrolled_scan(x, w):
    for turn in range(TURNS):
        x = layer(x, w[turn])
    return x


def looped(x, w):
    return lax.fori_loop(0, TURNS, lambda _, x: layer(x, w), x)


def unrolled_loop(x, w):
    for _ in range(TURNS):
        x = layer(x, w)
    return x


def nested(x, w):
    return lax.fori_loop(0, 2, lambda _, x: looped(x, w), x)


def unrolled_nested(x, w):
    return unrolled_loop(unrolled_loop(x, w), w)


@pytest.mark.parametrize(
    ("loop", "straight", "weights"),
    [
        (scanned, unrolled_scan, (TURNS, 256, 256)),
        (looped, unrolled_loop, (256, 256)),
        (nested, unrolled_nested, (256, 256)),
    ],
)
def test_a_loop_costs_what_it_costs_unrolled(loop, straight, weights):
    given = shape(128, 256), shape(*weights)
    once, unrolled = counted(loop, *given), counted(straight, *given)
    assert once.flops == unrolled.flops
    assert once.bytes == pytest.approx(unrolled.bytes, rel=0.05)
    # XLA counts the body once
    xla = compiled(loop, *given).cost_analysis()
    assert xla["flops"] < 0.5 * once.flops


def softmax_of_products(q, k, v):
    return jnp.einsum("bnqk,bnkh->bnqh", jax.nn.softmax(jnp.einsum("bnqh,bnkh->bnqk", q, k)), v)


HEADS = shape(2, 4, 64, 16)
TABLE, IDS, ROWS = shape(1000, 64), shape(300, dtype=jnp.int32), shape(300, 64)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (unrolled_scan, (shape(128, 256), shape(TURNS, 256, 256))),
        (jax.grad(lambda w, x: unrolled_loop(x, w).sum()), (shape(256, 256), shape(128, 256))),
        (softmax_of_products, (HEADS,) * 3),
        (lambda x: jnp.concatenate([jnp.sort(x), x[:, ::-1]]), (shape(64, 1000),)),
        (lambda t, u: lax.dynamic_update_slice(t, u, (3, 0)), (TABLE, ROWS)),
        (lambda t, i: 2 * lax.dynamic_slice(t, (i[0], 0), (100, 64)), (TABLE, IDS)),
    ],
)
def test_without_loops_xla_counts_the_same_traffic(function, given):
    program = compiled(function, *given)
    found = hlo_cost.count(program.as_text())
    assert found.assumed == []
    assert found.bytes == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.02)


@pytest.mark.parametrize(
    ("strides", "padding", "dilation"),
    [((1, 1), "VALID", (1, 1)), ((2, 1), "SAME", (1, 1)), ((2, 1), ((1, 1), (1, 2)), (1, 2))],
)
def test_convolutions_count_elements_that_exist(strides, padding, dilation):
    def convolved(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation=dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    program = compiled(convolved, shape(4, 16, 12, 8), shape(3, 3, 8, 16))
    found = hlo_cost.count(program.as_text())
    assert found.flops == program.cost_analysis()["flops"]


def test_a_batched_product_as_a_tpu_writes_it():
    """The window walks the batch: 2 x 8 heads, each 256 x 64 by 64 x 256."""
    text = """ENTRY %main (a: bf16[2,8,256,64], b: bf16[2,8,256,64]) -> f32[2,8,256,256] {
  %a = bf16[2,8,256,64]{3,2,1,0} parameter(0)
  %b = bf16[2,8,256,64]{3,2,1,0} parameter(1)
  ROOT %c = f32[2,8,256,256]{3,2,1,0} convolution(%a, %b), \
window={size=2x8 stride=1x7 lhs_dilate=2x8}, dim_labels=01bf_01oi->01bf
}
"""
    assert hlo_cost.count(text).flops == 2 * 2 * 8 * 256 * 256 * 64


def test_a_gather_reads_the_rows_it_takes():
    found = counted(lambda t, i: 2 * t[i], TABLE, IDS)
    assert found.bytes == pytest.approx(2 * 300 * 64 * 4, rel=0.1)  # not 1,000 rows


def test_an_update_in_a_loop_writes_its_part():
    def filled(x):
        def body(turn, out):
            return lax.dynamic_update_slice(out, x[None] * turn, (turn, 0))

        return lax.fori_loop(0, 500, body, jnp.zeros((500, 64)))

    found = counted(filled, shape(64))
    # the row read, and written in place (the unfused product writes and reads it again)
    assert found.bytes < 500 * 64 * 4 * 8


def test_a_loop_of_unknown_length_covers_what_it_cuts():
    def summed(x, used):
        def body(carry):
            turn, total = carry
            return turn + 1, total + lax.dynamic_slice_in_dim(x, turn * 32, 32)

        start = (jnp.int32(0), jnp.zeros((32, 256)))
        return lax.while_loop(lambda carry: carry[0] < used, body, start)[1]

    found = counted(summed, shape(256, 256), shape(dtype=jnp.int32))
    assert [text.partition(":")[0] for text in found.assumed] == [
        "a loop of unknown length, 8 turns"
    ]
    assert max(one.times for one in found.operations) == 9  # its condition


def test_a_conditional_counts_its_costliest_branch():
    def either(p, x):
        return lax.cond(p, lambda x: x @ x, lambda x: x + 1, x)

    program = compiled(either, shape(dtype=jnp.bool_), shape(256, 256))
    found = hlo_cost.count(program.as_text())
    assert found.flops == 2 * 256**3
    assert found.assumed[0].startswith("the costliest of 2 branches")
    found = hlo_cost.count(program.as_text(), cheapest=True)
    assert found.flops == 0
    assert found.assumed[0].startswith("the cheapest of 2 branches")
    described = plan.describe(program)
    assert described["dot_flops"] == 2 * 256**3
    assert described["cheapest_branches"]["dot_flops"] == 0


KERNEL = """ENTRY %main (x: f32[256,256]) -> f32[256,256] {
  %x = f32[256,256]{1,0:T(8,128)} parameter(0)
  ROOT %k = f32[256,256]{1,0:T(8,128)} custom-call(%x), custom_call_target="tpu_custom_call", \
metadata={op_name="jit(f)/pallas_call"}, backend_config={"custom_call_config":{"body":"TUzv"COST}}
}
"""


def test_a_kernel_counts_what_it_declares():
    estimate = ',"cost_estimate":{"flops":"123","transcendentals":"1","bytes_accessed":"77"}'
    found = hlo_cost.count(KERNEL.replace("COST", estimate))
    assert (found.flops, found.bytes, found.assumed) == (123, 77, [])
    found = hlo_cost.count(KERNEL.replace("COST", ""))
    assert (found.flops, found.bytes) == (0, 2 * 256 * 256 * 4)
    assert found.assumed == [
        "a kernel without cost_estimate counts its operands: jit(f)/pallas_call"
    ]


def test_a_product_that_a_gpu_gives_to_a_library():
    text = """ENTRY %main (a: f32[64,32], b: f32[32,16]) -> f32[64,16] {
  %a = f32[64,32]{1,0} parameter(0)
  %b = f32[32,16]{1,0} parameter(1)
  %c = (f32[64,16]{1,0}, s8[1024]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", \
backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":\
{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  ROOT %d = f32[64,16]{1,0} get-tuple-element(%c), index=0
}
"""
    assert hlo_cost.count(text).flops == 2 * 64 * 32 * 16


def test_fast_memory_is_free_and_tiles_are_full():
    text = """ENTRY %main (x: f32[1024,8]) -> f32[1024,8] {
  %x = f32[1024,8]{1,0:T(8,128)} parameter(0)
  %fast = f32[1024,8]{1,0:T(8,128)S(1)} negate(%x)
  %faster = f32[1024,8]{1,0:T(8,128)S(1)} negate(%fast)
  %start = (f32[1024,8]{0,1:T(8,128)}, f32[1024,8]{1,0:T(8,128)S(1)}, u32[]{:S(2)}) \
copy-start(%faster)
  ROOT %done = f32[1024,8]{0,1:T(8,128)} copy-done(%start)
}
"""
    found = {one.instruction.name: one.bytes for one in hlo_cost.count(text).operations}
    assert found == {"x": 0, "fast": 1024 * 128 * 4, "faster": 0, "start": 1024 * 8 * 4, "done": 0}


def test_numbers_of_a_program_that_runs():
    """The traffic of a sum is what it reads and the number it writes."""
    program = compiled(jnp.sum, shape(1024, 1024))
    assert hlo_cost.count(program.as_text()).bytes == pytest.approx(4 * 2**20, rel=0.05)
    np.testing.assert_allclose(program(jnp.ones((1024, 1024))), 2**20)
    assert hlo.parse(program.as_text()).entry
