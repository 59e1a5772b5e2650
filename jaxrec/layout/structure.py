"""Blocks of visible pairs: what an attention backend computes without visiting hidden pairs."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

# Query rows computed at once inside a long segment: rows a..b see keys 0..b only, which
# halves the work of a long causal block and bounds its memory.
CHUNK = 256


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
        """One past the last position of the run."""
        return self.start + self.count * self.length

    @property
    def starts(self) -> np.ndarray:
        """[s] first position of each segment."""
        return self.start + self.length * np.arange(self.count)

    @property
    def segments(self) -> np.ndarray:
        """[s] index of each segment."""
        return np.arange(self.first, self.first + self.count)


class EarlierTokens(NamedTuple):
    """Tokens that the segments of a run see besides their own positions.

    keys: int [K] indices on the key axis (cached tokens first).
    visible: bool [s, K] which segment of the run sees which of them.
    """

    keys: np.ndarray
    visible: np.ndarray


class BandRows(NamedTuple):
    """Query rows `start..stop` of a band and the keys that some of them see.

    Those are the keys 0..`prefix` and `first`..`stop`; `prefix` <= `first`.
    """

    start: int
    stop: int
    first: int
    prefix: int

    @property
    def keys(self) -> np.ndarray:
        """Positions of the keys, int [K]."""
        return np.concatenate([np.arange(self.prefix), np.arange(self.first, self.stop)])

    @property
    def pairs(self) -> int:
        """Query-key pairs of the rows."""
        return (self.stop - self.start) * (self.prefix + self.stop - self.first)


def row_chunks(length: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of every `CHUNK` rows of `length`."""
    for start in range(0, length, CHUNK):
        yield start, min(start + CHUNK, length)
