"""A user's row in the store: the encoded state and, optionally, the items the user has seen.

Everything here is NumPy on the host. Events that complete no segment are added without the model.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxrec.model import states
from jaxrec.model.recommender import Model
from jaxrec.state_store.encodings import encode_state
from jaxrec.state_store.row_format import Columns, RowSpec
from jaxrec.types import UserState

SEEN = "seen"  # column of the items a user has seen
# Encoded columns -> axis of the tokens, counted from the end.
TOKEN_COLUMNS = {
    "tokens.k": -3,
    "tokens.v": -3,
    "tokens.k_scale": -2,
    "tokens.v_scale": -2,
    "tokens.inputs": -2,
    "tokens.inputs_scale": -1,
    "tokens.outputs": -2,
    "tokens.outputs_scale": -1,
}


class Events(NamedTuple):
    """New events of one user, in time order: int32 dense items 1..V and model times [M]."""

    items: np.ndarray
    times: np.ndarray


class Merged(NamedTuple):
    """Events of B users that are not compressed yet, including the new ones.

    pending: events per user, in time order. late: int64 [B], new events that were left out because
    newer ones are compressed already.
    """

    pending: list[Events]
    late: np.ndarray


def row_spec(model: Model, encoding: str, keep_seen: int) -> RowSpec:
    """What a row of this model holds.

    encoding: of the tokens' vectors; keep_seen: items remembered per user. Raises ValueError
    without compressed tokens, and on an unknown encoding.
    """
    columns = encode_state(to_host(states.empty(model, 1)), encoding)
    if keep_seen:
        columns[SEEN] = np.zeros((1, keep_seen), np.int32)
    return RowSpec.of(columns)


def seen_capacity(spec: RowSpec) -> int:
    """How many items per user a store remembers for `exclude_seen`."""
    return next((field.shape[0] for field in spec.fields if field.name == SEEN), 0)


def check_seen(spec: RowSpec, exclude_seen: bool) -> None:
    """Raises ValueError when seen items are to be left out and the store remembers none."""
    if exclude_seen and not seen_capacity(spec):
        raise ValueError(
            "exclude_seen=True: this store does not remember what users have seen; create "
            "it with keep_seen=N (items per user), or pass exclude"
        )


def to_host(state: UserState) -> UserState:
    """The same state as NumPy arrays."""
    return jax.tree.map(np.asarray, state)


def merge(columns: Columns, events: Sequence[Events]) -> Merged:
    """Merges new events into the pending ones by time, after those of the same time.

    columns: rows [B, ...]. events: of each user, in time order. An event older than the newest
    compressed one is late: its segment is never compressed again.
    """
    merged, late = [], np.zeros(len(events), np.int64)
    for row, new in enumerate(events):
        items, times = new
        if columns["tokens.valid"][row, -1]:
            in_time = times >= columns["tokens.times"][row, -1]
            late[row] = len(times) - int(in_time.sum())
            items, times = items[in_time], times[in_time]
        pending = int(columns["pending"][row])
        items = np.concatenate([columns["items"][row, :pending], items])
        times = np.concatenate([columns["times"][row, :pending], times])
        order = np.argsort(times, kind="stable")
        merged.append(Events(items[order], times[order]))
    return Merged(merged, late)


def repeated(columns: Columns, row: int, new: Events) -> int:
    """How many new events have item and time of a pending event of their user's row."""
    pending = int(columns["pending"][row])
    if not pending:
        return 0
    known = [columns[name][row, :pending].tolist() for name in ("items", "times")]
    there = set(zip(*known, strict=True))
    return sum(event in there for event in zip(new.items.tolist(), new.times.tolist(), strict=True))


def complete_segments(pending: Events, segment_size: int, recent_min: int) -> int:
    """How many segments `pending` events complete."""
    return max(len(pending.items) - recent_min, 0) // segment_size


def set_pending(columns: Columns, row: int, pending: Events) -> None:
    """Writes events that complete no segment into their row, in place."""
    added = len(pending.items) - int(columns["pending"][row])
    for name, values in (("items", pending.items), ("times", pending.times)):
        columns[name][row] = 0
        columns[name][row, : len(values)] = values
    columns["pending"][row] = len(pending.items)
    columns["events"][row] += added


def restore_codes(old: Columns, new: Columns, tokens: int) -> None:
    """Copies the stored codes of tokens that are kept into the re-encoded columns, in place.

    old, new: columns before and after `extend`; tokens: per segment. A token is encoded once:
    decoding and encoding it again at every update would let it drift.
    """
    added = (new["segments"] - old["segments"]) * tokens
    for name, axis in TOKEN_COLUMNS.items():
        if name not in new or not new[name].size:
            continue
        before, after = np.moveaxis(old[name], axis, 1), np.moveaxis(new[name], axis, 1)
        for count in np.unique(added):
            if count < after.shape[1]:
                rows = np.flatnonzero(added == count)
                after[rows, : after.shape[1] - count] = before[rows, count:]


def remember_items(seen: np.ndarray, events: Sequence[Events]) -> np.ndarray:
    """The newest distinct items of each user, int32 [B, X], newest first, padded with 0."""
    result = np.zeros_like(seen)
    for row, (items, _) in enumerate(events):
        newest_first = np.concatenate([items[::-1], seen[row][seen[row] > 0]])
        _, first = np.unique(newest_first, return_index=True)
        newest = newest_first[np.sort(first)][: seen.shape[1]]
        result[row, : len(newest)] = newest
    return result
