"""Training batches of users of similar length: which windows batch N holds. Pure NumPy.

A bucket is the users whose windows fit into rows of so many item slots (`windows.most_slots`). A
batch holds windows of one bucket, the more rows the shorter they are, so about as many positions
as any other batch. Every bucket has an endless sequence of its windows. Buckets take turns in an
order keyed by (seed, cycle), as often as lets every window occur equally often.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrec.config import LayoutConfig
from jaxrec.data import windows
from jaxrec.layout import SegmentLayout

# A cycle has at least so many batches of every bucket, so that rounding their number to an integer
# moves the frequency of a window by 1 / 32 at most.
_FEWEST_TURNS = 16


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Users whose windows fit into rows of `slots` item slots; `rows` of them are a batch.

    users: int32 [U], dense indices, increasing. last_window: int64 [U], windows of the users up to
    each.
    """

    slots: int
    rows: int
    users: np.ndarray
    last_window: np.ndarray

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return int(self.last_window[-1])

    def users_of(self, window: np.ndarray) -> np.ndarray:
        """int64 [B], users of windows [B], each 0..num_windows-1."""
        found = np.searchsorted(self.last_window, window, side="right")
        return self.users[found].astype(np.int64)


class Turn(NamedTuple):
    """Batch N is batch number `number` of bucket number `bucket`."""

    bucket: int
    number: int


def plan(
    train_end: np.ndarray,
    config: LayoutConfig,
    *,
    batch_size: int,
    count: int,
    vary_segments: bool,
) -> tuple[Bucket, ...]:
    """The buckets of a data set, shortest rows first; none where nobody has two training events.

    train_end: int64 [U], training events per user. count: at most so many; 1: all users in rows of
    the whole layout. A bucket with fewer windows than a batch has rows would repeat them more
    often than others are repeated: its users go to the bucket of the next longer rows, those of
    the next shorter rows to it where there is none.
    """
    layout = SegmentLayout.from_config(config)
    number = windows.count_windows(train_end, layout)
    need = windows.most_slots(train_end, config, vary_segments=vary_segments)
    sizes = capacities(config, count)
    bucket = np.searchsorted(sizes, need)
    per_bucket = np.bincount(bucket, weights=number, minlength=len(sizes)).astype(np.int64)
    rows = [batch_size * (layout.num_items // slots) for slots in sizes]
    kept = _with_whole_batches(per_bucket, rows)
    into = np.searchsorted(kept, bucket)
    made = []
    for index, size in enumerate(kept):
        users = np.flatnonzero((into == index) & (number > 0)).astype(np.int32)
        made.append(Bucket(sizes[size], rows[size], users, np.cumsum(number[users])))
    return tuple(made)


def capacities(config: LayoutConfig, count: int) -> list[int]:
    """Item slots of at most `count` sizes of rows, increasing; the last is the whole layout.

    `full`, `recent`: equal steps. `compressed`: a whole recent window and 0..max_segments complete
    segments, or `count` of these numbers.
    """
    if config.mode != "compressed":
        slots = SegmentLayout.from_config(config).num_items
        return sorted({-(-slots * step // count) for step in range(1, count + 1)})
    numbers = config.max_segments + 1
    segments = {-(-numbers * step // count) - 1 for step in range(1, count + 1)}
    return [s * config.segment_size + config.recent for s in sorted(segments)]


def turns(buckets: Sequence[Bucket]) -> tuple[int, ...]:
    """Batches of each bucket in a cycle, in proportion to what its windows fill."""
    fills = [bucket.num_windows / bucket.rows for bucket in buckets]
    epochs = max(1, math.ceil(_FEWEST_TURNS / min(fills)))
    return tuple(max(1, round(epochs * fill)) for fill in fills)


def turn(number: int, counts: tuple[int, ...], seed: int) -> Turn:
    """Which bucket batch `number` is of. counts: batches of each bucket in a cycle (`turns`)."""
    if len(counts) == 1:
        return Turn(0, number)
    cycle, place = divmod(number, sum(counts))
    bucket, earlier = _cycle(seed % 2**64, cycle, counts)
    index = int(bucket[place])
    return Turn(index, cycle * counts[index] + int(earlier[place]))


@functools.lru_cache(maxsize=4)
def _cycle(seed: int, cycle: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(bucket, batches of it before) of every batch of a cycle, int64 [C] each."""
    key = np.asarray([seed, cycle], np.uint64)
    random = np.random.Generator(np.random.Philox(key=key))
    order = random.permutation(np.repeat(np.arange(len(counts)), counts))
    earlier = np.zeros_like(order)
    for index, count in enumerate(counts):
        earlier[order == index] = np.arange(count)
    return order, earlier


def _with_whole_batches(per_bucket: np.ndarray, rows: Sequence[int]) -> list[int]:
    """Numbers of the buckets that stay, the last one that has windows among them.

    per_bucket: windows of each bucket; those of a bucket that goes are added to the next that
    stays.
    """
    kept: list[int] = []
    held: list[int] = []
    waiting = 0
    for index in np.flatnonzero(per_bucket).tolist():
        waiting += int(per_bucket[index])
        if waiting >= rows[index] or index == np.flatnonzero(per_bucket)[-1]:
            kept.append(index)
            held.append(waiting)
            waiting = 0
    while len(kept) > 1 and held[-1] < rows[kept[-1]]:
        held[-2:] = [held[-2] + held[-1]]
        del kept[-2]
    return kept
