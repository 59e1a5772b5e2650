"""Adds new events to stored rows: `Recommender.append` after its input has been checked."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxrec.serving import buckets, state_rows
from jaxrec.serving.compiled import CompiledModel
from jaxrec.serving.state_rows import Events
from jaxrec.state_store.encodings import decode_state, encode_state
from jaxrec.state_store.row_format import Columns
from jaxrec.state_store.store import UserStateStore
from jaxrec.types import UserId

# What computing costs beside its rows, in turns of one row: one for every turn (timed by hand on a
# CPU; on an accelerator it may be more) and a few for every call.
TURN, CALL = 1, 8


class AppendResult(NamedTuple):
    """Counts of an `append`.

    events: events added to states.
    users: users whose states were updated.
    unknown_items: events left out because the model does not know their items.
    late: events left out because newer ones of their user are compressed already.
    already_applied: users whose states had these very events and were left unchanged
        (`idempotent`).
    repeated: of `events`, those that a state had already, same item and time, and has twice now: of
        a file that overlaps with an earlier one. Compressed events are not known any more.
    incomplete: rows without user, item or time that were left out of files and frames
        (`data.incomplete=drop`).
    """

    events: int
    users: int
    unknown_items: int
    late: int
    already_applied: int = 0
    repeated: int = 0
    incomplete: int = 0


class UserCounts(NamedTuple):
    """Of one user's new events: added to the state, left out as late, and added once more."""

    added: int
    late: int
    repeated: int


def append_events(
    model: CompiledModel,
    store: UserStateStore,
    users: Sequence[UserId],
    events: Sequence[Events],
    *,
    idempotency_key: tuple[str, int] | None = None,
) -> AppendResult:
    """Adds the events of distinct users to their rows, in one update of the store.

    events: of each user, in time order, dense ids. idempotency_key: as in
    `UserStateStore.update`.
    """
    counts = append_counts(model, store, users, events, idempotency_key=idempotency_key)
    added, late, repeated = np.asarray([(0, 0, 0), *counts.values()]).sum(0).tolist()
    return AppendResult(
        events=added,
        users=len(counts),
        unknown_items=0,
        late=late,
        already_applied=len(users) - len(counts),
        repeated=repeated,
    )


def append_counts(
    model: CompiledModel,
    store: UserStateStore,
    users: Sequence[UserId],
    events: Sequence[Events],
    *,
    idempotency_key: tuple[str, int] | None = None,
) -> dict[UserId, UserCounts]:
    """`append_events` with the counts of each user; users that had these events are left out."""
    events_of = dict(zip(users, events, strict=True))
    encoding = store.metadata.binding.encoding
    counts: dict[UserId, UserCounts] = {}

    def update(ids: list[UserId], columns: Columns, known: np.ndarray) -> Columns:
        del known  # rows of new users are zero: an empty state
        new = [events_of[user] for user in ids]
        result, late = updated_rows(model, columns, new, encoding)
        repeated = [state_rows.repeated(columns, row, added) for row, added in enumerate(new)]
        for user, dropped, added, twice in zip(ids, late.tolist(), new, repeated, strict=True):
            counts[user] = UserCounts(len(added.items) - dropped, dropped, twice)
        return result

    store.update(list(users), update, idempotency_key=idempotency_key)
    return counts


def updated_rows(
    model: CompiledModel, columns: Columns, events: Sequence[Events], encoding: str
) -> tuple[Columns, np.ndarray]:
    """Rows [B, ...] with the new events, and the number of late events per user, int64 [B].

    The model runs only for users whose events complete a segment.
    """
    layout = model.config.layout
    result = {name: np.array(column) for name, column in columns.items()}
    pending, late = state_rows.merge(columns, events)
    complete = np.asarray(
        [state_rows.complete_segments(e, layout.segment_size, layout.recent_min) for e in pending]
    )
    for row in np.flatnonzero(complete == 0):
        state_rows.set_pending(result, int(row), pending[row])
    for rows in of_similar_work(complete, model.shapes.users):
        chosen = {n: c[rows] for n, c in columns.items() if n != state_rows.SEEN}
        extended = _extended_rows(model, chosen, [pending[row] for row in rows], encoding)
        for name, column in extended.items():
            result[name][rows] = column
    if state_rows.SEEN in result:
        result[state_rows.SEEN] = state_rows.remember_items(columns[state_rows.SEEN], events)
    return result, late


def of_similar_work(segments: np.ndarray, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Rows whose `segments` [B] are not 0, in parts of which each computes few in vain.

    A call to the model has one of `sizes` rows and takes as many turns as the longest of them
    needs. Each part is the one with the most needed turns for its cost.

    >>> work = np.array([1, 90, 0, 1, 1, 100, 99, 99])
    >>> [part.tolist() for part in of_similar_work(work, (1, 4, 16))]
    [[0, 3, 4], [1, 6, 7, 5]]
    >>> [part.tolist() for part in of_similar_work(work[:6], (1, 4, 16))]
    [[0, 3, 4], [1], [5]]
    """
    order = np.argsort(segments, kind="stable")
    order = order[np.searchsorted(segments[order], 1) :]
    while len(order):
        needed = segments[order]
        rows = np.asarray([buckets.size_of(count + 1, sizes) for count in range(len(order))])
        # of the part that ends with each row
        cost = needed * (rows + TURN) + CALL
        count = int(np.argmax(np.cumsum(needed) / cost)) + 1
        yield order[:count]
        order = order[count:]


def _extended_rows(
    model: CompiledModel, columns: Columns, pending: Sequence[Events], encoding: str
) -> Columns:
    """Rows [B, ...] after the model has compressed the segments that `pending` events complete.

    pending: of each user, all events that are not compressed yet: those of the row, then new ones.
    """
    layout, shapes = model.config.layout, model.shapes
    size = buckets.size_of(len(pending), shapes.users)
    state = decode_state({n: buckets.fill(c, size) for n, c in columns.items()}, encoding)
    state = state._replace(
        pending=np.zeros_like(state.pending), events=state.events - state.pending
    )
    lengths = buckets.fill(np.asarray([len(events.items) for events in pending], np.int32), size)
    start, longest = 0, int(lengths.max())
    while start < longest:
        remaining = min(longest - start, layout.recent + shapes.events[-1])
        width = layout.recent + buckets.size_of(remaining - layout.recent, shapes.events)
        items, times = (np.zeros((size, width), np.int32) for _ in range(2))
        for row, events in enumerate(pending):
            cut = slice(start, start + width)
            items[row, : len(events.items[cut])] = events.items[cut]
            times[row, : len(events.times[cut])] = events.times[cut]
        counts = np.clip(lengths - start, 0, width).astype(np.int32)
        state = model.extend(model.params, state, items, times, counts)
        start += width
    encoded = encode_state(state_rows.to_host(state), encoding)
    result = {name: np.array(column[: len(pending)]) for name, column in encoded.items()}
    state_rows.restore_codes(columns, result, layout.tokens)
    return result
