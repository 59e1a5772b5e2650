"""Appends of clients into the store: grouped, exactly once, and into a new store."""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxrec.data import schema
from jaxrec.errors import DataError
from jaxrec.server.journal import Columns, Counts, Group
from jaxrec.server.messages import EventBody
from jaxrec.serving import raw_inputs, updates
from jaxrec.serving.raw_inputs import NewEvents
from jaxrec.serving.service import Recommender
from jaxrec.serving.state_rows import Events
from jaxrec.serving.updates import UserCounts
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import UserId


def complete(events: Sequence[EventBody], incomplete: str) -> Columns:
    """The events of a client that have user, item and time; the others are dropped or refused.

    incomplete: `data.incomplete`. Raises DataError in the words of training data.
    """
    fields = ("user", "item", "time")
    for name, field in zip(raw_inputs.NAMES, fields, strict=True):
        nulls = [number for number, event in enumerate(events) if getattr(event, field) is None]
        if nulls and incomplete != "drop":
            error = schema.null_column("append", name, len(nulls), nulls[0])
            raise DataError(_in_words_of_events(str(error)))
    columns = Columns([], [], [])
    for event in events:
        if event.user is not None and event.item is not None and event.time is not None:
            columns.users.append(event.user)
            columns.items.append(event.item)
            columns.times.append(event.time)
    if not columns.users:
        raise DataError(f"events: no rows are left, all {len(events):,} are incomplete")
    return columns


def encode(rec: Recommender, columns: Columns) -> NewEvents:
    """Events of a client in the model's ids and times. Raises DataError naming the field."""
    try:
        return raw_inputs.new_events(columns.users, columns.items, columns.times, rec.catalog)
    except (DataError, TypeError, ValueError) as error:
        raise DataError(_in_words_of_events(str(error))) from error


def _in_words_of_events(message: str) -> str:
    for name, field in zip(raw_inputs.NAMES, ("user", "item", "time"), strict=True):
        message = message.replace(repr(name), f"events.{field}")
    return message.removeprefix("append: ").replace("in row ", "at position ")


def write(rec: Recommender, store: UserStateStore, group: Group) -> list[Counts]:
    """Adds a group of appends with distinct users to the states; durable when it returns.

    Repeated after a failure, it adds what is missing and nothing twice. Raises StoreError.
    """
    appends = [encode(rec, entry.columns) for entry in group.entries]
    users = [user for append in appends for user in append.users]
    events = [new for append in appends for new in append.events]
    counts: dict[UserId, UserCounts] = {}
    # users of a batch need about the same work
    order = np.argsort([len(new.items) for new in events], kind="stable").tolist()
    for number, start in enumerate(range(0, len(order), group.batch)):
        chosen = order[start : start + group.batch]
        counts |= updates.append_counts(
            rec.compiled,
            store,
            [users[i] for i in chosen],
            [events[i] for i in chosen],
            idempotency_key=(group.source, number),
        )
    return [_counts(append, counts) for append in appends]


def _counts(append: NewEvents, counts: dict[UserId, UserCounts]) -> Counts:
    mine = [counts[user] for user in append.users if user in counts]
    added, late, repeated = np.asarray([(0, 0, 0), *mine]).sum(0).tolist()
    return added, len(mine), append.unknown_items, late, repeated


def replay(
    rec: Recommender, store: UserStateStore, history: Iterable[Columns | list[UserId]], batch: int
) -> int:
    """Brings a new store up to date with a journal; returns how many events were added.

    A user's newest event in the store tells what is missing, so the call may be repeated. Users
    that were forgotten are forgotten there too.
    """
    columns: dict[UserId, Columns] = {}
    forgotten: list[UserId] = []
    for line in history:
        if isinstance(line, list):
            forgotten += line
            for user in line:
                columns.pop(user, None)
            continue
        for user, item, time in zip(line.users, line.items, line.times, strict=True):
            mine = columns.setdefault(user, Columns([], [], []))
            mine.users.append(user)
            mine.items.append(item)
            mine.times.append(time)
    if forgotten:
        store.delete(list(dict.fromkeys(forgotten)))
    added = 0
    users = list(columns)
    for start in range(0, len(users), batch):
        added += _add_missing(rec, store, [columns[user] for user in users[start : start + batch]])
    return added


def _add_missing(rec: Recommender, store: UserStateStore, users: Sequence[Columns]) -> int:
    appends = [append for append in (encode(rec, columns) for columns in users) if append.users]
    if not appends:
        return 0
    names = [append.users[0] for append in appends]
    rows, _ = store.read(names)
    missing = [missing_events(rows, row, append.events[0]) for row, append in enumerate(appends)]
    chosen = [i for i, events in enumerate(missing) if len(events.items)]
    if not chosen:
        return 0
    added = rec.append_dense(store, [names[i] for i in chosen], [missing[i] for i in chosen])
    return added.events


def missing_events(rows: dict[str, np.ndarray], row: int, events: Events) -> Events:
    """The events, in time order, that a user's row does not have.

    Those behind its newest event, and those of the same second that are not among its pending
    ones. Compressed events of that second are not known any more: nothing is added beside them.
    """
    pending = int(rows["pending"][row])
    items, times = rows["items"][row, :pending].tolist(), rows["times"][row, :pending].tolist()
    compressed = int(rows["tokens.times"][row, -1]) if rows["tokens.valid"][row, -1] else None
    newest = max([*times, *([] if compressed is None else [compressed])], default=None)
    if newest is None:
        return events
    there = [item for item, time in zip(items, times, strict=True) if time == newest]
    keep = np.zeros(len(events.items), bool)
    for index, (item, time) in enumerate(zip(*(c.tolist() for c in events), strict=True)):
        if time > newest:
            keep[index] = True
        elif time == newest and compressed != newest:
            if item in there:
                there.remove(item)
            else:
                keep[index] = True
    return Events(events.items[keep], events.times[keep])
