"""`SegmentLayout`: the positions of one forward pass.

A sequence is a run of segments, oldest first; segment s holds `items` item positions followed
by `tokens` token positions. The last segment of a stream is the recent window: items without
tokens. "Full history" is one segment without tokens.

Dimension letters: B users, T positions, E item slots (T minus tokens), S segments, C tokens.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal, cast

import numpy as np

from jaxrec.config import LayoutConfig
from jaxrec.layout.geometry import Geometry
from jaxrec.layout.structure import BandRows, EarlierTokens, Run
from jaxrec.layout.visibility import TOKENS_ONLY, Places, RawItems, SemiLocal, View
from jaxrec.types import Array

Positions = Literal["segment", "absolute"]
PairCount = Literal["visible", "blocked", "dense"]


@dataclasses.dataclass(frozen=True)
class SegmentLayout(Geometry):
    """Positions of one forward pass.

    segments: (items, tokens) of every segment, oldest first.
    cached: tokens of each earlier segment whose K/V come from a user state, oldest first.
    max_segments: the tokens of how many earlier segments a position sees; 0: of all.
    positions: `segment` (offset inside the segment) or `absolute` (index in the whole layout).
    ring: `absolute` only: table rows of one segment; segment number o uses block
        o mod max_segments, the recent window the block behind the last. 0: plain index.
    normalizer: constant divisor of pointwise attention; the same for every layout derived
        from one model, so that cached and full computations agree.
    fixed: as in the reference implementation of PerSRec (`jaxrec.interop.persrec`): items are
        left-padded over the whole history, tokens are always valid, positions are plain indices.
    view: the visibility rule, which position sees which.

    Raises ValueError for sizes that are no layout and for a view that does not fit them.
    """

    max_segments: int = 0
    positions: Positions = "segment"
    ring: int = 0
    normalizer: int = 0
    fixed: bool = False
    view: View = TOKENS_ONLY

    def __post_init__(self) -> None:
        segments = tuple((int(n), int(k)) for n, k in self.segments)
        object.__setattr__(self, "segments", segments)
        if not segments:
            raise ValueError("layout.segments is empty: at least one segment is needed")
        if any(n < 0 or k < 0 for n, k in segments):
            raise ValueError(f"layout.segments has a negative size: {segments}")
        if any(n + k == 0 for n, k in segments[:-1]):
            raise ValueError(f"layout.segments has an empty segment: {segments}")
        self.view.check(segments, self.cached)
        if not self.max_segments:
            object.__setattr__(self, "max_segments", len(segments) + len(self.cached))
        if not self.normalizer:
            object.__setattr__(self, "normalizer", self.length)

    # -- constructors ------------------------------------------------------------------

    @classmethod
    def stream(
        cls,
        segment_size: int,
        tokens: int,
        max_segments: int,
        recent_min: int = 1,
        positions: Positions = "segment",
        num_segments: int | None = None,
    ) -> "SegmentLayout":
        """`num_segments` x (segment_size + tokens), then the recent window (docs/method.md).

        The recent window has room for `recent_min + segment_size - 1` items. `num_segments`
        defaults to `max_segments`; more gives the masked forward of a history that overflows.
        """
        slots = max_segments if num_segments is None else num_segments
        recent = recent_min + segment_size - 1
        block = segment_size + tokens
        return cls(
            segments=((segment_size, tokens),) * slots + ((recent, 0),),
            max_segments=max_segments,
            positions=positions,
            ring=block if positions == "absolute" else 0,
            normalizer=max_segments * block + recent,
        )

    @classmethod
    def full(cls, length: int, positions: Positions = "segment") -> "SegmentLayout":
        """Full history: one segment of `length` items, no tokens."""
        return cls(segments=((length, 0),), positions=positions)

    @classmethod
    def semi_local(cls, length: int, window: int, prefix: int) -> "SegmentLayout":
        """One plain segment whose positions see `window` newest and the `prefix` first positions.

        Raises ValueError for a window that does not even hold the position itself.
        """
        return cls(segments=((length, 0),), view=SemiLocal(window, prefix))

    @classmethod
    def from_config(cls, config: LayoutConfig) -> "SegmentLayout":
        """The layout of a run: `compressed` a stream, `full` / `recent` one plain segment.

        `full` covers as many events as `compressed` does, `recent` as many as its recent window.
        With a `window` attention over full history is semi-local.
        """
        positions = cast(Positions, config.positions)
        if config.mode == "compressed":
            return cls.stream(
                config.segment_size,
                config.tokens,
                config.max_segments,
                recent_min=config.recent_min,
                positions=positions,
            )
        if config.mode not in ("full", "recent"):
            raise ValueError(f"layout.mode={config.mode!r}: allowed are compressed, full, recent")
        if config.window:
            return cls.semi_local(config.history, config.window, config.prefix)
        return cls.full(config.history if config.mode == "full" else config.recent, positions)

    @classmethod
    def insertions(cls, length: int, method: Sequence[Sequence[int]]) -> "SegmentLayout":
        """PerSRec's `insert_method`: `[(offset, k), ...]` over `length` left-padded items.

        Raises ValueError when offsets decrease or leave [0, length].
        """
        segments: list[tuple[int, int]] = []
        done = 0
        for offset, k in method:
            if not done <= offset <= length:
                raise ValueError(
                    f"insert_method offset {offset} must lie between the previous offset {done} "
                    f"and the history length {length}: {list(method)}"
                )
            if offset - done + k:  # (offset, 0) at the same place inserts nothing
                segments.append((offset - done, k))
            done = offset
        segments.append((length - done, 0))
        return cls(segments=tuple(segments), positions="absolute", fixed=True)

    def extension(self) -> "SegmentLayout":
        """One more complete segment behind `max_segments` cached ones (`extend`)."""
        n, k = self.segments[0]
        cached = (k,) * self.max_segments
        return dataclasses.replace(self, segments=((n, k),), cached=cached)

    def request(self) -> "SegmentLayout":
        """The recent window behind `max_segments` cached segments (`score`)."""
        _, k = self.segments[0]
        cached = (k,) * self.max_segments
        return dataclasses.replace(self, segments=(self.segments[-1],), cached=cached)

    def with_segments(self, num_segments: int) -> "SegmentLayout":
        """The same rule over another number of complete segments (masked forward)."""
        segments = (self.segments[0],) * num_segments + (self.segments[-1],)
        return dataclasses.replace(self, segments=segments)

    def shortened(self, num_items: int, num_segments: int) -> "SegmentLayout":
        """The layout of a batch whose rows hold less than this one.

        num_items: its item slots; num_segments: its segments with the recent window. A stream has
        fewer complete segments and a shorter recent window, a plain segment is shorter.
        Visibility, positions and the divisor of attention stay, so a row computes the same in
        both.

        Raises ValueError when there is no such layout.
        """
        if (num_items, num_segments) == (self.num_items, self.num_segments):
            return self
        size, tokens = self.segments[0]
        recent = self.segments[-1][0]
        # a stream without complete segments is a plain segment
        plain, last = self.num_segments == 1 and not tokens, self.num_segments - 1
        stream = last > 0 and self.segments == ((size, tokens),) * last + ((recent, 0),)
        left = num_items - (num_segments - 1) * size  # for the recent window
        if not self.fixed and not self.cached and num_segments <= self.num_segments:
            if plain and 0 < num_items <= self.num_items:
                return dataclasses.replace(self, segments=((num_items, 0),))
            if stream and num_segments > 0 and 0 < left <= recent:
                complete = ((size, tokens),) * (num_segments - 1)
                return dataclasses.replace(self, segments=(*complete, (left, 0)))
        raise ValueError(
            f"a batch of {num_items} item slots in {num_segments} segments has no layout: it is no "
            f"shorter form of segments {self.segments}"
        )

    def raw_view(self) -> "SegmentLayout":
        """The same positions, which also see the items of the segments whose tokens they see.

        Raises ValueError for a layout with cached segments, whose items are not in the sequence.
        """
        return dataclasses.replace(self, view=RawItems())

    # -- sizes -------------------------------------------------------------------------

    @functools.cached_property
    def num_positions(self) -> int:
        """Rows that a position table needs."""
        if self.positions == "segment":
            return max(n for n, _ in self.segments)
        if self.ring:
            return self.max_segments * self.ring + self.segments[-1][0]
        return self.length

    # -- visibility (whatever the user's data: see `valid`) ------------------------------

    def sees(self, positions: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[Q, K] bool: which of the keys [K] the positions [Q] see.

        positions: indices 0..T; keys: indices on the key axis, cached tokens first.
        """
        query = Places(positions, self.segment_id[positions], self.is_token[positions])
        order = keys - self.num_cached
        key = Places(order, self.key_segment[keys], self.key_is_token[keys])
        columns, rows = (x[:, None] for x in query), (x[None] for x in key)
        return np.asarray(self.view.sees(Places(*columns), Places(*rows), self.max_segments))

    @functools.cached_property
    def visible(self) -> np.ndarray:
        """[T, C_cached + T] bool: `sees` of all."""
        return self.sees(np.arange(self.length), np.arange(self.num_cached + self.length))

    def known_slots(self, slots: Array) -> Array:
        """[P, E] bool: which events a query for item slot `slots` [P] (0..E) may know.

        They are the events behind what the query sees: those before the slot, in its segment or
        one of the `max_segments` before. `slots` may be a NumPy or a traced JAX array.
        """
        ends = self.item_segment_starts[1:-1]  # the last segment takes what is left
        segment = (slots[:, None] >= ends[None]).sum(-1)
        query = Places(slots[:, None] - 1, segment[:, None], np.zeros((1, 1), bool))
        order = np.arange(self.num_items)
        item_segment = self.segment_id[self.item_positions]
        key = Places(order[None], item_segment[None], np.zeros((1, 1), bool))
        return RawItems().sees(query, key, self.max_segments)

    # -- blocks of visible pairs -----------------------------------------------------------

    def earlier_tokens(self, run: Run) -> EarlierTokens:
        """What a run's segments see besides themselves: cached tokens and earlier segments'."""
        count = sum(k for _, k in self.segments[: run.first + run.count - 1])
        positions = self.token_positions[:count]
        keys = np.concatenate([np.arange(self.num_cached), self.num_cached + positions])
        # all rows of a segment see the same of what stands before its first one
        before = keys[None] < self.num_cached + run.starts[:, None]
        return EarlierTokens(keys, before & self.sees(run.starts, keys))

    def band(self) -> Iterator[BandRows]:
        """Chunks of query rows and the keys that some row of them sees.

        Raises ValueError for a layout whose visible pairs do not lie in a band.
        """
        if not isinstance(self.view, SemiLocal):
            raise ValueError(f"{self.view}: visible pairs lie in no band")
        return self.view.rows(self.length)

    # -- what a user's data decides (NumPy or JAX arrays in, the same out) ---------------

    def valid(self, lengths: Array) -> Array:
        """[B, T] bool: which positions exist, from `lengths` [B, S] valid items per segment.

        Items are right-padded inside their segment (left-padded in a fixed layout). Tokens of
        a segment without items do not exist, except in a fixed layout.
        """
        have = lengths[:, self.segment_id]
        size = np.asarray([n for n, _ in self.segments])[self.segment_id]
        if self.fixed:
            return (self.offset[None] >= size[None] - have) | self.is_token[None]
        return (have > np.where(self.is_token, 0, self.offset)[None]) & (have > 0)

    def position_ids(self, lengths: Array, first: Array | int = 0) -> Array:
        """Rows of the position table: [T] when they do not depend on the user, else [B, T].

        lengths: [B, S]; first: [B] or scalar, complete segments of the history before the
        first *existing* segment of this forward. Token positions of the `segment` scheme get
        row 0: callers do not add it (a token's learned vector already is its position).
        """
        if self.positions == "segment":
            return np.where(self.is_token, 0, self.offset)
        if not self.ring:
            return np.arange(self.length)
        complete = np.asarray([k > 0 for _, k in self.segments])[None]
        absent = ((lengths == 0) & complete).sum(-1)  # streams are right-aligned
        ordinal = np.arange(self.num_segments)[None] - absent[:, None]
        ordinal = ordinal + (first if isinstance(first, int) or not first.ndim else first[:, None])
        block = ordinal % self.max_segments
        block = block * complete + self.max_segments * ~complete
        return (block * self.ring)[:, self.segment_id] + self.offset[None]

    # -- targets ---------------------------------------------------------------------------

    @functools.cached_property
    def predictors(self) -> np.ndarray:
        """[P] positions that predict an item: every item, then the last token of a segment."""
        tokens = [
            np.flatnonzero(self.segment_id == s)[-1]
            for s, (n, k) in enumerate(self.segments)
            if k and n
        ]
        return np.concatenate([self.item_positions, np.asarray(tokens, np.int64)])

    @functools.cached_property
    def target_slots(self) -> np.ndarray:
        """[P] item slot (0..E, E = one past the end) that each predictor predicts."""
        ends = [
            self.item_segment_starts[s + 1] for s, (n, k) in enumerate(self.segments) if k and n
        ]
        return np.concatenate([np.arange(1, self.num_items + 1), np.asarray(ends, np.int64)])

    # -- cost ------------------------------------------------------------------------------

    def pairs(self, which: PairCount = "blocked") -> int:
        """Query-key pairs of one layer.

        which: those that are `visible`, or that attention computes `blocked` or `dense`.

        Raises ValueError for `blocked` where visible pairs lie in no blocks (a raw view).
        """
        if which == "visible":
            return self.view.pairs(self.segments, self.cached, self.max_segments)
        if which == "dense":
            return self.length * (self.length + self.num_cached)
        if self.view.structure == "band":
            return sum(rows.pairs for rows in self.band())
        if self.view.structure == "segments":
            return sum(
                run.count * run.length * (run.length + len(self.earlier_tokens(run).keys))
                for run in self.runs()
            )
        raise ValueError("pairs('blocked'): a raw view has no blocks, dense attention alone")
