"""Spilled events -> buckets of whole users, each sorted by (user, time), in bounded memory.

A bucket is a range of users in raw id order with about `BUCKET` events, so buckets in order hold
all users in order, and what a bucket holds depends on the data alone. Memory is that of a few
buckets, however many events there are.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from jaxrec.data.ingest import REPORT_SECONDS, Spilled
from jaxrec.runtime.progress import say

T = TypeVar("T")
BUCKET = 1 << 21  # events of a bucket; also decides the shards of the records


class Each(Protocol):
    """Runs a function for 0..count-1 and yields its results in order, such as `each`."""

    def __call__(
        self, function: Callable[[int], T], count: int, workers: int, label: str, events: int = 0
    ) -> Iterator[T]:
        """Results of `function(0), ... function(count - 1)` in order, computed by `workers`."""
        ...


class Events(NamedTuple):
    """Sorted events of consecutive users.

    counts: int64 [U] events of each user. items: int32 [N] item ranks (or dense ids).
    times: int32 [N] seconds since the earliest event. event: uint8 [N] or None, its type.
    returning: bool [N] or None.
    """

    counts: np.ndarray
    items: np.ndarray
    times: np.ndarray
    event: np.ndarray | None = None
    returning: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> "Events":
        """The events of a mask [N]; users without any stay."""
        user = np.repeat(np.arange(len(self.counts)), self.counts)
        return Events(
            np.bincount(user[rows], minlength=len(self.counts)),
            self.items[rows],
            self.times[rows],
            None if self.event is None else self.event[rows],
            None if self.returning is None else self.returning[rows],
        )

    def of_users(self, chosen: np.ndarray) -> "Events":
        """The users of a mask [U] with their events."""
        kept = self.select(np.repeat(chosen, self.counts))
        return kept._replace(counts=kept.counts[chosen])


@dataclasses.dataclass
class Sorted:
    """Buckets of sorted events on disk.

    folder: of the bucket files. bounds: int64 [B + 1], bucket b holds users bounds[b]..bounds[b+1]
    by rank. duplicates: rows that repeat an earlier one. repeats: rows the repeat rule dropped.
    """

    folder: Path
    bounds: np.ndarray
    duplicates: int
    repeats: int

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def load(self, bucket: int) -> Events:
        """The events of one bucket; items are ranks."""
        columns = {
            field: np.load(file)
            for field in Events._fields
            if (file := self.folder / f"{bucket}.{field}.npy").exists()
        }
        return Events(**columns)


def save(events: Events, folder: Path, bucket: int) -> None:
    """Writes the files that `Sorted.load` reads."""
    for field, values in events._asdict().items():
        if values is not None:
            np.save(folder / f"{bucket}.{field}.npy", values)


def sort(spilled: Spilled, folder: Path, duplicates: str, repeats: str, workers: int) -> Sorted:
    """Sorts all events, stably: events of one time keep input order; frees `spilled`.

    duplicates: `keep` or `drop` rows equal to an earlier one in user, item, time and type.
    repeats: `keep`, or drop events whose item is that of the event before (`consecutive`) or one
        that the user had before (`first`).
    workers: threads; the result does not depend on their number.
    """
    folder.mkdir(parents=True)
    users = spilled.users
    bounds = bounds_of(users.counts)
    _scatter(spilled, folder, bounds)

    def sort_bucket(bucket: int) -> tuple[int, int]:
        first, stop = int(bounds[bucket]), int(bounds[bucket + 1])
        columns = {
            name: _take(folder, bucket, name, kind) for name, kind in spilled.columns.items()
        }
        columns["user"] = users.rank(columns["user"], first, stop)
        columns["item"] = spilled.items.rank(columns["item"])
        columns["time"] = (columns["time"] - spilled.first).astype(np.int32)
        events, copies, dropped = arrange(columns, stop - first, duplicates, repeats)
        save(events, folder, bucket)
        return copies, dropped

    count = len(bounds) - 1
    dropped = each(sort_bucket, count, workers, "data: sorting", int(users.counts.sum()))
    copies, repeated_items = np.asarray(list(dropped)).sum(0).tolist()
    return Sorted(folder, bounds, copies, repeated_items)


def bounds_of(counts: np.ndarray) -> np.ndarray:
    """int64 [B + 1]: buckets of consecutive users with about `BUCKET` rows, from rows per user."""
    start = np.cumsum(counts) - counts
    bounds = np.flatnonzero(np.diff(start // BUCKET, prepend=-1))
    return np.concatenate([bounds, [len(counts)]]).astype(np.int64)


def arrange(
    columns: dict[str, np.ndarray], users: int, duplicates: str, repeats: str
) -> tuple[Events, int, int]:
    """(sorted events of a bucket, rows equal to an earlier one, rows that the repeat rule dropped).

    columns: rows in input order: user (0..users - 1), item (ranks), time (int32) and perhaps
        fraction, event, returning.
    """
    keys = [columns["time"], columns["user"]]
    if "fraction" in columns:
        keys.insert(0, columns["fraction"])
    order = _stable_order(keys)
    events = Events(
        np.bincount(columns["user"], minlength=users),
        columns["item"][order],
        columns["time"][order],
        columns["event"][order] if "event" in columns else None,
        columns["returning"][order] if "returning" in columns else None,
    )
    same = repeated(events)
    copies = int(same.sum())
    if duplicates == "drop" and copies:
        events = events.select(~same)
    before = len(events.items)
    if repeats != "keep":
        events = events.select(first_only(events) if repeats == "first" else moves(events))
    return events, copies, before - len(events.items)


def each(
    function: Callable[[int], T], count: int, workers: int, label: str, events: int = 0
) -> Iterator[T]:
    """`function(0..count-1)` in threads, results in order; prints progress and the rate."""
    begin = shown = time.monotonic()
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        # no more than a few waiting results at once: they may be large
        waiting: list[Future[T]] = []
        ahead = max(workers, 1) + 1
        try:
            for bucket in range(count + ahead):
                if bucket < count:
                    waiting.append(pool.submit(function, bucket))
                if bucket >= ahead or bucket >= count:
                    if not waiting:
                        break
                    yield waiting.pop(0).result()
                    now = time.monotonic()
                    if now - shown > REPORT_SECONDS:
                        done = min(bucket + 1, count) - len(waiting)
                        left = (now - begin) / done * (count - done)
                        say(f"{label}: {done} of {count} buckets, {left:.0f} s left")
                        shown = now
        finally:
            for task in waiting:
                task.cancel()
    elapsed = max(time.monotonic() - begin, 1e-9)
    if events:
        say(f"{label}: {events:,} events in {elapsed:.1f} s, {events / elapsed:,.0f} a second")


def _scatter(spilled: Spilled, folder: Path, bounds: np.ndarray) -> None:
    """Appends every chunk's rows to the files of their buckets, in input order."""
    keys = np.asarray([spilled.users.key(int(first)) for first in bounds[1:-1]], np.int64)
    for chunk in range(len(spilled.sizes)):
        order = spilled.users.order(spilled.load(chunk, "user"))
        bucket = np.searchsorted(keys, order, side="right").astype(np.int16)
        rows = np.argsort(bucket, kind="stable")  # radix sort of small integers
        ends = np.cumsum(np.bincount(bucket, minlength=len(bounds) - 1))
        for name in spilled.columns:
            column = spilled.load(chunk, name)[rows]
            for target, values in enumerate(np.split(column, ends[:-1])):
                if len(values):
                    with (folder / f"{target}.{name}").open("ab") as stream:
                        values.tofile(stream)
        spilled.drop(chunk)


