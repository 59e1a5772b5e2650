"""The kernels for Hopper, interpreted, against masked attention: values and all gradients.

Pallas' interpreter models shared memory and what orders accesses to it: a read that no barrier or
fence orders against a write is an error, and so is one behind the end of an array. JAX has all of
it since 0.12; before, this module is not collected (`conftest`).
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxrec.layout import SegmentLayout
from jaxrec.nn import attention
from jaxrec.nn.attention import hopper
from tests.nn.kernel_parity import KERNELS, compare, hopper_problem
from tests.nn.test_attention import LAYOUTS, attend


@pytest.fixture(autouse=True, scope="module")
def kernels_everywhere():
    """A backend that interprets the kernels."""
    interpret = plgpu.InterpretGPUParams(detect_races=True)
    attention.BACKENDS[KERNELS] = functools.partial(hopper.attend, interpret=interpret)
    yield
    del attention.BACKENDS[KERNELS]


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
@pytest.mark.parametrize(
    ("name", "heads", "with_times"),
    [("stream", 1, True), ("request", 2, True), ("extension", 2, False)],
)
def test_layouts_equal_masked_attention(name, heads, with_times, kind):
    p = hopper_problem(LAYOUTS[name], 5, heads=heads, with_times=with_times)
    compare(LAYOUTS[name], p, kind, 2e-2)


sizes = st.tuples(st.integers(0, 9), st.integers(0, 3)).filter(any)


@settings(deadline=None, max_examples=3)
@given(
    segments=st.lists(sizes, min_size=1, max_size=3),
    cached=st.lists(st.integers(1, 2), max_size=2),
    max_segments=st.integers(1, 4),
    kind=st.sampled_from(["softmax", "pointwise"]),
    bias=st.sampled_from(["none", "positions", "times"]),
    seed=st.integers(0, 1000),
)
def test_any_layout_equals_masked_attention(segments, cached, max_segments, kind, bias, seed):
    layout = SegmentLayout(tuple(segments), tuple(cached), max_segments)
    has = {"with_bias": bias != "none", "with_times": bias == "times"}
    compare(layout, hopper_problem(layout, seed, heads=1, **has), kind, 2e-2)


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_segments_and_tokens_of_several_tiles(kind):
    layout = SegmentLayout(((66, 3), (70, 0)), cached=(40, 26), max_segments=4)
    compare(layout, hopper_problem(layout, 7, users=1, heads=1, width=96), kind, 2e-2)


def test_a_user_without_events_gets_zeros():
    layout = LAYOUTS["stream"]
    p = hopper_problem(layout, 8, heads=1)
    p["valid"] = np.zeros_like(p["valid"])
    p["valid"][1, -2] = True
    out = np.asarray(attend(layout, p, "softmax", KERNELS).astype(jnp.float32))
    assert not out[0].any()
    assert out[1, -2].any()


def test_tiles_without_events_are_not_computed():
    """Of 130 positions the first 5 exist: the two tiles behind theirs are zero."""
    layout = SegmentLayout(((130, 0),))
    p = hopper_problem(layout, 9, users=1, heads=1)
    p["valid"] = np.arange(130)[None] < 5
    compare(layout, p, "pointwise", 2e-2)
    out = np.asarray(attend(layout, p, "pointwise", KERNELS).astype(jnp.float32))
    assert out[0, :64].any()
    assert not out[0, 64:].any()
