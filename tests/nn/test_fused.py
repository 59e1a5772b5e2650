"""The fused kernels, interpreted, against NumPy and against masked attention; their plan."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType

from jaxrec.layout import SegmentLayout
from jaxrec.nn import attention
from jaxrec.nn.attention import accelerators, fused
from jaxrec.nn.attention.fused import arrays, calls
from jaxrec.nn.attention.fused.plan import CHUNK, FAST_MEMORY, Plan
from jaxrec.nn.attention.weights import Weighing
from jaxrec.nn.bias import TIME_BUCKETS, RelativeBias, time_bucket
from tests import libtpu
from tests.nn.kernel_parity import KERNELS, compare, with_gradients
from tests.nn.test_attention import LAYOUTS, attend, expected, problem


@pytest.fixture(autouse=True, scope="module")
def kernels_everywhere():
    """A backend that computes the kernels on the device of the tests."""
    attention.BACKENDS[KERNELS] = functools.partial(fused.attend, interpret=True)
    yield
    del attention.BACKENDS[KERNELS]


sizes = st.tuples(st.integers(0, 9), st.integers(0, 3)).filter(any)


@settings(deadline=None, max_examples=4)
@given(
    segments=st.lists(sizes, min_size=1, max_size=4),
    cached=st.lists(st.integers(1, 2), max_size=2),
    max_segments=st.integers(1, 4),
    kind=st.sampled_from(["softmax", "pointwise"]),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_layout_equals_masked_attention(segments, cached, max_segments, kind, with_bias, seed):
    layout = SegmentLayout(tuple(segments), tuple(cached), max_segments)
    compare(layout, problem(layout, seed, with_bias), kind, 1e-5)


@pytest.mark.slow
@settings(deadline=None, max_examples=30)
@given(
    segments=st.lists(sizes, min_size=1, max_size=6),
    cached=st.lists(st.integers(1, 3), max_size=3),
    max_segments=st.integers(1, 6),
    kind=st.sampled_from(["softmax", "pointwise"]),
    with_bias=st.booleans(),
    narrow=st.booleans(),
    seed=st.integers(0, 1000),
)
@example([(0, 1)], [], 1, "softmax", False, True, 0)
@example([(0, 1)], [], 1, "softmax", True, False, 1)
@example([(0, 1)], [], 1, "softmax", False, False, 50)
@example([(0, 2)], [], 1, "softmax", True, True, 0)
def test_many_layouts_equal_masked_attention(
    segments, cached, max_segments, kind, with_bias, narrow, seed
):
    layout = SegmentLayout(tuple(segments), tuple(cached), max_segments)
    p = problem(layout, seed, with_bias)
    if narrow:
        p.update({name: jnp.asarray(p[name], jnp.bfloat16) for name in "qkv"})
    compare(layout, p, kind, 2e-2 if narrow else 1e-5)


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_the_kernels_equal_the_equations(kind):
    layout = LAYOUTS["uneven"]
    p = problem(layout, 3, True)
    exists = p["valid"][:, layout.num_cached :]
    found = np.asarray(jax.jit(lambda p: attend(layout, p, kind, KERNELS))(p))
    np.testing.assert_allclose(found[exists], expected(layout, p, kind)[exists], atol=3e-6)


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_bfloat16(kind):
    """Numbers of 8 bits: sums are float32, weights and their gradients are rounded once."""
    layout = LAYOUTS["stream"]
    p = problem(layout, 5, True)
    # tables too: weights that a mesh splits are gathered as numbers of the computation's type
    names = ("q", "k", "v", "age", "parts", "time")
    p.update({name: jnp.asarray(p[name], jnp.bfloat16) for name in names})
    compare(layout, p, kind, 2e-2)


def test_segments_longer_than_a_chunk_of_rows():
    layout = SegmentLayout(((CHUNK + 5, 3), (CHUNK + 5, 3), (CHUNK, 0)))
    compare(layout, problem(layout, 7, True), "softmax", 1e-5)


def test_rows_without_events_are_skipped():
    """A user without events gets zeros; one with a single event what the event gives."""
    layout = LAYOUTS["stream"]
    p = problem(layout, 8, True)
    p["valid"][:] = False
    p["valid"][1, -2] = True
    founds = compare(layout, p, "pointwise", 1e-5)
    out = np.asarray(attend(layout, p, "pointwise", KERNELS))
    assert not out[0].any()
    assert out[1, -2].any()
    assert not np.asarray(founds["q"])[0].any()


@pytest.mark.parametrize("copies", [4, 1])
def test_users_are_split_over_a_mesh(copies):
    """Eight devices compute what one does, tables of the bias and their gradients included.

    They divide eight users; of two, every device computes both.
    """
    layout = LAYOUTS["request"]
    p = problem(layout, 10, True)
    by_user = ("q", "k", "v", "valid", "key_times", "query_times")
    p.update({name: np.concatenate([p[name]] * copies) for name in by_user})
    cotangent = np.random.default_rng(9).standard_normal(p["q"].shape).astype(np.float32)
    alone, wanted = with_gradients(layout, p, "pointwise", KERNELS, cotangent)
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        split, found = with_gradients(layout, p, "pointwise", KERNELS, cotangent)
    assert len(split.sharding.device_set) == 8
    np.testing.assert_allclose(split, alone, atol=1e-6)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5, err_msg=name)


def test_no_distance_of_times_reaches_a_bucket_without_a_lane():
    low, high = jnp.int32(-(2**31)), jnp.int32(2**31 - 1)
    assert int(time_bucket(low, high)) < 128 < TIME_BUCKETS + 1


# -- where there is no kernel -------------------------------------------------------------------


def inputs_of(layout, heads=2, width=8, users=2, dtype=jnp.float32, bias=True, parts=True):
    """Shapes of a call with every kind of bias."""
    count, cached = layout.length, layout.num_cached
    shape = functools.partial(jax.ShapeDtypeStruct, dtype=dtype)
    rows = shape((users, count, heads, width))
    table = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    times = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    tokens = max([*layout.cached, *(k for _, k in layout.segments)])
    items = layout.segments[0][0]
    relative = RelativeBias(
        layout,
        (items, tokens),
        table((max(n + k for n, k in layout.segments), heads)),
        table((layout.max_segments * tokens, heads)) if tokens else None,
        table((TIME_BUCKETS + 1, heads)),
        times((users, count)),
        times((users, cached + count)),
        table(((layout.max_segments + 1) * items + 1, heads)) if tokens and parts else None,
    )
    before = None
    if cached:
        kv = shape((users, cached, heads, width))
        before = attention.Cached(kv, kv, jax.ShapeDtypeStruct((users, cached), bool))
    valid = jax.ShapeDtypeStruct((users, count), bool)
    return attention.Inputs(rows, rows, rows, valid, before, relative if bias else None)


def test_without_a_kernel_blocked_is_used_and_a_line_says_so_once(capsys):
    accelerators.say_once.cache_clear()
    layout = LAYOUTS["stream"]
    p = problem(layout, 11, True)
    names = ("fused", "fused", "blocked")
    found = jax.jit(lambda p: [attend(layout, p, "softmax", name) for name in names])(p)
    np.testing.assert_array_equal(found[0], found[2])
    assert capsys.readouterr().out == (
        "model.attention=fused: blocked is used, kernels are for TPU and GPU, this is cpu\n"
    )


@pytest.mark.parametrize(
    ("layout", "changes", "reason"),
    [
        (SegmentLayout.semi_local(8, 3, 2), {}, "visible pairs do not lie in segments"),
        (LAYOUTS["stream"], {"dtype": jnp.float64}, "numbers are float64"),
        (SegmentLayout.full(40_000), {"width": 128}, "MiB of fast memory, 64 are there"),
    ],
)
def test_what_has_no_kernel(layout, changes, reason):
    with jax.enable_x64(True):
        inputs = inputs_of(layout, **changes)
        assert reason in fused.unfit(inputs, layout, Weighing("softmax"))


def test_other_weights_and_other_biases_have_no_kernel():
    layout = LAYOUTS["stream"]
    inputs = inputs_of(layout)
    softmax = Weighing("softmax")
    assert fused.unfit(inputs, layout, softmax) is None
    assert "weights" in fused.unfit(inputs, layout, lambda logits, masks: [])
    assert "object" in fused.unfit(inputs._replace(bias=object()), layout, softmax)


# -- what a kernel costs ------------------------------------------------------------------------


def operands_of(layout, kind="pointwise", **sizes):
    inputs = inputs_of(layout, **sizes)
    plan = fused.plan_of(inputs, layout, Weighing(kind))
    return plan, jax.eval_shape(functools.partial(arrays.operands, plan), inputs)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("layout", [LAYOUTS["uneven"], SegmentLayout.stream(140, 4, 3)])
def test_declared_cost_is_the_sum_over_the_grid(layout, backward):
    plan, x = operands_of(layout, heads=4, width=64, users=3)
    blocks, moving = [calls.operand_specs(plan, x), calls.specs(plan)["row"]], [x, x.q]
    if backward:
        shapes, of_gradients = calls.gradient_shapes(plan, x)
        blocks.append(of_gradients)
        moving.append(shapes)
    moved = flops = 0
    before = {}
    for program in itertools.product(range(plan.heads // plan.group), range(3)):
        pairs = zip(jax.tree.leaves(blocks), jax.tree.leaves(moving), strict=True)
        for number, (block, array) in enumerate(pairs):
            place = block.index_map(*program)
            if before.get(number) != place:  # a block that stays is not moved again
                moved += int(np.prod(block.block_shape)) * array.dtype.itemsize
            before[number] = place
        for run in plan.runs:
            for start in range(0, run.rows, CHUNK):
                stop = min(start + CHUNK, run.rows)
                keys = stop + plan.token_lanes
                products = 7 if backward else 2  # of which 2 are done again
                flops += run.count * products * 2 * (stop - start) * keys * plan.width
    declared = calls.cost(plan, x, backward=backward)
    assert declared.bytes_accessed == moved
    assert declared.flops == flops


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("items", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("width", [32, 64, 128])
def test_fast_memory_is_under_the_limit_of_the_chips(items, width, parts):
    plan, x = operands_of(SegmentLayout.stream(items, 8, 4), heads=8, width=width, parts=parts)
    need = {
        name: calls.fast_memory(plan, x, backward=name == "backward")
        for name in ("forward", "backward")
    }
    print(
        f"{items} items, head width {width}{', parts' if parts else ''}:",
        {k: f"{v / 2**20:.1f} MiB" for k, v in need.items()},
    )
    # the bias of parts has a number for each row, token and head, and narrow heads share a program
    too_large = parts and items == 1024 and width < 128
    assert (max(need.values()) > FAST_MEMORY) == too_large


def test_heads_share_lanes():
    assert Plan(LAYOUTS["full"], "softmax", 1.0, 8, 64).group == 2
    assert Plan(LAYOUTS["full"], "softmax", 1.0, 8, 128).group == 1
    assert Plan(LAYOUTS["full"], "softmax", 1.0, 3, 48).group == 3


@libtpu.needed
def test_the_compiler_of_tpus_takes_the_kernels():
    for names in json.loads(libtpu.run("tests.nn.fused_on_tpu").splitlines()[-1]):
        assert any("gradients" in name for name in names)
