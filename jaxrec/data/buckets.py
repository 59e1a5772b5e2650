"""Training batches of users of similar length: which windows batch N holds. Pure NumPy.

A bucket is the users whose windows fit into rows of a size (`windows.most`). A batch holds windows
of one bucket, the more rows the shorter they are, so about as many positions as any other batch.
Every bucket has an endless sequence of its windows. Buckets take turns in an order keyed by (seed,
cycle), as often as lets every window occur equally often.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxrec.config import LayoutConfig
from jaxrec.data import windows
from jaxrec.layout import SegmentLayout

# A cycle has at least so many batches of every bucket, so that rounding their number to an integer
# moves the frequency of a window by 1 / 32 at most.
_FEWEST_TURNS = 16


class Size(NamedTuple):
    """A size of rows: complete segments, events of the recent window, item slots in all."""

    complete: int
    recent: int
    slots: int


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Users whose windows fit into the last of `sizes`; `rows` of them are a batch.

    sizes: increasing; a batch whose windows are all shorter may take a smaller one. users: int32
    [U], dense indices, increasing. last_window: int64 [U], windows of the users up to each.
    """

    sizes: tuple[Size, ...]
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

    def size_of(self, complete: int, recent: int) -> Size:
        """The smallest size that holds so many complete segments and recent events."""
        fits = (s for s in self.sizes if s.complete >= complete and s.recent >= recent)
        return min(fits, key=lambda size: size.slots)


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
    sizes = capacities(config, count)
    complete, recent = windows.most(train_end, config, vary_segments=vary_segments)
    # the numbers of segments that rows have, and the recent windows of each of them
    numbers, recents = (sorted({size[part] for size in sizes}) for part in (0, 1))
    bucket = np.searchsorted(numbers, complete) * len(recents) + np.searchsorted(recents, recent)
    per_bucket = np.bincount(bucket, weights=number, minlength=len(sizes)).astype(np.int64)
    rows = [batch_size * (layout.num_items // size.slots) for size in sizes]
    kept = _with_whole_batches(per_bucket, rows)
    into = np.searchsorted(kept, bucket)
    made = []
    for index, last in enumerate(kept):
        users = np.flatnonzero((into == index) & (number > 0)).astype(np.int32)
        allowed = tuple(_within(sizes, rows, last)) if config.mode == "compressed" else ()
        made.append(Bucket(allowed or (sizes[last],), rows[last], users, np.cumsum(number[users])))
    return tuple(made)


def capacities(config: LayoutConfig, count: int) -> list[Size]:
    """At most `count` sizes of rows, increasing; the last is the whole layout.

    `full`, `recent`: equal steps. `compressed`: 0..max_segments complete segments, or `count` of
    these numbers, before a whole recent window; where `count` allows it, each number also before
    recent windows of equal steps.
    """
    if config.mode != "compressed":
        slots = SegmentLayout.from_config(config).num_items
        steps = sorted({-(-slots * step // count) for step in range(1, count + 1)})
        return [Size(0, slots, slots) for slots in steps]
    numbers = config.max_segments + 1
    segments = sorted({-(-numbers * step // count) - 1 for step in range(1, count + 1)})
    parts = max(1, count // numbers)
    recents = sorted({-(-config.recent * part // parts) for part in range(1, parts + 1)})
    return [Size(s, r, s * config.segment_size + r) for s in segments for r in recents]


def _within(sizes: Sequence[Size], rows: Sequence[int], last: int) -> Iterator[Size]:
    """The sizes that batches of the bucket of size number `last` may have.

    Each is a program of its own for the bucket's number of rows. So of sizes that have more rows in
    their own bucket only those with the same recent window are among them.
    """
    most = sizes[last]
    for size, number in zip(sizes, rows, strict=True):
        fits = size.complete <= most.complete and size.recent <= most.recent
        if fits and (number == rows[last] or size.recent == most.recent):
            yield size


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
