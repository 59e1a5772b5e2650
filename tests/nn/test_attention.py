"""Attention backends against NumPy that visits one visible pair at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.layout import SegmentLayout, structure
from jaxrec.nn import attention
from jaxrec.nn.bias import TIME_BUCKETS, RelativeBias
from tests.reference import attention as reference
from tests.reference import layout as places

HEADS, WIDTH, USERS = 2, 3, 2
LAYOUTS = {
    "full": SegmentLayout.full(6),
    "stream": SegmentLayout.stream(3, 2, 3, recent_min=2),
    "overflow": SegmentLayout.stream(2, 1, 2, num_segments=5),
    "extension": SegmentLayout.stream(3, 2, 2).extension(),
    "request": SegmentLayout.stream(3, 2, 2).request(),
    "uneven": SegmentLayout(((2, 1), (3, 2), (3, 2), (0, 1), (2, 0), (4, 0)), cached=(2, 1)),
    "reference": SegmentLayout.insertions(7, [(0, 2), (3, 1), (7, 2)]),
}


def problem(layout, seed, with_bias, *, users=USERS, heads=HEADS, width=WIDTH):
    """Random arrays for a layout; cached tokens where it has them."""
    rng = np.random.default_rng(seed)
    length, cached = layout.length, layout.num_cached

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    p = {
        "q": normal(users, length, heads, width),
        "k": normal(users, cached + length, heads, width),
        "v": normal(users, cached + length, heads, width),
        "valid": rng.random((users, cached + length)) < 0.8,
    }
    if with_bias:
        tokens = max([*layout.cached, *(k for _, k in layout.segments)])
        p["distance"] = normal(max(n + k for n, k in layout.segments), heads)
        if tokens and layout.positions == "segment":
            p["age"] = normal(layout.max_segments * tokens, heads)
            # shorter than the layout is: what is farther counts as the last row
            rows = 1 + (layout.max_segments + 1) * layout.segments[0][0] // 2
            p["parts"] = normal(rows, heads)
        p["time"] = normal(TIME_BUCKETS + 1, heads)
        p["key_times"] = np.sort(rng.integers(0, 10**9, (users, cached + length))).astype(np.int32)
        p["query_times"] = p["key_times"][:, cached:] + rng.integers(0, 1000, (users, length))
    return p


def bias_of(layout, p):
    if "distance" not in p:
        return None
    tokens = max([*layout.cached, *(k for _, k in layout.segments)])
    return RelativeBias(
        layout,
        (layout.segments[0][0], tokens),
        p["distance"],
        p.get("age"),
        p.get("time"),
        p["query_times"],
        p["key_times"],
        p.get("parts"),
    )


def attend(layout, p, kind, backend):
    cached = layout.num_cached
    before = None
    if cached:
        before = attention.Cached(p["k"][:, :cached], p["v"][:, :cached], p["valid"][:, :cached])
    return attention.attend(
        p["q"],
        p["k"][:, cached:],
        p["v"][:, cached:],
        layout,
        p["valid"][:, cached:],
        kind=kind,
        scale=0.7,
        normalizer=5.0,
        bias=bias_of(layout, p),
        cached=before,
        backend=backend,
    )


@functools.partial(jax.jit, static_argnums=(0, 2))
def by_both_backends(layout, p, kind):
    return [attend(layout, p, kind, backend) for backend in ("dense", "blocked")]


def expected(layout, p, kind):
    bias = None
    if "time" in p:
        where = places.places(layout.segments)
        keys = places.keys(layout.segments, layout.cached)
        tokens = max([*layout.cached, *(k for _, k in layout.segments)])
        names = ("distance", "age", "parts", "time", "query_times", "key_times")
        sizes = {"items": layout.segments[0][0], "tokens": tokens}
        bias = reference.bias(where, keys, **sizes, **{n: p[n] for n in names if n in p})
    visible = places.visible(layout.segments, layout.cached, layout.max_segments)
    return reference.attend(
        p["q"], p["k"], p["v"], visible, p["valid"], kind=kind, scale=0.7, normalizer=5.0, bias=bias
    )


def check(layout, kind, with_bias, seed=0):
    p = problem(layout, seed, with_bias)
    truth = expected(layout, p, kind)
    # rows of positions that do not exist are finite and meaningless
    exists = p["valid"][:, layout.num_cached :]
    for result in by_both_backends(layout, p, kind):
        assert np.isfinite(result).all()
        np.testing.assert_allclose(np.asarray(result)[exists], truth[exists], atol=3e-6)


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_backends_equal_the_equations(name, kind):
    check(LAYOUTS[name], kind, True)


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_attention_without_bias(kind):
    check(LAYOUTS["stream"], kind, False)


sizes = st.tuples(st.integers(0, 3), st.integers(0, 2)).filter(any)


@settings(deadline=None, max_examples=4)
@given(
    segments=st.lists(sizes, min_size=1, max_size=5),
    cached=st.lists(st.integers(1, 2), max_size=2),
    max_segments=st.integers(1, 4),
    kind=st.sampled_from(["softmax", "pointwise"]),
    seed=st.integers(0, 1000),
)
def test_any_layout_equals_the_equations(segments, cached, max_segments, kind, seed):
    layout = SegmentLayout(tuple(segments), tuple(cached), max_segments)
    check(layout, kind, True, seed)


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_long_segments_are_cut_into_rows(kind, monkeypatch):
    """Chunks of query rows change nothing, whether or not they divide the segment."""
    monkeypatch.setattr(structure, "CHUNK", 2)
    layout = SegmentLayout(((5, 2), (5, 2), (4, 0)), cached=(2,))
    p = problem(layout, 3, True)
    exists = p["valid"][:, layout.num_cached :]
    result = jax.jit(lambda p: attend(layout, p, kind, "blocked"))(p)
    np.testing.assert_allclose(
        np.asarray(result)[exists], expected(layout, p, kind)[exists], atol=3e-6
    )


@pytest.mark.parametrize("kind", ["softmax", "pointwise"])
def test_gradients_of_the_backends_agree(kind):
    """Every input's gradient, tables of the bias included; hidden keys get none."""
    layout = LAYOUTS["uneven"]
    p = problem(layout, 4, True)
    exists = p["valid"][:, layout.num_cached :, None, None]
    weight = np.random.default_rng(5).standard_normal(p["q"].shape).astype(np.float32)
    floats = {k: v for k, v in p.items() if v.dtype == np.float32}
    rest = {k: v for k, v in p.items() if k not in floats}

    @jax.jit
    def gradients(floats):
        def total(floats, backend):
            y = attend(layout, {**floats, **rest}, kind, backend)
            return jnp.sum(jnp.where(exists, y * weight, 0))

        return [jax.grad(total)(floats, backend) for backend in ("dense", "blocked")]

    dense, blocked = gradients(floats)
    for name in floats:
        np.testing.assert_allclose(blocked[name], dense[name], atol=2e-5, err_msg=name)
        assert np.abs(dense[name]).max() > 0, name
    assert not np.asarray(dense["k"])[~p["valid"]].any()


