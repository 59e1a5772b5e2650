"""Events that were appended to prepared data, added to the states of a store."""

from typing import NamedTuple

import numpy as np

from jaxrec.data.prepared import Prepared
from jaxrec.errors import DataError
from jaxrec.serving.buckets import BATCH
from jaxrec.serving.build import check_data
from jaxrec.serving.service import Recommender
from jaxrec.serving.state_rows import Events
from jaxrec.serving.tracking import Progress, no_progress
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import UserId


class IncrementalResult(NamedTuple):
    """Counts of an `append_new_events`.

    events: events added to states. users: users whose states were updated.
    unknown_items, late: events left out, as by `Recommender.append`.
    already_applied: users whose state has their later events (an earlier call, perhaps one
        that was killed).
    changed: users with neither the old nor the new number of events (events came another way,
        or no state was built), left as they are.
    """

    events: int
    users: int
    unknown_items: int
    late: int
    already_applied: int
    changed: int


def append_new_events(
    rec: Recommender,
    store: UserStateStore,
    base: Prepared,
    data: Prepared,
    progress: Progress = no_progress,
) -> IncrementalResult:
    """Adds the events of `data` that `base` does not have to states built from `base`.

    base: the data of the model's run. data: the same with later files (`data.append`). The call
    may be made again: a user gets the later events once. Users of shards that the store does
    not hold for writing are left to others. Raises DataError when `data` was not appended
    to `base`, or `base` is not the model's data.
    """
    check_data(rec, base)
    if base.digest not in [ancestor.digest for ancestor in data.ancestors]:
        raise DataError(
            f"{data.folder}: not appended to the data of the model's run ({base.folder})"
        )
    old_lengths = np.zeros(data.num_users, np.int64)
    old_lengths[: base.num_users] = base.lengths
    users = np.flatnonzero(data.lengths > old_lengths)
    users = users[store.owns([user.item() for user in data.users[users]])]  # others write the rest
    batches = [users[start : start + BATCH] for start in range(0, len(users), BATCH)]
    total = np.zeros(len(IncrementalResult._fields), np.int64)
    for batch in progress(batches, len(batches)):
        total += _append_batch(rec, store, base, data, batch)
    return IncrementalResult(*total.tolist())


def _append_batch(
    rec: Recommender, store: UserStateStore, base: Prepared, data: Prepared, users: np.ndarray
) -> IncrementalResult:
    """The counts of one batch; users: numbers int [B] in `data`."""
    old_records = base.source.__getitems__(users[users < base.num_users].tolist())
    ids: list[UserId] = []
    new_events: list[Events] = []
    unknown_items = already_applied = changed = 0
    columns, _ = store.read([data.users[user].item() for user in users])
    for row, record in enumerate(data.source.__getitems__(users.tolist())):
        old_times = old_records[row].times if row < len(old_records) else np.zeros(0, np.int32)
        is_new = later_events(old_times, record.times)
        known = record.items[is_new] <= rec.catalog.num_items
        stored, added = int(columns["events"][row]), int(known.sum())
        if added and stored == len(old_times) + added:
            already_applied += 1
        elif stored != len(old_times):
            changed += 1
        else:
            unknown_items += len(known) - added
            if added:
                ids.append(data.users[users[row]].item())
                new_events.append(Events(record.items[is_new][known], record.times[is_new][known]))
    appended = rec.append_dense(store, ids, new_events) if ids else None
    events, late = (0, 0) if appended is None else (appended.events, appended.late)
    return IncrementalResult(events, len(ids), unknown_items, late, already_applied, changed)


def later_events(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """bool [N]: which events were added, from a user's times [M] before and [N] after an append.

    Events of one time keep the old before the new (`jaxrec.data.append`).

    >>> later_events(np.array([1, 3, 3]), np.array([1, 2, 3, 3, 3])).tolist()
    [False, True, False, False, True]
    """
    place = np.arange(len(new)) - np.searchsorted(new, new, side="left")
    count = np.searchsorted(old, new, side="right") - np.searchsorted(old, new, side="left")
    return place >= count
