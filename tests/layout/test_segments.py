"""`SegmentLayout` against a brute-force reading of the rule (docs/method.md)."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.config import LayoutConfig
from jaxrec.layout import SegmentLayout
from tests.layout.strategies import fast, insertions, layouts, streams
from tests.reference import layout as reference

# -- visibility -----------------------------------------------------------------------------


@fast
@given(layouts())
def test_visibility_is_the_rule(layout):
    expected = reference.visible(layout.segments, layout.cached, layout.max_segments)
    np.testing.assert_array_equal(layout.visible, expected)


@fast
@given(layouts())
def test_static_arrays_name_every_position(layout):
    where = reference.places(layout.segments)
    assert layout.length == len(where)
    assert layout.num_items == sum(not p.token for p in where)
    assert layout.num_tokens == sum(p.token for p in where)
    assert layout.segment_id.tolist() == [p.segment for p in where]
    assert layout.offset.tolist() == [p.offset for p in where]
    assert layout.is_token.tolist() == [p.token for p in where]
    assert layout.token_index.tolist() == [p.index if p.token else 0 for p in where]
    assert layout.item_positions.tolist() == [i for i, p in enumerate(where) if not p.token]
    assert layout.token_positions.tolist() == [i for i, p in enumerate(where) if p.token]
    keys = reference.keys(layout.segments, layout.cached)
    assert layout.key_segment.tolist() == [p.segment for p in keys]
    assert layout.key_is_token.tolist() == [p.token for p in keys]
    assert layout.key_token_index.tolist() == [p.index if p.token else 0 for p in keys]
    behind_cache = keys[layout.num_cached :]
    assert layout.key_offset[layout.num_cached :].tolist() == [p.offset for p in behind_cache]


@fast
@given(layouts())
def test_item_segment_starts(layout):
    items = [p.segment for p in reference.places(layout.segments) if not p.token]
    starts = [sum(s < segment for s in items) for segment in range(len(layout.segments) + 1)]
    assert layout.item_segment_starts.tolist() == starts


def test_full_history_is_plain_causal_attention():
    layout = SegmentLayout.full(5)
    np.testing.assert_array_equal(layout.visible, np.tri(5, dtype=bool))
    assert layout.num_tokens == 0
    assert layout.segments == ((5, 0),)


def test_picture_of_two_segments():
    """Written by hand: items a b, token s, items c d, token t, recent item e."""
    rows = [
        "a......",
        "ab.....",
        "abs....",
        "..sc...",
        "..scd..",
        "..scdt.",
        "..s..te",
    ]
    layout = SegmentLayout.stream(2, 1, 2, recent_min=0)
    assert layout.segments == ((2, 1), (2, 1), (1, 0))
    expected = [[letter != "." for letter in row] for row in rows]
    np.testing.assert_array_equal(layout.visible, np.asarray(expected))


# -- parts of one rule ------------------------------------------------------------------------


@fast
@given(streams)
def test_extension_sees_what_the_masked_forward_sees(layout):
    """A segment behind a cache sees the tokens it would see in the long sequence."""
    s = layout.max_segments
    whole = layout.with_segments(s + 2)
    n, k = whole.segments[0]
    extension = layout.extension()
    rows = np.flatnonzero(whole.segment_id == s)
    tokens = [p for p in whole.token_positions if whole.segment_id[p] < s]
    columns = np.concatenate([tokens, rows]).astype(int)
    np.testing.assert_array_equal(extension.visible, whole.visible[np.ix_(rows, columns)])
    hidden = np.delete(whole.visible[rows], columns, axis=1)
    assert not hidden.any()
    assert extension.segments == ((n, k),)
    assert extension.normalizer == layout.normalizer


@fast
@given(streams)
def test_request_sees_what_the_masked_forward_sees(layout):
    s = layout.max_segments
    whole = layout.with_segments(s + 1)  # one segment more than the state holds
    request = layout.request()
    rows = np.flatnonzero(whole.segment_id == s + 1)
    tokens = [p for p in whole.token_positions if whole.segment_id[p] >= 1]
    columns = np.concatenate([tokens, rows]).astype(int)
    np.testing.assert_array_equal(request.visible, whole.visible[np.ix_(rows, columns)])
    assert not np.delete(whole.visible[rows], columns, axis=1).any()
    assert request.normalizer == layout.normalizer


@fast
@given(streams)
def test_more_segments_do_not_change_the_rule_nor_the_normalizer(layout):
    longer = layout.with_segments(7)
    expected = reference.visible(longer.segments, (), layout.max_segments)
    np.testing.assert_array_equal(longer.visible, expected)
    assert longer.normalizer == layout.normalizer
    assert longer.num_positions == layout.num_positions


def test_stream_sizes():
    layout = SegmentLayout.stream(100, 4, 4, recent_min=1)
    assert layout.segments == ((100, 4),) * 4 + ((100, 0),)
    assert layout.length == 4 * 104 + 100
    assert layout.normalizer == layout.length
    assert layout.num_items == 500
    assert SegmentLayout.stream(100, 4, 4, num_segments=9).normalizer == layout.normalizer
    assert SegmentLayout.stream(100, 4, 4, recent_min=10).segments[-1] == (109, 0)


# -- a user's data ------------------------------------------------------------------------------


@fast
@given(streams, st.integers(0, 40))
def test_right_aligned_segments_and_recent_window(layout, count):
    """Lengths of a real history: the cut into segments gives exactly the positions that exist."""
    n, recent = layout.segments[0][0], layout.segments[-1][0]
    slots = layout.num_segments - 1
    done, pending = reference.cut(count, n, recent - n + 1)
    assert pending <= recent
    have = min(done, slots)
    lengths = np.asarray([[0] * (slots - have) + [n] * have + [pending]])
    valid = layout.valid(lengths)
    assert valid.shape == (1, layout.length)
    assert valid[0].tolist() == reference.valid(layout.segments, lengths[0])
    assert valid[0, layout.item_positions].sum() == have * n + pending
    assert valid[0, layout.token_positions].sum() == have * layout.segments[0][1]


@fast
@given(layouts(), st.data())
def test_validity_of_any_lengths(layout, data):
    lengths = np.asarray(
        [[data.draw(st.integers(0, n)) for n, _ in layout.segments] for _ in range(3)]
    )
    expected = [reference.valid(layout.segments, row) for row in lengths]
    np.testing.assert_array_equal(layout.valid(lengths), np.asarray(expected, bool))


@fast
@given(insertions(), st.data())
def test_fixed_layout_is_left_padded_and_its_tokens_always_exist(case, data):
    length, method = case
    layout = SegmentLayout.insertions(length, method)
    have = data.draw(st.integers(0, length))
    mask = np.arange(length) >= length - have
    starts = layout.item_segment_starts
    lengths = np.asarray([[mask[a:b].sum() for a, b in itertools.pairwise(starts)]])
    valid = layout.valid(lengths)[0]
    np.testing.assert_array_equal(valid[layout.item_positions], mask)
    assert valid[layout.token_positions].all()
    assert valid.tolist() == reference.valid(layout.segments, lengths[0], fixed=True)


# -- positions --------------------------------------------------------------------------------


@fast
@given(layouts())
def test_segment_positions_are_offsets(layout):
    ids = layout.position_ids(np.ones((1, layout.num_segments), int))
    where = reference.places(layout.segments)
    assert ids.tolist() == [0 if p.token else p.offset for p in where]
    assert ids.max(initial=0) < max(layout.num_positions, 1)


@fast
@given(
    n=st.integers(1, 4),
    k=st.integers(1, 3),
    s=st.integers(1, 4),
    recent_min=st.integers(0, 3),
    count=st.integers(0, 40),
    slots=st.integers(1, 5),
)
def test_absolute_positions_of_a_growing_history(n, k, s, recent_min, count, slots):
    """Complete segment o of a history always stands in block o mod S, wherever it is computed."""
    if recent_min + n - 1 < 1:
        recent_min = 1
    layout = SegmentLayout.stream(n, k, s, recent_min, "absolute").with_segments(slots)
    done, pending = reference.cut(count, n, recent_min)
    have = min(done, slots)
    lengths = np.asarray([[0] * (slots - have) + [n] * have + [pending]] * 2)
    first = np.asarray([done - have, done - have])
    ids = layout.position_ids(lengths, first)
    scalar = layout.position_ids(lengths, done - have)
    np.testing.assert_array_equal(ids, scalar)
    for position, place in enumerate(reference.places(layout.segments)):
        if place.segment == slots:
            expected = s * (n + k) + place.offset
        else:
            ordinal = done - slots + place.segment
            if ordinal < 0:
                continue  # a segment that the user does not have
            expected = (ordinal % s) * (n + k) + place.offset
        assert ids[0, position] == ids[1, position] == expected
    assert ids.max() < layout.num_positions
    assert ids.min() >= 0


def test_absolute_positions_of_a_history_that_fits_are_its_indices():
    layout = SegmentLayout.stream(3, 2, 2, 1, "absolute")
    ids = layout.position_ids(np.asarray([[3, 3, 2]]))
    assert ids[0].tolist() == list(range(layout.length))


def test_extension_and_request_share_absolute_positions():
    layout = SegmentLayout.stream(3, 2, 2, 1, "absolute")
    ids = layout.extension().position_ids(np.asarray([[3], [3]]), np.asarray([1, 2]))
    assert ids.tolist() == [[5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]
    ids = layout.request().position_ids(np.asarray([[2], [3]]), np.asarray([0, 5]))
    assert ids.tolist() == [[10, 11, 12]] * 2


# -- targets ----------------------------------------------------------------------------------


@fast
@given(layouts())
def test_every_item_and_last_token_predicts_the_next_item_event(layout):
    pairs = list(zip(layout.predictors.tolist(), layout.target_slots.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    assert set(pairs) == reference.predictions(layout.segments)
    for position, slot in pairs:
        if slot < layout.num_items:  # the target stands behind its predictor: no leak
            assert layout.item_positions[slot] > position


def test_the_two_slips_of_the_reference():
    """The last item of a segment predicts an item, and the first recent item is predicted."""
    layout = SegmentLayout.stream(2, 1, 1, recent_min=1)  # a b [s] c d
    pairs = set(zip(layout.predictors.tolist(), layout.target_slots.tolist(), strict=True))
    assert pairs == {(0, 1), (1, 2), (2, 2), (3, 3), (4, 4)}


# -- cost -------------------------------------------------------------------------------------


@fast
@given(layouts())
def test_pair_counts(layout):
    rule = reference.visible(layout.segments, layout.cached, layout.max_segments)
    assert layout.pairs("visible") == rule.sum()
    assert layout.pairs("dense") == rule.size
    segment = np.asarray([p.segment for p in reference.places(layout.segments)])
    blocks = 0
    for run in layout.runs():
        rows = (segment >= run.first) & (segment < run.first + run.count)
        seen = [p for p in range(layout.length) if layout.is_token[p]]
        before = [p for p in seen if segment[p] < run.first + run.count - 1]
        blocks += rows.sum() * (run.length + len(before) + layout.num_cached)
    assert layout.pairs("blocked") == blocks
    assert layout.pairs("visible") <= layout.pairs("blocked")


def test_pair_count_of_a_stream_is_the_formula():
    """S(n+k)^2 + S(n+k)(S-1)k, and the recent window against all S k tokens."""
    n, k, s, r = 100, 4, 5, 100
    layout = SegmentLayout.stream(n, k, s)
    expected = s * (n + k) ** 2 + s * (n + k) * (s - 1) * k + r * (r + s * k)
    assert layout.pairs("blocked") == expected
    assert layout.request().pairs("blocked") == r * (r + s * k)


@fast
@given(layouts())
def test_runs_cover_every_position_once(layout):
    covered = []
    for run in layout.runs():
        assert run.count >= 1
        assert layout.segments[run.first : run.first + run.count] == (
            ((run.items, run.tokens),) * run.count
        )
        covered += range(run.start, run.stop)
    assert covered == list(range(layout.length))


# -- values -----------------------------------------------------------------------------------


@fast
@given(layouts())
def test_layouts_are_values(layout):
    copy = SegmentLayout(**{f.name: getattr(layout, f.name) for f in dataclasses.fields(layout)})
    assert copy == layout
    assert hash(copy) == hash(layout)
    assert dataclasses.replace(layout, normalizer=layout.normalizer + 1) != layout
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.ring = 3


def test_lists_become_tuples():
    assert hash(SegmentLayout([[2, 1], [3, 0]])) == hash(SegmentLayout(((2, 1), (3, 0))))


@pytest.mark.parametrize(
    ("segments", "message"),
    [((), "empty"), (((3, -1), (2, 0)), "negative"), (((0, 0), (2, 0)), "empty segment")],
)
def test_impossible_segments_are_refused(segments, message):
    with pytest.raises(ValueError, match=message):
        SegmentLayout(segments)


# -- from a configuration ----------------------------------------------------------------------


def test_modes_of_a_configuration():
    config = LayoutConfig(segment_size=4, tokens=2, max_segments=3, recent_min=2)
    assert SegmentLayout.from_config(config) == SegmentLayout.stream(4, 2, 3, recent_min=2)
    full = dataclasses.replace(config, mode="full")
    assert SegmentLayout.from_config(full) == SegmentLayout.full(17)
    assert SegmentLayout.from_config(dataclasses.replace(full, mode="recent")).num_items == 5
    local = dataclasses.replace(full, window=5, prefix=6)
    assert SegmentLayout.from_config(local) == SegmentLayout.semi_local(17, 5, 6)
    with pytest.raises(ValueError, match=r"layout\.mode='other'"):
        SegmentLayout.from_config(dataclasses.replace(config, mode="other"))
