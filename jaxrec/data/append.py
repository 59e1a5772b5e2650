"""Later events added to prepared data without reading, checking or sorting the old ones again.

Users and items keep their numbers and new ones come after them, so a trained item table and stored
user states stay valid. Among events of one time the old ones come first.
"""

from typing import NamedTuple

import numpy as np

from jaxrec.data import filters, sorting
from jaxrec.data.ingest import Read
from jaxrec.data.records import RecordSource
from jaxrec.data.sorting import Events, Sorted
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.errors import DataError


class Later(NamedTuple):
    """New events, by dense ids, user after user.

    vocabulary: old items, then new ones. users: raw ids, old, then new [U].
    user: int64 [N] dense, rising. items: int32 [N]. times: int64 [N] seconds since 1970.
    event: uint8 [N] types or None, numbered by `event_types`.
    """

    vocabulary: Vocabulary
    users: np.ndarray
    user: np.ndarray
    items: np.ndarray
    times: np.ndarray
    event: np.ndarray | None
    event_types: tuple[str, ...]


def number(
    read: Read,
    buckets: Sorted,
    vocabulary: Vocabulary,
    users: np.ndarray,
    event_types: tuple[str, ...],
    limits: filters.Limits,
    source: str,
) -> Later:
    """Numbers sorted new events as the prepared data does.

    New items with fewer than `min_item_events` new events are dropped, then new users with fewer
    than `min_user_events`. All new events are held in memory (16 bytes each). Raises DataError when
    ids are of another type, or no event is left.
    """
    _check_kind("items", read.items, vocabulary.ids, source)
    _check_kind("users", read.users, users, source)
    loaded = [buckets.load(bucket) for bucket in range(len(buckets))]
    counts = np.concatenate([events.counts for events in loaded])
    rank = np.concatenate([events.items for events in loaded])
    times = np.concatenate([events.times for events in loaded]).astype(np.int64) + read.first
    owner = np.repeat(np.arange(len(counts)), counts)
    dense = vocabulary.encode(read.items)
    seen = np.bincount(rank, minlength=len(dense))
    fresh = np.flatnonzero((dense == 0) & (seen >= limits.min_item_events))
    fresh = fresh[np.argsort(-seen[fresh], kind="stable")]
    dense[fresh] = len(vocabulary) + 1 + np.arange(len(fresh))
    kept = dense[rank] > 0
    known = Vocabulary(users).encode(read.users).astype(np.int64) - 1
    length = np.bincount(owner[kept], minlength=len(counts))
    newcomers = np.flatnonzero((known < 0) & (length >= max(limits.min_user_events, 1)))
    known[newcomers] = len(users) + np.arange(len(newcomers))
    kept &= known[owner] >= 0
    if not kept.any():
        raise DataError(
            f"{source}: no new event is left: users and items that are not prepared yet need "
            "data.min_user_events and data.min_item_events new events"
        )
    # a new item keeps its number even where all its events belong to dropped users: never trained
    order = np.argsort(known[owner[kept]], kind="stable")
    types = (*event_types, *(name for name in read.event_types if name not in event_types))
    event = _renumbered(loaded, read.event_types, types)[kept][order] if types else None
    return Later(
        Vocabulary(np.concatenate([vocabulary.ids, read.items[fresh]])),
        np.concatenate([users, read.users[newcomers]]),
        known[owner[kept]][order],
        dense[rank[kept]][order].astype(np.int32),
        times[kept][order],
        event,
        types,
    )


def _check_kind(what: str, new: np.ndarray, prepared: np.ndarray, source: str) -> None:
    """Raises DataError where new ids are text and the prepared ones integers, or vice versa."""
    if new.dtype.kind != prepared.dtype.kind:
        raise DataError(
            f"{source}: ids of {what} are {new.dtype}, those of the prepared data "
            f"{prepared.dtype}. Convert them, or prepare all files anew with "
            f"data.{what.removesuffix('s')}_kind=text (table)"
        )


def _renumbered(loaded: list[Events], old: tuple[str, ...], new: tuple[str, ...]) -> np.ndarray:
    """uint8 [N], types of the events numbered by `new`; they are stored as numbers in `old`."""
    numbers = np.asarray([new.index(name) for name in old], np.uint8)
    return numbers[np.concatenate([np.asarray(events.event) for events in loaded])]


def parts_of(lengths: np.ndarray) -> list[int]:
    """Users of each shard: consecutive users with about `sorting.BUCKET` events."""
    start = np.cumsum(lengths) - lengths
    bounds = np.flatnonzero(np.diff(start // sorting.BUCKET, prepend=-1))
    return np.diff(np.append(bounds, len(lengths))).tolist()


def merge(source: RecordSource, old_users: int, origin: int, later: Later, users: range) -> Events:
    """Old and new events of some users; times count from `origin`."""
    old = source.__getitems__(range(users.start, min(users.stop, max(old_users, users.start))))
    old_counts = np.zeros(len(users), np.int64)
    old_counts[: len(old)] = [len(record.items) for record in old]
    first, stop = np.searchsorted(later.user, [users.start, users.stop])
    nothing = [np.zeros(0, np.int32)]
    user = np.concatenate(
        [np.repeat(np.arange(len(users)), old_counts), later.user[first:stop] - users.start]
    )
    items = np.concatenate([*(r.items for r in old), *nothing, later.items[first:stop]])
    times = np.concatenate([*(r.times for r in old), *nothing, later.times[first:stop] - origin])
    order = np.lexsort((times, user))  # stable: the old events of a time come first
    event = None
    if later.event is not None:
        kinds = [np.asarray(record.event, np.uint8) for record in old]
        event = np.concatenate([*kinds, np.zeros(0, np.uint8), later.event[first:stop]])[order]
    counts = np.bincount(user, minlength=len(users))
    return Events(counts, items[order], times[order].astype(np.int32), event)
