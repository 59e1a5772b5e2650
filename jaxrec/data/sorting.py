"""Checked events -> events by user and time, in the bounded memory of an SQL engine.

The steps are queries over parquet files of a scratch folder, so they run in this process, or each
where a Beam worker runs it (`jaxrec.data.beam`).

A bucket is a range of users in raw id order with about `BUCKET` events; what it holds depends on
the data alone.
"""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxrec.data import database

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BUCKET = 1 << 21  # events of a bucket; also decides the shards of the records
KEYS = ("user", "time", "fraction", "row")  # of the order
KEPT = ("user", "item", "time", "event", "returning")
KINDS = {"fraction": "INTEGER", "event": "UTINYINT", "returning": "BOOLEAN"}  # not in all files
READ_MEGABYTES = 256  # for the reading of a bucket, which streams


class Events(NamedTuple):
    """Sorted events of consecutive users.

    counts: int64 [U] events of each user. items: int32 [N] item ranks (or dense ids).
    times: int32 [N] seconds since the earliest event. event: uint8 [N] or None, its type.
    returning: bool [N] or None.
    """

    counts: np.ndarray
    items: np.ndarray
    times: np.ndarray
    event: np.ndarray | None = None
    returning: np.ndarray | None = None

    def select(self, rows: np.ndarray) -> "Events":
        """The events of a mask [N]; users without any stay."""
        user = np.repeat(np.arange(len(self.counts)), self.counts)
        return Events(
            np.bincount(user[rows], minlength=len(self.counts)),
            self.items[rows],
            self.times[rows],
            None if self.event is None else self.event[rows],
            None if self.returning is None else self.returning[rows],
        )

    def of_users(self, chosen: np.ndarray) -> "Events":
        """The users of a mask [U] with their events."""
        kept = self.select(np.repeat(chosen, self.counts))
        return kept._replace(counts=kept.counts[chosen])


@dataclasses.dataclass
class Sorted:
    """Sorted events on disk: columns user and item (ranks), time, and perhaps event, returning.

    files: the parquet file of each bucket; several may share one. bounds: int64 [B + 1], bucket b
    holds users bounds[b]..bounds[b+1] by rank. duplicates: rows that repeat an earlier one.
    repeats: rows the repeat rule dropped.
    """

    files: list[Path]
    bounds: np.ndarray
    duplicates: int
    repeats: int

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def query(self) -> str:
        """SQL of all events."""
        return database.parquet(*dict.fromkeys(self.files))

    def load(self, bucket: int) -> Events:
        """The events of one bucket; items are ranks."""
        first, stop = int(self.bounds[bucket]), int(self.bounds[bucket + 1])
        file = self.files[bucket]
        query = f"FROM {database.parquet(file)} WHERE user >= {first} AND user < {stop}"
        with database.opened(file.parent, threads=1, megabytes=READ_MEGABYTES) as connection:
            columns = connection.execute(query).fetchnumpy()
        return Events(
            np.bincount(columns["user"] - first, minlength=stop - first),
            columns["item"],
            columns["time"],
            columns.get("event"),
            columns.get("returning"),
        )


def ids_of_rows(rows: str, name: str) -> str:
    """SQL of (id, events) of the rows that some SQL reads. name: user or item."""
    return f"SELECT {name} AS id, 1 AS events FROM {rows}"


def id_file(folder: Path, name: str) -> Path:
    """Where `ranked` finds all ids. name: user or item."""
    return folder / f"{name}s.parquet"


def rank(connection: "DuckDBPyConnection", ids: str, file: Path) -> tuple[np.ndarray, np.ndarray]:
    """(distinct ids of (id, events) rows, sorted; int64 [K] events of each); writes both to `file`.

    Ids are int64 or `U` [K]; texts are sorted by code point, as in NumPy and Python.
    """
    connection.execute(
        f"COPY (SELECT id, sum(events)::BIGINT AS events FROM ({ids}) GROUP BY id ORDER BY id) "
        f"TO {database.text(file)} (FORMAT parquet)"
    )
    known = connection.execute(f"FROM {database.parquet(file)}").fetchnumpy()
    texts = known["id"].dtype.kind == "O"
    return known["id"].astype(np.str_ if texts else np.int64), known["events"]


