"""`Geometry`: which position of a sequence is what, before any rule of visibility."""

import dataclasses
import functools

import numpy as np

from jaxrec.layout.structure import Run


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Segments of items and tokens that follow the tokens of earlier, cached segments.

    segments: (items, tokens) of every segment, oldest first.
    cached: tokens of each earlier segment whose K/V come from a user state, oldest first.
    """

    segments: tuple[tuple[int, int], ...]
    cached: tuple[int, ...] = ()

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
        """Cached tokens, the first keys."""
        return sum(self.cached)

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
        """[T] bool, whether a position is a compressed token's."""
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
        """[C_cached + T] bool, whether a key is a compressed token's."""
        return np.concatenate([np.ones(self.num_cached, bool), self.is_token])

    @functools.cached_property
    def key_token_index(self) -> np.ndarray:
        """[C_cached + T] which of its segment's tokens a key is; 0 for items."""
        cached = [np.arange(k) for k in self.cached]
        return np.concatenate([*cached, self.token_index]).astype(np.int64)

    @functools.cached_property
    def key_offset(self) -> np.ndarray:
        """[C_cached + T] offset inside the segment; of a cached token, among its tokens."""
        cached = [np.arange(k) for k in self.cached]  # meaningful inside one segment only
        return np.concatenate([*cached, self.offset]).astype(np.int64)

    def runs(self) -> tuple[Run, ...]:
        """Segments grouped into runs of equal shape."""
        runs: list[Run] = []
        position = 0
        for index, (n, k) in enumerate(self.segments):
            last = runs[-1] if runs else None
            if last is not None and (last.items, last.tokens) == (n, k):
                runs[-1] = dataclasses.replace(last, count=last.count + 1)
            elif n + k:
                runs.append(Run(first=index, count=1, items=n, tokens=k, start=position))
            position += n + k
        return tuple(runs)
