"""Views: which position sees which. A view is a small value that decides for any positions.

Attention is causal; of the positions before it, a position sees

- `TokensOnly`: its own segment, and the tokens of the `max_segments` segments before;
- `RawItems`: its own segment, and everything of the `max_segments` segments before;
- `SemiLocal`: the newest `window` positions and the first `prefix` positions.

`structure` names the blocks in which the visible pairs lie, by which attention chooses how to
compute them: `segments` (causal blocks and rectangles of tokens), `band`, or `none`.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from jaxrec.layout.structure import BandRows, row_chunks
from jaxrec.types import Array

Structure = Literal["segments", "band", "none"]
Segments = Sequence[tuple[int, int]]  # (items, tokens) of each, oldest first


class Places(NamedTuple):
    """Positions of queries or keys: integer and bool arrays that broadcast (NumPy or JAX).

    order: index in the sequence, below 0 for cached tokens.
    segment: index of the segment, below 0 for cached ones.
    is_token: whether it is a compressed token.
    """

    order: Array
    segment: Array
    is_token: Array


class View(Protocol):
    """A visibility rule."""

    structure: ClassVar[Structure]

    def check(self, segments: Segments, cached: Sequence[int]) -> None:
        """Raises ValueError for segments that the rule does not allow."""
        ...

    def sees(self, query: Places, key: Places, max_segments: int) -> Array:
        """Bool array of the broadcast shape; which positions a user has is not considered."""
        ...

    def pairs(self, segments: Segments, cached: Sequence[int], max_segments: int) -> int:
        """Visible pairs of a whole layout, counted without a mask."""
        ...


@dataclasses.dataclass(frozen=True)
class TokensOnly:
    """Earlier segments are seen through their tokens: compression (arXiv 2601.03479 §3)."""

    structure: ClassVar[Structure] = "segments"

    def check(self, segments: Segments, cached: Sequence[int]) -> None:
        """Allows any segments."""

    def sees(self, query: Places, key: Places, max_segments: int) -> Array:
        """Causal; in the query's segment, or a token of the `max_segments` segments before."""
        age = query.segment - key.segment
        earlier_token = key.is_token & (age > 0) & (age <= max_segments)
        return (key.order <= query.order) & ((age == 0) | earlier_token)

    def pairs(self, segments: Segments, cached: Sequence[int], max_segments: int) -> int:
        """Visible pairs."""
        kept = (*cached, *(tokens for _, tokens in segments))
        return _segment_pairs(segments, kept, max_segments)


TOKENS_ONLY = TokensOnly()


@dataclasses.dataclass(frozen=True)
class RawItems:
    """Earlier segments are seen as they are, items included.

    Its predictions are those of the same parameters if nothing were compressed:
    `loss.consistency` compares with them.
    """

    structure: ClassVar[Structure] = "none"

    def check(self, segments: Segments, cached: Sequence[int]) -> None:
        """Raises ValueError for cached segments: their items are not in the sequence."""
        if cached:
            raise ValueError(
                f"layout.cached={tuple(cached)}: a raw view cannot have cached segments, the items "
                "of cached segments are not there to be seen"
            )

    def sees(self, query: Places, key: Places, max_segments: int) -> Array:
        """Causal; in the query's segment or one of the `max_segments` segments before."""
        age = query.segment - key.segment
        return (key.order <= query.order) & (age <= max_segments)

    def pairs(self, segments: Segments, cached: Sequence[int], max_segments: int) -> int:
        """Visible pairs."""
        del cached
        return _segment_pairs(segments, [n + k for n, k in segments], max_segments)


@dataclasses.dataclass(frozen=True)
class SemiLocal:
    """Semi-local attention, a baseline: a sliding window and the first positions of the history.

    Position i sees j <= i when i - j < window or j < prefix (the semi-local attention of the
    HSTU line of work). Work grows with N (window + prefix), but every request reads the raw
    history.
    """

    window: int
    prefix: int
    structure: ClassVar[Structure] = "band"

    def __post_init__(self) -> None:
        if self.window < 1 or self.prefix < 0:
            raise ValueError(
                f"window {self.window}, prefix {self.prefix}: at least 1 and 0 are needed"
            )

    def check(self, segments: Segments, cached: Sequence[int]) -> None:
        """Raises ValueError unless there is a single segment without tokens."""
        if cached or len(segments) > 1 or segments[0][1]:
            raise ValueError(
                f"semi-local attention needs one segment without tokens, got segments "
                f"{tuple(segments)} and cached tokens {tuple(cached)}"
            )

    def sees(self, query: Places, key: Places, max_segments: int) -> Array:
        """Causal; in the window or in the prefix."""
        del max_segments
        gap = query.order - key.order
        return (gap >= 0) & ((gap < self.window) | (key.order < self.prefix))

    def pairs(self, segments: Segments, cached: Sequence[int], max_segments: int) -> int:
        """Visible pairs."""
        del cached, max_segments
        seen_before = np.arange(1, segments[0][0] + 1)  # of each row, itself included
        near = np.minimum(seen_before, self.window)
        return int((near + np.minimum(seen_before - near, self.prefix)).sum())

    def rows(self, length: int) -> Iterator[BandRows]:
        """The band of `length` positions, a chunk of query rows at a time."""
        for start, stop in row_chunks(length):
            first = max(start - self.window + 1, 0)
            yield BandRows(start, stop, first, min(self.prefix, first))


def _segment_pairs(segments: Segments, kept: Sequence[int], max_segments: int) -> int:
    """Pairs of causal segments that also see `kept` positions of each earlier segment.

    kept: one number per cached segment, then one per segment.
    """
    total = 0
    for index, (items, tokens) in enumerate(segments, len(kept) - len(segments)):
        length = items + tokens
        earlier = sum(kept[max(index - max_segments, 0) : index])
        total += length * (length + 1) // 2 + length * earlier
    return total
