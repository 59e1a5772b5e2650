"""`SegmentLayout.shortened`: the layout of batches whose rows hold less."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.layout import SegmentLayout
from tests.layout.strategies import fast, streams


@fast
@given(streams, st.data())
def test_a_shorter_stream_is_the_end_of_the_longer_one(layout, data):
    n, recent = layout.segments[0][0], layout.segments[-1][0]
    count = data.draw(st.integers(0, layout.num_segments - 1))
    left = data.draw(st.integers(1, recent))
    short = layout.shortened(count * n + left, count + 1)
    first = layout.num_segments - 1 - count
    assert short.segments == (*layout.segments[first:-1], (left, 0))
    assert short.normalizer == layout.normalizer
    assert short.max_segments == layout.max_segments
    stop = layout.length - (recent - left)
    part = slice(stop - short.length, stop)
    np.testing.assert_array_equal(short.visible, layout.visible[part, part])
    # a user without the oldest segments is at the same positions in both
    lengths = np.zeros((1, layout.num_segments), np.int64)
    lengths[0, first:] = [size for size, _ in short.segments]
    rows = [
        np.broadcast_to(form.position_ids(values), (1, form.length))[0]
        for form, values in ((layout, lengths), (short, lengths[:, -1 - count :]))
    ]
    if layout.positions == "segment" or layout.num_segments - 1 <= layout.max_segments:
        np.testing.assert_array_equal(rows[0][part], rows[1])


def test_a_shorter_plain_segment_is_the_beginning_of_the_longer_one():
    for layout in (SegmentLayout.full(9, "absolute"), SegmentLayout.semi_local(9, 3, 1)):
        short = layout.shortened(4, 1)
        assert short.segments == ((4, 0),)
        assert (short.normalizer, short.view) == (9, layout.view)
        np.testing.assert_array_equal(short.visible, layout.visible[:4, :4])
        assert layout.shortened(9, 1) is layout


@pytest.mark.parametrize(
    ("layout", "slots", "segments"),
    [
        (SegmentLayout.stream(3, 2, 2), 10, 3),  # longer
        (SegmentLayout.stream(3, 2, 2), 11, 4),  # more segments
        (SegmentLayout.stream(3, 2, 2), 4, 1),  # more than the recent window
        (SegmentLayout.stream(3, 2, 2), 3, 2),  # no recent window
        (SegmentLayout.stream(3, 2, 2), 3, 0),
        (SegmentLayout.stream(3, 2, 2).request(), 2, 1),
        (SegmentLayout.full(5), 6, 1),
        (SegmentLayout.full(5), 0, 1),
        (SegmentLayout.full(5), 4, 2),
        (SegmentLayout.insertions(6, [(3, 1)]), 3, 1),
    ],
)
def test_batches_without_a_layout_are_refused(layout, slots, segments):
    message = f"a batch of {slots} item slots in {segments} segments has no layout"
    with pytest.raises(ValueError, match=message):
        layout.shortened(slots, segments)