def _take(folder: Path, bucket: int, name: str, kind: type) -> np.ndarray:
    file = folder / f"{bucket}.{name}"
    values: np.ndarray = np.fromfile(file, kind)
    file.unlink()
    return values


def _stable_order(keys: list[np.ndarray]) -> np.ndarray:
    """`np.lexsort(keys)`; two integer keys that fit into one are sorted in half the time."""
    low = [int(key.min()) for key in keys]
    spans = [int(key.max()) - start + 1 for key, start in zip(keys, low, strict=True)]
    if len(keys) == 2 and spans[0] * spans[1] < 2**63:
        joint = (keys[1].astype(np.int64) - low[1]) * spans[0] + (keys[0] - low[0])
        return np.argsort(joint, kind="stable")
    return np.lexsort(keys)


def _owners(events: Events) -> np.ndarray:
    return np.repeat(np.arange(len(events.counts)), events.counts)


def repeated(events: Events) -> np.ndarray:
    """bool [N]: rows with the user, time, item and type of an earlier row."""
    user, times = _owners(events), events.times
    tied = (user[1:] == user[:-1]) & (times[1:] == times[:-1])
    rows = np.flatnonzero(np.append(tied, False) | np.insert(tied, 0, False))
    kind = events.event if events.event is not None else np.zeros(len(user), np.uint8)
    keys = [column[rows] for column in (kind, events.items, times, user)]
    order = np.lexsort(keys)  # stable: the earliest row comes first
    same = np.ones(max(len(rows) - 1, 0), bool)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    result = np.zeros(len(user), bool)
    result[rows[order[1:][same]]] = True
    return result


def moves(events: Events) -> np.ndarray:
    """bool [N]: rows with another item than the user's row before."""
    user = _owners(events)
    return np.insert(
        (user[1:] != user[:-1]) | (events.items[1:] != events.items[:-1]), 0, len(user) > 0
    )[: len(user)]


def first_only(events: Events) -> np.ndarray:
    """bool [N]: rows whose item the user did not have before."""
    user, items = _owners(events), events.items.astype(np.int64)
    joint = user * (int(items.max(initial=0)) + 1) + items
    _, first = np.unique(joint, return_index=True)
    result = np.zeros(len(user), bool)
    result[first] = True
    return result
