"""Files between the environments: events and targets go in, ranks and curves come out.

    <runs>/<data>/events.npz                      the prepared data set, made by `export`
    <runs>/<data>/<name>/seed<k>/ranks.npz        one rank per test target, seen filtered and not
    <runs>/<data>/<name>/seed<k>/cell.json        curve, seconds, settings; written last

NumPy alone. Dimension letters: U users, N events, P targets, E input slots, V items.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

# an object of a JSON file; `jaxrec.types` is not there in the environments of the peers
Json: TypeAlias = dict[str, Any]

EVENTS, RANKS, CELL = "events.npz", "ranks.npz", "cell.json"
SPLITS = ("validation", "test")


class Events(NamedTuple):
    """A prepared data set. Items are 1..num_items; the first event of a user is never a target.

    offsets: int64 [U + 1], events before each user. items: int32 [N]. times: int64 [N], seconds
    since 1970, ascending per user. train_end, validation_end: int64 [U], a user's events before
    the first train, those between validate, the rest test. validated: int64, users whose
    validation targets choose the best weights. digest: identifies content and split.
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    train_end: np.ndarray
    validation_end: np.ndarray
    validated: np.ndarray
    num_items: int
    digest: str

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U]."""
        return np.diff(self.offsets)

    def history(self, user: int) -> np.ndarray:
        """All items of a user, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


class Targets(NamedTuple):
    """int64 [P] each: user, position in the user's history, item. Ordered by user, position."""

    user: np.ndarray
    position: np.ndarray
    item: np.ndarray


class Windows(NamedTuple):
    """Inputs of a model, oldest first, filled up on the left with 0.

    items: int32 [R, E]; times: int64 [R, E + 1], the last column the time of the row's last
    target, filled up with the oldest time. row, slot: int64 [P], where the output for
    each target is: it predicts the event behind that slot.
    """

    items: np.ndarray
    times: np.ndarray
    row: np.ndarray
    slot: np.ndarray


def save_events(file: pathlib.Path, events: Events) -> None:
    """Writes a prepared data set."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(file, events._asdict())


def load_events(file: pathlib.Path) -> Events:
    """The prepared data set; raises SystemExit naming the command when it is missing."""
    if not file.is_file():
        raise SystemExit(f"{file}: missing; python -m benchmarks.peers.export makes it")
    with np.load(file) as stored:
        values = dict(stored)
    return Events(
        **values | {"num_items": int(values["num_items"]), "digest": str(values["digest"])}
    )


def targets(events: Events, split: str, users: np.ndarray | None = None) -> Targets:
    """The targets of a split of all (or these) users. Raises ValueError for another split."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
    test = split == "test"
    first = np.maximum(events.validation_end if test else events.train_end, 1)
    stop = events.lengths if test else events.validation_end
    chosen = np.arange(len(first)) if users is None else np.sort(users)
    count = np.maximum(stop - first, 0)[chosen]
    user = np.repeat(chosen, count)
    position = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count) + first[user]
    return Targets(user, position, events.items[events.offsets[user] + position].astype(np.int64))


def windows(
    events: Events, targets: Targets, length: int, shared: bool, known: np.ndarray | None = None
) -> Windows:
    """The newest `length` events before each target.

    shared: one row per user, of the events before its last target, in which an earlier
    target sees what the row has of the events before it (a causal model answers all at once).
    known: bool [V + 1], items that a model can read; events of others are left out.
    Raises ValueError where a row would hold less than one event of what a target follows.
    """
    user, position, _ = targets
    opens = np.flatnonzero(np.diff(user, prepend=-1)) if shared else np.arange(len(user))
    closes = np.append(opens[1:], len(user))
    items = np.zeros((len(opens), length), np.int32)
    times = np.zeros((len(opens), length + 1), np.int64)
    row, slot = np.zeros(len(user), np.int64), np.zeros(len(user), np.int64)
    for number, (start, stop) in enumerate(zip(opens, closes, strict=True)):
        base, last = events.offsets[user[start]], position[stop - 1]
        history = events.items[base : base + last]
        readable = np.ones(last, bool) if known is None else known[history]
        kept = np.flatnonzero(readable)[-length:]
        room = length - len(kept)
        items[number, room:] = history[kept]
        moments = np.append(events.times[base + kept], events.times[base + last])
        times[number] = np.concatenate([np.repeat(moments[:1], room), moments])
        before = np.searchsorted(kept, position[start:stop])  # kept events before each target
        if (before == 0).any() and len(kept) == length:
            raise ValueError(f"length={length}: a user's targets need more input than that")
        row[start:stop], slot[start:stop] = number, room - 1 + before
    return Windows(items, times, row, np.minimum(slot, length - 1))


def training(events: Events) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(user, item, time) of all training events, user after user, oldest first."""
    user = np.repeat(np.arange(len(events.lengths)), events.lengths)
    kept = np.arange(len(user)) - events.offsets[user] < events.train_end[user]
    return user[kept], events.items[kept].astype(np.int64), events.times[kept]


def cell_folder(runs: pathlib.Path, data: str, name: str, seed: int) -> pathlib.Path:
    """Where a cell is."""
    return runs / data / name / f"seed{seed}"


def save_cell(
    folder: pathlib.Path, targets: Targets, ranks: Mapping[str, np.ndarray], facts: Json
) -> None:
    """Ranks, then facts: a cell with facts is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    write_arrays(folder / RANKS, {**targets._asdict(), **ranks})
    write_json(folder / CELL, facts)


def load_cell(folder: pathlib.Path) -> tuple[Json, dict[str, np.ndarray]]:
    """(facts, arrays of `ranks.npz`)."""
    with np.load(folder / RANKS) as stored:
        return json.loads((folder / CELL).read_text()), dict(stored)


def write_arrays(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz file, whole or not at all."""
    draft = file.with_name(f".{file.stem}.tmp.npz")
    np.savez_compressed(draft, **arrays)  # type: ignore[arg-type]
    os.replace(draft, file)


def write_json(file: pathlib.Path, value: Json) -> None:
    """Writes a JSON file, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.tmp")
    draft.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(draft, file)