def ranked(chunks: str, columns: list[str], folder: Path, first: int) -> str:
    """SQL of chunks' rows with ranks for ids and int32 seconds since `first` for times.

    chunks: SQL that reads checked rows (`jaxrec.data.ingest`). columns: of the rows.
    """
    users, items = (
        database.parquet(id_file(folder, name), options="file_row_number = true")
        for name in ("user", "item")
    )
    # columns that not all files have are 0 in the others
    rest = [f'coalesce("{c}", CAST(0 AS {KINDS[c]})) AS "{c}"' for c in columns if c in KINDS]
    selected = ", ".join(
        [
            "users.file_row_number::INTEGER AS user",
            "items.file_row_number::INTEGER AS item",
            f"(time - {first})::INTEGER AS time",
            "row",
            *rest,
        ]
    )
    return (
        f"SELECT {selected} FROM {chunks} AS chunks "
        f"JOIN {users} AS users ON chunks.user = users.id "
        f"JOIN {items} AS items ON chunks.item = items.id"
    )


def bounds_of(counts: np.ndarray) -> np.ndarray:
    """int64 [B + 1]: buckets of consecutive users with about `BUCKET` rows, from rows per user."""
    start = np.cumsum(counts) - counts
    bounds = np.flatnonzero(np.diff(start // BUCKET, prepend=-1))
    return np.concatenate([bounds, [len(counts)]]).astype(np.int64)


def arrange(
    connection: "DuckDBPyConnection",
    rows: str,
    columns: list[str],
    file: Path,
    *,
    duplicates: str,
    repeats: str,
) -> tuple[int, int]:
    """Sorts rows into `file`, stably: events of one time keep input order.

    rows: SQL of `ranked` rows. columns: theirs.
    duplicates: `keep` or `drop` rows equal to an earlier one in user, item, time and type.
    repeats: `keep`, or drop events whose item is that of the event before (`consecutive`) or one
        that the user had before (`first`).

    Returns how many rows equal an earlier one, and how many the repeat rule dropped.
    """
    order = ", ".join(key for key in KEYS if key in columns)
    kept = ", ".join(f'"{column}"' for column in KEPT if column in columns)
    draft = file.with_suffix(".draft")
    _copy(connection, f"SELECT {kept} FROM ({rows}) ORDER BY {order}", draft)
    placed = database.parquet(draft, options="file_row_number = true")
    copies = _find_copies(connection, placed, "event" in columns)
    if not (copies and duplicates == "drop") and repeats == "keep":
        os.replace(draft, file)
        return copies, 0
    once = placed
    if duplicates == "drop":
        once = f"(FROM {placed} ANTI JOIN copies USING (file_row_number))"
    rule = {
        "keep": "",
        "first": "QUALIFY row_number() OVER (PARTITION BY user, item ORDER BY file_row_number) = 1",
        "consecutive": "QUALIFY lag(item) OVER (PARTITION BY user ORDER BY file_row_number) "
        "IS DISTINCT FROM item",
    }[repeats]
    chosen = f"SELECT * FROM {once} {rule}"
    _copy(connection, f"SELECT {kept} FROM ({chosen}) ORDER BY file_row_number", file)
    before, after = (
        connection.execute(f"SELECT count(*) FROM {database.parquet(path)}").fetchall()[0][0]
        for path in (draft, file)
    )
    draft.unlink()
    dropped = copies if duplicates == "drop" else 0
    return copies, before - dropped - after


def _find_copies(connection: "DuckDBPyConnection", placed: str, typed: bool) -> int:
    """Makes a table `copies` of the rows that repeat an earlier one; returns how many.

    Only rows that share user and time with a neighbour are compared: most data has few.
    """
    equal = "user = {0}(user) OVER () AND time = {0}(time) OVER ()"
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE copies AS "
        f"WITH tied AS (SELECT * FROM (SELECT *, {equal.format('lag')} AS before, "
        f"{equal.format('lead')} AS behind FROM {placed}) WHERE before OR behind) "
        f"SELECT file_row_number FROM tied QUALIFY row_number() OVER (PARTITION BY user, time, item"
        f"{', event' if typed else ''} ORDER BY file_row_number) > 1"
    )
    return int(connection.execute("SELECT count(*) FROM copies").fetchall()[0][0])


def _copy(connection: "DuckDBPyConnection", query: str, file: Path) -> None:
    connection.execute(f"COPY ({query}) TO {database.text(file)} (FORMAT parquet, COMPRESSION lz4)")
