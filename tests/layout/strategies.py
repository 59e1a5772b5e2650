"""Random layouts of every kind."""

from hypothesis import settings
from hypothesis import strategies as st

from jaxrec.layout import SegmentLayout

sizes = st.tuples(st.integers(0, 4), st.integers(0, 3)).filter(any)
streams = st.builds(
    SegmentLayout.stream,
    segment_size=st.integers(1, 5),
    tokens=st.integers(1, 3),
    max_segments=st.integers(1, 4),
    recent_min=st.integers(1, 4),
    positions=st.sampled_from(["segment", "absolute"]),
    num_segments=st.one_of(st.none(), st.integers(1, 6)),
)
fast = settings(deadline=None, max_examples=60)


@st.composite
def layouts(draw):
    """Any layout: arbitrary segments, arbitrary cached segments, any age limit."""
    segments = tuple(draw(st.lists(sizes, min_size=1, max_size=5)))
    cached = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    return SegmentLayout(segments, cached, max_segments=draw(st.integers(0, 4)))


@st.composite
def insertions(draw):
    """(history length, insert_method) of the reference, odd ones included."""
    length = draw(st.integers(1, 12))
    offsets = sorted(draw(st.lists(st.integers(0, length), max_size=4)))
    return length, [(offset, draw(st.integers(0, 3))) for offset in offsets]


@st.composite
def raw_views(draw):
    """A raw view of any layout without cached segments."""
    segments = tuple(draw(st.lists(sizes, min_size=1, max_size=5)))
    return SegmentLayout(segments, max_segments=draw(st.integers(0, 4))).raw_view()


semi_local = st.builds(
    SegmentLayout.semi_local,
    length=st.integers(1, 20),
    window=st.integers(1, 24),
    prefix=st.integers(0, 24),
)
every_kind = st.one_of(
    layouts(),
    streams,
    streams.map(SegmentLayout.extension),
    streams.map(SegmentLayout.request),
    st.builds(SegmentLayout.full, st.integers(1, 20)),
    insertions().map(lambda case: SegmentLayout.insertions(*case)),
    raw_views(),
    semi_local,
)
