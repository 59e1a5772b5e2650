"""Filters of users and items, counted over sorted buckets, one pass for each filter."""

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxrec.data.sorting import Each, Events, Sorted, each
from jaxrec.errors import DataError


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the filters.

    min_item_events, min_user_events: items and users with fewer events are dropped.
    max_user_events: users with more events are dropped; 0 for no limit. core: both filters are
    repeated until nothing changes (k-core).
    """

    min_item_events: int = 1
    min_user_events: int = 1
    max_user_events: int = 0
    core: bool = False


class Kept(NamedTuple):
    """Users and items that stay, by rank.

    items: int64 [I] events of each item among the kept users, 0 for dropped items. users: bool [U].
    """

    items: np.ndarray
    users: np.ndarray


def choose(
    buckets: Sorted, num_items: int, limits: Limits, source: str, workers: int, run: Each = each
) -> Kept:
    """The users and items that pass `limits`.

    Items are filtered first, then users by the number of their remaining events. Without `core`
    each filter runs once: an item may end below its limit when its users are dropped, and is
    dropped only when no event is left. run: does the work of all buckets, by default in threads.
    Raises DataError when nothing is left.
    """
    users = np.ones(int(buckets.bounds[-1]), bool)
    counts = _item_counts(buckets, num_items, users, None, workers, run)
    while True:
        items = counts >= limits.min_item_events
        if not items.any():
            raise DataError(
                f"{source}: no item has {limits.min_item_events} events, the most frequent of "
                f"{int((counts > 0).sum())} has {int(counts.max())}. Lower data.min_item_events"
            )
        lengths = _user_counts(buckets, items, workers, run)
        chosen = users & (lengths >= max(limits.min_user_events, 1))
        if limits.max_user_events:
            chosen &= lengths <= limits.max_user_events
        if not chosen.any():
            raise _no_users(lengths[users], limits, source)
        before, users = users, chosen
        remaining = _item_counts(buckets, num_items, users, items, workers, run)
        settled = (before == users).all() and (remaining[items] >= limits.min_item_events).all()
        counts = remaining
        if not limits.core or settled:
            return Kept(counts, users)


def _no_users(lengths: np.ndarray, limits: Limits, source: str) -> DataError:
    most, few = int(lengths.max()), limits.min_user_events
    if limits.max_user_events and most >= few:
        return DataError(
            f"{source}: no user has {few} to {limits.max_user_events} events, the histories of "
            f"{len(lengths)} users have up to {most}. Change data.min_user_events or "
            "data.max_user_events"
        )
    return DataError(
        f"{source}: no user has {few} events of items with at least {limits.min_item_events} "
        f"events, the longest of {int((lengths > 0).sum())} histories has {most}. Lower "
        "data.min_user_events or data.min_item_events"
    )


def apply(events: Events, items: np.ndarray, users: np.ndarray) -> Events:
    """The events of kept items (bool [I]) of kept users (bool [U of the bucket])."""
    return events.select(items[events.items]).of_users(users)


def _item_counts(
    buckets: Sorted,
    num_items: int,
    users: np.ndarray,
    items: np.ndarray | None,
    workers: int,
    run: Each,
) -> np.ndarray:
    """int64 [I], events of each item (kept ones, else 0) of the kept users."""

    def count(bucket: int) -> np.ndarray:
        events = buckets.load(bucket)
        kept = users[buckets.bounds[bucket] : buckets.bounds[bucket + 1]]
        return np.bincount(events.items[np.repeat(kept, events.counts)], minlength=num_items)

    total = np.zeros(num_items, np.int64)
    for counts in run(count, len(buckets), workers, "data: counting items"):
        total += counts
    return total if items is None else np.where(items, total, 0)


def _user_counts(buckets: Sorted, items: np.ndarray, workers: int, run: Each) -> np.ndarray:
    """int64 [U], events of kept items of each user."""

    def count(bucket: int) -> np.ndarray:
        events = buckets.load(bucket)
        return events.select(items[events.items]).counts

    return np.concatenate(list(run(count, len(buckets), workers, "data: counting users")))
