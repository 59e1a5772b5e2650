"""A prepared data set: users, items and events, read from disk on demand."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec.data import records
from jaxrec.data.histories import Histories
from jaxrec.data.splits import Boundaries
from jaxrec.data.vocabulary import MAX_BYTES, Vocabulary
from jaxrec.errors import DataError
from jaxrec.types import Json
from jaxrec.untrusted import json_objects


class Ancestor(NamedTuple):
    """A data set that later files were added to: its digest and how many users and items it had."""

    digest: str
    users: int
    items: int


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """A data set ready for training and evaluation; users are 0..U-1, items 1..V.

    folder: of its files. digest: 12 hex digits that identify content and split.
    vocabulary: raw item ids. users: raw user ids [U].
    offsets: int64 [U + 1], events before each user.
    boundaries: of training, validation and test events.
    counts: int64 [V + 1], training events per item.
    time_origin: seconds since 1970 that event times count from.
    source: the users' records, read from disk on demand; picklable.
    report: numbers of the preparation (rows, duplicates, users, items, events).
    event_types: names of the values of `Record.event`; empty: events have no types.
    ancestors: what `data.append` was added to, oldest first; their users and items are the first
        of these.
    """

    folder: Path
    digest: str
    vocabulary: Vocabulary
    users: np.ndarray
    offsets: np.ndarray
    boundaries: Boundaries
    counts: np.ndarray
    time_origin: int
    source: records.RecordSource
    report: Json
    event_types: tuple[str, ...] = ()
    ancestors: tuple[Ancestor, ...] = ()

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.users)

    @property
    def num_items(self) -> int:
        """V, padding not counted."""
        return len(self.vocabulary)

    @property
    def lengths(self) -> np.ndarray:
        """int64 [U], events per user."""
        return np.diff(self.offsets)

    @functools.cached_property
    def histories(self) -> Histories:
        """All events in memory, read once on first use (9 bytes per event)."""
        size = int(self.offsets[-1])
        items, times = np.zeros(size, np.int32), np.zeros(size, np.int32)
        returning: np.ndarray | None = None
        for user, record in enumerate(read_all(self.source, self.num_users)):
            events = slice(self.offsets[user], self.offsets[user + 1])
            items[events], times[events] = record.items, record.times
            if record.returning is not None:
                returning = np.zeros(size, bool) if returning is None else returning
                returning[events] = record.returning
        return Histories(self.offsets, items, times, self.users, returning)

    @functools.cached_property
    def texts(self) -> dict[str, list[str]] | None:
        """Column -> text of every dense item id (entry 0 and unknown items: empty), or None."""
        file = self.folder / "texts.json"
        if not file.exists():
            return None
        columns = json_objects.read(file, DataError, max_bytes=MAX_BYTES)
        for name, texts in columns.items():
            json_objects.check(texts, list, f"{file}: damaged: {name}", DataError)
            json_objects.texts(texts, f"{file}: damaged: a text of {name}", DataError)
        return columns


def read_all(
    source: records.RecordSource, users: int, chunk: int = 1024
) -> Iterator[records.Record]:
    """The records of users 0..users-1, read in chunks."""
    for start in range(0, users, chunk):
        yield from source.__getitems__(range(start, min(start + chunk, users)))
