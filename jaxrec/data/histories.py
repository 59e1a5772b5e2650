"""Interactions -> histories: rare items and short users dropped, events in time order."""

import dataclasses

import numpy as np

from jaxrec.data.schema import INT32_MAX, DataError, Interactions, Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Histories:
    """All events, user after user, each user's in time order.

    offsets: int64 [U + 1], events of user u are [offsets[u], offsets[u + 1]).
    items: int32 [N], dense item ids 1..V.
    times: int32 [N], seconds since the time origin.
    users: int64 or str [U], raw user ids.
    returning: bool [N], planted returns (synthetic data only).
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    users: np.ndarray
    returning: np.ndarray | None = None

    def __len__(self) -> int:
        """U: users."""
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U], events per user."""
        return np.diff(self.offsets)

    def user(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Items and times of one user, oldest first."""
        events = slice(self.offsets[index], self.offsets[index + 1])
        return self.items[events], self.times[events]


def build(
    table: Interactions, min_item_events: int, min_user_events: int, source: str = "data"
) -> tuple[Histories, Vocabulary, int]:
    """Histories, their vocabulary and the time origin (seconds since 1970 of the first event).

    Items with fewer than `min_item_events` events go first, then users with fewer than
    `min_user_events` of the remaining ones; each filter runs once (an item may end below its
    bound when its users are dropped, and leaves the vocabulary only when no event is left).
    Users are ordered by raw id, events by time; ties keep input order. The origin is the
    earliest time of the whole table, so it does not depend on the filters.

    Raises DataError when nothing is left or the times span more than int32 seconds (68 years).
    """
    _, item, count = np.unique(table.item, return_inverse=True, return_counts=True)
    kept = table.take(count[item] >= min_item_events)
    if not len(kept):
        raise DataError(
            f"{source}: no item has {min_item_events} events, the most frequent of {len(count)} "
            f"has {int(count.max())}. Lower data.min_item_events"
        )
    _, user, count = np.unique(kept.user, return_inverse=True, return_counts=True)
    most = int(count.max())
    kept = kept.take(count[user] >= min_user_events)
    if not len(kept):
        raise DataError(
            f"{source}: no user has {min_user_events} events of items with at least "
            f"{min_item_events} events, the longest of {len(count)} histories has {most}. Lower "
            "data.min_user_events or data.min_item_events"
        )
    origin = int(table.time.min())
    span = int(table.time.max()) - origin
    if span > INT32_MAX:
        raise DataError(
            f"{source}: times span {span} seconds ({span / 31556952:.0f} years), more than int32 "
            f"seconds can hold ({INT32_MAX}). Remove events with wrong times"
        )
    vocabulary = Vocabulary.by_frequency(kept.item)
    users, index, count = np.unique(kept.user, return_inverse=True, return_counts=True)
    order = np.lexsort((kept.time, index))  # lexsort is stable
    return (
        Histories(
            offsets=np.concatenate([[0], np.cumsum(count)]).astype(np.int64),
            items=vocabulary.encode(kept.item)[order],
            times=(kept.time[order] - origin).astype(np.int32),
            users=users,
            returning=None if kept.returning is None else kept.returning[order],
        ),
        vocabulary,
        origin,
    )
