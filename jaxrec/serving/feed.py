"""The events that an append added to prepared data, given to the states of a store."""

from typing import NamedTuple

import numpy as np

from jaxrec.data.prepared import Prepared
from jaxrec.errors import DataError
from jaxrec.serving.build import check_data, everything
from jaxrec.serving.rows import Events
from jaxrec.serving.service import BATCH, Recommender, Track
from jaxrec.state_store.store import UserStateStore


class Fed(NamedTuple):
    """events: now in states, of users; unknown_items, late: left out as by `Recommender.append`.

    there_before: users whose state has their later events already (an earlier call, perhaps one
    that was killed); changed: users with neither the old nor the new number of events (events
    came another way, or no state was built), left as they are.
    """

    events: int
    users: int
    unknown_items: int
    late: int
    there_before: int
    changed: int


def feed(
    rec: Recommender,
    store: UserStateStore,
    base: Prepared,
    data: Prepared,
    track: Track = everything,
) -> Fed:
    """Adds what `data` has and `base` has not; the states are those of `base`.

    base: the data of the model's run. data: the same with later files (`data.append`). May be
    called again: a user gets the later events once. Users of shards that the store does not hold
    for writing are left to others. Raises DataError when `data` was not appended
    to `base`, or `base` is not the model's data.
    """
    check_data(rec, base)
    if base.digest not in [before.digest for before in data.ancestors]:
        raise DataError(
            f"{data.folder}: not appended to the data of the model's run ({base.folder})"
        )
    old = np.zeros(data.num_users, np.int64)
    old[: base.num_users] = base.lengths
    todo = np.flatnonzero(data.lengths > old)
    names = [user.item() for user in data.users[todo]]
    todo = todo[store.owns(names)]  # others write the rest
    batches = [todo[start : start + BATCH] for start in range(0, len(todo), BATCH)]
    total = np.zeros(len(Fed._fields), np.int64)
    for batch in track(batches, len(batches)):
        total += _feed(rec, store, base, data, batch)
    return Fed(*total.tolist())


def _feed(
    rec: Recommender, store: UserStateStore, base: Prepared, data: Prepared, users: np.ndarray
) -> np.ndarray:
    """The counts of `Fed` for one batch."""
    before = base.source.__getitems__(users[users < base.num_users].tolist())
    names: list[int | str] = []
    lines: list[Events] = []
    unknown = there = changed = 0
    columns, _ = store.read([data.users[user].item() for user in users])
    for row, record in enumerate(data.source.__getitems__(users.tolist())):
        times = before[row].times if row < len(before) else np.zeros(0, np.int32)
        fresh = later(times, record.times)
        known = record.items[fresh] <= rec.catalog.num_items
        found, lacking = int(columns["events"][row]), int(known.sum())
        if lacking and found == len(times) + lacking:
            there += 1
        elif found != len(times):
            changed += 1
        else:
            unknown += len(known) - lacking
            if lacking:
                names.append(data.users[users[row]].item())
                lines.append(Events(record.items[fresh][known], record.times[fresh][known]))
    done = rec.append_dense(store, names, lines) if names else None
    events, late = (0, 0) if done is None else (done.events, done.late)
    return np.asarray([events, len(names), unknown, late, there, changed])


def later(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """bool [N]: which events were added, from a user's times [M] before and [N] behind an append.

    Events of one time keep the old before the new (`jaxrec.data.append`).
    """
    place = np.arange(len(new)) - np.searchsorted(new, new, side="left")
    count = np.searchsorted(old, new, side="right") - np.searchsorted(old, new, side="left")
    return place >= count