def test_hidden_positions_change_nothing():
    """Exact: what is invalid or of an older segment never enters."""
    layout = LAYOUTS["overflow"]
    p = problem(layout, 6, True)
    last = layout.segment_id == layout.num_segments - 1
    seen = layout.visible[last].any(0)
    changed = {**p, "k": p["k"].copy(), "v": p["v"].copy()}
    for name in ("k", "v"):
        changed[name][:, ~seen] += 100
        changed[name][~p["valid"]] += 100
    for kind in ("softmax", "pointwise"):
        for a, b in zip(
            by_both_backends(layout, p, kind), by_both_backends(layout, changed, kind), strict=True
        ):
            np.testing.assert_array_equal(a[:, last], b[:, last])


def test_unknown_backend():
    p = problem(LAYOUTS["full"], 0, False)
    with pytest.raises(ValueError, match="attention backend 'flash': known are dense, blocked"):
        attend(LAYOUTS["full"], p, "softmax", "flash")


def test_a_cache_of_another_size():
    layout = LAYOUTS["request"]
    p = problem(layout, 0, False)
    behind_cache = slice(layout.num_cached, None)
    with pytest.raises(ValueError, match="layout expects 4 cached tokens, got 0"):
        attention.attend(
            p["q"],
            p["k"][:, behind_cache],
            p["v"][:, behind_cache],
            layout,
            p["valid"][:, behind_cache],
            kind="softmax",
        )


@pytest.mark.parametrize("backend", ["dense", "blocked"])
def test_gradients_of_logits_cancel_in_bfloat16(backend):
    """Softmax depends on differences of logits, so their gradients add up to zero."""
    layout = SegmentLayout(((2, 0),))
    p = problem(layout, 0, True)
    p["valid"][:] = True
    p = {name: jnp.asarray(x, jnp.bfloat16 if name in "qkv" else None) for name, x in p.items()}

    def total(distance):
        out = attend(layout, {**p, "distance": distance}, "softmax", backend)
        return jnp.sum(out.astype(jnp.float32) * np.arange(1, 1 + out.size).reshape(out.shape))

    gradient = np.asarray(jax.jit(jax.grad(total))(p["distance"]))
    assert np.abs(gradient).max() > 0
    assert np.abs(gradient.sum(0)).max() <= 1e-4 * np.abs(gradient).max()
