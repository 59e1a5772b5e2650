"""The views of a layout: who sees whom, counted and by blocks; what queries may know."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.layout import SegmentLayout, structure
from tests.layout.strategies import every_kind, fast, layouts, raw_views, semi_local, streams
from tests.reference import layout as reference

STREAM = SegmentLayout.stream(3, 1, 2, 1)


@fast
@given(every_kind)
def test_pairs_are_counted_without_the_mask(layout):
    assert layout.visible.shape == (layout.length, layout.num_cached + layout.length)
    assert layout.pairs("visible") == layout.visible.sum()
    assert layout.pairs("dense") == layout.visible.size


@fast
@given(raw_views())
def test_a_raw_view_sees_items_too(layout):
    expected = reference.visible_raw(layout.segments, layout.max_segments)
    np.testing.assert_array_equal(layout.visible, expected)


@fast
@given(semi_local)
def test_a_band_is_a_window_and_a_prefix(layout):
    window, prefix = layout.view.window, layout.view.prefix
    expected = reference.visible_band(layout.length, window, prefix)
    np.testing.assert_array_equal(layout.visible, expected)


def test_pairs_of_a_raw_view():
    view = STREAM.raw_view()
    assert view.visible.sum() == view.pairs("visible") == 66
    assert STREAM.visible.sum() == STREAM.pairs("visible") == 36
    assert view != STREAM
    assert view.segments == STREAM.segments
    with pytest.raises(ValueError, match="a raw view has no blocks"):
        view.pairs("blocked")


def test_a_request_sees_its_cached_tokens():
    """And has no raw view: the items behind cached tokens are not in the sequence."""
    assert STREAM.request().visible.shape == (3, 5)
    refused = "items of cached segments are not there to be seen"
    for derived in (SegmentLayout.request, SegmentLayout.extension):
        with pytest.raises(ValueError, match=refused):
            derived(STREAM).raw_view()
        with pytest.raises(ValueError, match=refused):
            derived(STREAM.raw_view())


def test_a_raw_view_of_more_segments():
    assert STREAM.raw_view().with_segments(3) == STREAM.with_segments(3).raw_view()


def test_semi_local_attention_is_of_one_plain_segment():
    layout = SegmentLayout.semi_local(8, 3, 1)
    with pytest.raises(ValueError, match="one segment without tokens"):
        layout.with_segments(2)
    with pytest.raises(ValueError, match="lie in no band"):
        STREAM.band()


# -- blocks -----------------------------------------------------------------------------------


@fast
@given(layouts())
def test_runs_and_earlier_tokens_cover_what_is_visible(layout):
    covered = np.zeros_like(layout.visible)
    for run in layout.runs():
        keys, visible = layout.earlier_tokens(run)
        for segment, start in enumerate(run.starts):
            rows = slice(start, start + run.length)
            diagonal = slice(layout.num_cached + start, layout.num_cached + start + run.length)
            covered[rows, diagonal] |= np.tri(run.length, dtype=bool)
            assert not covered[rows][:, keys[visible[segment]]].any()  # no pair twice
            covered[rows, keys[visible[segment]]] = True
    np.testing.assert_array_equal(covered, layout.visible)


@pytest.mark.parametrize("chunk", [1, 4, 256])
@pytest.mark.parametrize(("window", "prefix"), [(3, 2), (1, 0), (20, 4), (5, 30)])
def test_band_rows_cover_what_is_visible(monkeypatch, chunk, window, prefix):
    monkeypatch.setattr(structure, "CHUNK", chunk)
    layout = SegmentLayout.semi_local(18, window, prefix)
    computed = np.zeros_like(layout.visible)
    for rows in layout.band():
        assert len(set(rows.keys)) == len(rows.keys)
        computed[rows.start : rows.stop, rows.keys] = True
    assert not (layout.visible & ~computed).any()
    assert layout.pairs("blocked") == computed.sum()


# -- what a query may know --------------------------------------------------------------------


def known(layout, slot):
    """Slots before `slot`, in its segment or one of the `max_segments` before it."""
    segment_of = [s for s, (items, _) in enumerate(layout.segments) for _ in range(items)]
    here = segment_of[slot] if slot < len(segment_of) else len(layout.segments) - 1
    return [
        other < slot and here - segment_of[other] <= layout.max_segments
        for other in range(layout.num_items)
    ]


@fast
@given(st.one_of(streams, layouts()), st.data())
def test_known_slots(layout, data):
    slots = data.draw(st.lists(st.integers(0, layout.num_items), min_size=1, max_size=6))
    expected = [known(layout, slot) for slot in slots]
    result = layout.known_slots(np.asarray(slots, np.int32))
    assert result.shape == (len(slots), layout.num_items)
    np.testing.assert_array_equal(result, np.asarray(expected, bool).reshape(result.shape))


def test_known_slots_of_traced_slots():
    layout = SegmentLayout.stream(2, 1, 1, num_segments=3)
    slots = np.arange(layout.num_items + 1)
    traced = jax.jit(functools.partial(SegmentLayout.known_slots, layout))(jnp.asarray(slots))
    np.testing.assert_array_equal(traced, layout.known_slots(slots))
    # a segment of two items and the one before it
    assert np.flatnonzero(traced[5]).tolist() == [2, 3, 4]
    assert np.flatnonzero(traced[4]).tolist() == [2, 3]
