"""Where items and compressed tokens stand in a sequence, and who sees whom.

`SegmentLayout` is the single definition of the visibility rule (docs/method.md): attention
backends, the state functions, the data pipeline and the FLOP counts all read it. It is pure
NumPy, immutable and hashable, so it is a static argument of jitted functions.

A sequence is a run of segments, oldest first; segment s holds `items` item positions followed
by `tokens` token positions. The last segment of a stream is the recent window: items without
tokens. "Full history" is one segment without tokens. Position i sees position j iff j is
valid, j <= i, and j is in i's own segment or is a token of one of the `max_segments` segments
before i's.

Dimension letters: B users, T positions, E item slots (T minus tokens), S segments, C tokens.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

if TYPE_CHECKING:
    from jaxrec.config import LayoutConfig

Positions = Literal["segment", "absolute"]


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive segments of equal shape, which attention treats as one batched block."""

    first: int  # index of the first segment
    count: int
    items: int
    tokens: int
    start: int  # first position of the run

    @property
    def length(self) -> int:
        """Positions of one segment."""
        return self.items + self.tokens

    @property
    def stop(self) -> int:
        return self.start + self.count * self.length


@dataclasses.dataclass(frozen=True)
class SegmentLayout:
    """Positions of one forward pass.

    segments: (items, tokens) of every segment, oldest first.
    cached: tokens of each earlier segment whose K/V come from a user state, oldest first.
    max_segments: how many earlier segments' tokens a position sees.
    positions: `segment` (offset inside the segment) or `absolute` (index in the whole layout).
    ring: `absolute` only: table rows of one segment; segment number o uses block
        o mod max_segments, the recent window the block behind the last. 0: plain index.
    normalizer: constant divisor of pointwise attention; the same for every layout derived
        from one model, so that cached and full computations agree.
    fixed: a reference layout: items are left-padded over the whole history, tokens are
        always valid, positions are plain indices.
    """

    segments: tuple[tuple[int, int], ...]
    cached: tuple[int, ...] = ()
    max_segments: int = 0
    positions: Positions = "segment"
    ring: int = 0
    normalizer: int = 0
    fixed: bool = False

    def __post_init__(self) -> None:
        segments = tuple((int(n), int(k)) for n, k in self.segments)
        object.__setattr__(self, "segments", segments)
        if not segments:
            raise ValueError("layout.segments is empty: at least one segment is needed")
        if any(n < 0 or k < 0 for n, k in segments):
            raise ValueError(f"layout.segments has a negative size: {segments}")
        if any(n + k == 0 for n, k in segments[:-1]):
            raise ValueError(f"layout.segments has an empty segment: {segments}")
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
        """The layout of DESIGN §1: `num_segments` x (segment_size + tokens) + recent window.

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
    def from_config(cls, config: "LayoutConfig") -> "SegmentLayout":
        """The layout of a run: `compressed` a stream, `full` / `recent` one plain segment.

        `full` covers as many events as `compressed` does, `recent` as its recent window.
        """
        positions = cast(Positions, config.positions)
        if config.mode == "compressed":
            return cls.stream(
                config.segment_size,
                config.tokens,
                config.max_segments,
                config.recent_min,
                positions,
            )
        if config.mode not in ("full", "recent"):
            raise ValueError(f"layout.mode={config.mode!r}: allowed are compressed, full, recent")
        return cls.full(config.history if config.mode == "full" else config.recent, positions)

    @classmethod
    def insertions(cls, length: int, method: Sequence[Sequence[int]]) -> "SegmentLayout":
        """The reference's `insert_method`: `[(offset, k), ...]` over `length` left-padded items.

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

    # -- sizes -------------------------------------------------------------------------

    @property
    def num_segments(self) -> int:
        """Segments of this forward, the recent window included."""
        return len(self.segments)

    @functools.cached_property
    def length(self) -> int:
        """T: positions of this forward."""
        return sum(n + k for n, k in self.segments)

    @functools.cached_property
    def num_items(self) -> int:
        """E: item slots."""
        return sum(n for n, _ in self.segments)

    @functools.cached_property
    def num_tokens(self) -> int:
        """C: token positions of this forward (cached ones not counted)."""
        return sum(k for _, k in self.segments)

    @functools.cached_property
    def num_cached(self) -> int:
        return sum(self.cached)

    @functools.cached_property
    def num_positions(self) -> int:
        """Rows that a position table needs."""
        if self.positions == "segment":
            return max(n for n, _ in self.segments)
        if self.ring:
            return self.max_segments * self.ring + self.segments[-1][0]
        return self.length

    # -- static arrays, one entry per position -----------------------------------------

    @functools.cached_property
    def segment_id(self) -> np.ndarray:
        """[T] segment of each position."""
        return np.repeat(np.arange(self.num_segments), [n + k for n, k in self.segments])

    @functools.cached_property
    def offset(self) -> np.ndarray:
        """[T] offset inside the segment (tokens: behind the items)."""
        return np.concatenate([np.arange(n + k) for n, k in self.segments])

    @functools.cached_property
    def is_token(self) -> np.ndarray:
        """[T] bool."""
        return np.concatenate([np.arange(n + k) >= n for n, k in self.segments])

    @functools.cached_property
    def token_index(self) -> np.ndarray:
        """[T] which of its segment's tokens a position is; 0 for items."""
        return np.concatenate([np.maximum(np.arange(n + k) - n, 0) for n, k in self.segments])

    @functools.cached_property
    def item_positions(self) -> np.ndarray:
        """[E] position of each item slot."""
        return np.flatnonzero(~self.is_token)

    @functools.cached_property
    def token_positions(self) -> np.ndarray:
        """[C] position of each token."""
        return np.flatnonzero(self.is_token)

    @functools.cached_property
    def item_segment_starts(self) -> np.ndarray:
        """[S + 1] item slot at which each segment starts; the last entry is E."""
        return np.cumsum([0, *(n for n, _ in self.segments)])

    # -- keys: cached tokens first, then the positions -----------------------------------

    @functools.cached_property
    def key_segment(self) -> np.ndarray:
        """[C_cached + T] segment of each key; cached segments count from -len(cached)."""
        cached = np.repeat(np.arange(-len(self.cached), 0), self.cached)
        return np.concatenate([cached, self.segment_id]).astype(np.int64)

    @functools.cached_property
    def key_is_token(self) -> np.ndarray:
        return np.concatenate([np.ones(self.num_cached, bool), self.is_token])

    @functools.cached_property
    def key_token_index(self) -> np.ndarray:
        cached = [np.arange(k) for k in self.cached]
        return np.concatenate([*cached, self.token_index]).astype(np.int64)

    @functools.cached_property
    def key_offset(self) -> np.ndarray:
        cached = [np.arange(k) for k in self.cached]  # meaningful inside one segment only
        return np.concatenate([*cached, self.offset]).astype(np.int64)

    @functools.cached_property
    def visible(self) -> np.ndarray:
        """[T, C_cached + T] bool: the visibility rule, validity of the user's data left out."""
        query = np.arange(self.length)
        key = np.arange(-self.num_cached, self.length)
        causal = key[None] <= query[:, None]
        age = self.segment_id[:, None] - self.key_segment[None]
        token = self.key_is_token[None] & (age > 0) & (age <= self.max_segments)
        return causal & ((age == 0) | token)

    def runs(self) -> tuple[Run, ...]:
        """Segments grouped into runs of equal shape."""
        runs: list[Run] = []
        position = 0
        for index, (n, k) in enumerate(self.segments):
            last = runs[-1] if runs else None
            if last is not None and (last.items, last.tokens) == (n, k):
                runs[-1] = dataclasses.replace(last, count=last.count + 1)
            elif n + k:
                runs.append(Run(index, 1, n, k, position))
            position += n + k
        return tuple(runs)

    # -- what a user's data decides (NumPy or JAX arrays in, the same out) ---------------

    def valid(self, lengths: Any) -> Any:
        """[B, T] bool: which positions exist, from `lengths` [B, S] valid items per segment.

        Items are right-padded inside their segment (left-padded in a fixed layout). Tokens of
        a segment without items do not exist, except in a fixed layout.
        """
        have = lengths[:, self.segment_id]
        size = np.asarray([n for n, _ in self.segments])[self.segment_id]
        if self.fixed:
            return (self.offset[None] >= size[None] - have) | self.is_token[None]
        return (have > np.where(self.is_token, 0, self.offset)[None]) & (have > 0)

    def position_ids(self, lengths: Any, first: Any = 0) -> Any:
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
        ordinal = ordinal + (first[:, None] if np.ndim(first) else first)
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

    def known_slots(self, slots: Any) -> Any:
        """[P, E] bool: the item slots whose events a query for slot `slots` [P] may know."""
        starts = self.item_segment_starts
        every = np.arange(self.num_items)
        segment = np.searchsorted(starts[1:], every, side="right")
        import jax.numpy as jnp

        asking = jnp.searchsorted(jnp.asarray(starts[1:]), slots, side="right")
        asking = jnp.minimum(asking, self.num_segments - 1)
        age = asking[:, None] - segment[None]
        return (every[None] < slots[:, None]) & (age <= self.max_segments)

    # -- cost ------------------------------------------------------------------------------

    def pairs(self, backend: Literal["visible", "blocked", "dense"] = "blocked") -> int:
        """Query-key pairs of one layer: needed, computed in blocks, computed densely."""
        if backend == "visible":
            every = (*self.cached, *(k for _, k in self.segments))
            total = 0
            for index, (n, k) in enumerate(self.segments, len(self.cached)):
                before = sum(every[max(index - self.max_segments, 0) : index])
                total += (n + k) * (n + k + 1) // 2 + (n + k) * before
            return total
        if backend == "dense":
            return self.length * (self.length + self.num_cached)
        total = 0
        for run in self.runs():
            total += run.count * run.length * (run.length + self.tokens_before(run))
        return total

    def tokens_before(self, run: Run) -> int:
        """Token keys that a run computes against: cached ones and those before its last segment."""
        own = sum(k for _, k in self.segments[: run.first + run.count - 1])
        return self.num_cached + own


@dataclasses.dataclass(frozen=True)
class RawView(SegmentLayout):
    """The positions of a layout, which see the items behind the tokens they see, too.

    What a compressed prediction would be if nothing were compressed, by the same parameters:
    `loss.consistency` compares with it. It has no block structure: dense attention alone.
    """

    @classmethod
    def of(cls, layout: SegmentLayout) -> "RawView":
        """Raises ValueError for a layout whose earlier segments are tokens alone."""
        if layout.cached:
            raise ValueError("the items of cached segments are not there to be seen")
        fields = dataclasses.fields(SegmentLayout)
        return cls(**{field.name: getattr(layout, field.name) for field in fields})

    @functools.cached_property
    def visible(self) -> np.ndarray:
        """[T, T] bool: causal, over the own segment and the `max_segments` before it."""
        every = np.arange(self.length)
        age = self.segment_id[:, None] - self.segment_id[None]
        return (every[None] <= every[:, None]) & (age <= self.max_segments)
