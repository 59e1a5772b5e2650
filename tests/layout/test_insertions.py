"""The layout of the reference: `SegmentLayout.insertions`, tokens at chosen offsets."""

import numpy as np
import pytest
from hypothesis import given

from jaxrec.layout import SegmentLayout
from tests.layout.strategies import fast, insertions


def inserted(length, method):
    """(kind, number) of every position: items of the history with tokens put between them."""
    row, token, done = [], 0, 0
    for offset, k in method:
        row += [("item", i) for i in range(done, offset)]
        row += [("token", token + i) for i in range(k)]
        done, token = offset, token + k
    return row + [("item", i) for i in range(done, length)]


@fast
@given(insertions())
def test_insertions_put_tokens_at_their_offsets(case):
    length, method = case
    layout = SegmentLayout.insertions(length, method)
    row = inserted(length, method)
    assert layout.length == len(row)
    assert layout.is_token.tolist() == [kind == "token" for kind, _ in row]
    assert layout.fixed
    assert layout.num_positions == layout.length
    assert layout.position_ids(np.ones((2, layout.num_segments), int)).tolist() == list(
        range(len(row))
    )
    assert layout.normalizer == len(row)


@fast
@given(insertions())
def test_insertions_hide_items_before_the_last_cut(case):
    """Causal; an item is hidden from everything at or behind the next segment's start."""
    length, method = case
    layout = SegmentLayout.insertions(length, method)
    row = inserted(length, method)
    # a segment is what stands before the end of one insertion
    ends, done = [], 0
    for index, (offset, _) in enumerate(method):
        done = offset + sum(k for _, k in method[: index + 1])
        ends.append(done)

    def cuts(position):
        return sum(end <= position for end in ends)

    for i in range(len(row)):
        for j in range(len(row)):
            expected = j <= i and (row[j][0] == "token" or cuts(i) == cuts(j))
            assert layout.visible[i, j] == expected, (i, j)


@pytest.mark.parametrize("method", [[(5, 1), (3, 1)], [(9, 1)], [(-1, 1)]])
def test_impossible_insertions_are_refused(method):
    with pytest.raises(ValueError, match="insert_method offset"):
        SegmentLayout.insertions(8, method)
