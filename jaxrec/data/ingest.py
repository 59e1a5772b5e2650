"""The first pass over a source: checks every row, filters event types, writes columns to disk.

Chunk k of the input becomes the files `k.user.npy`, `k.item.npy`, ... of a scratch folder; ids are
stored as codes of `jaxrec.data.identifiers`, so no text is stored twice.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from jaxrec.data.identifiers import Ids, IntIds, TextIds
from jaxrec.data.raw import Chunk, Raw
from jaxrec.data.schema import INT32_MAX, check_ids, null_column, seconds
from jaxrec.errors import DataError
from jaxrec.runtime.progress import say

if TYPE_CHECKING:
    import polars as pl

REPORT_SECONDS = 10.0  # between two lines of progress
Column: TypeAlias = "np.ndarray | pl.Series"
Columns: TypeAlias = dict[str, Any]  # name -> Column: text ids are polars series, all else NumPy


@dataclasses.dataclass
class Spilled:
    """Events on disk, in input order.

    folder: of the chunk files. sizes: rows of each chunk. users, items: the ids, finished.
    columns: dtypes of the spilled columns: user, item, time (int64 seconds since 1970) and,
        where any row has them, fraction (int32 nanoseconds), event (uint8), returning (bool).
    rows: read from the source; events of types that are filtered out are not spilled.
    event_types: names of the values of `event`. first, last: earliest and latest time.
    """

    folder: Path
    sizes: list[int]
    users: Ids
    items: Ids
    columns: dict[str, type]
    rows: int
    event_types: tuple[str, ...]
    first: int
    last: int

    def load(self, chunk: int, column: str) -> np.ndarray:
        """One column of a chunk; zeros where the chunk has none."""
        file = self.folder / f"{chunk}.{column}.npy"
        if file.exists():
            return np.load(file)
        return np.zeros(self.sizes[chunk], self.columns[column])

    def drop(self, chunk: int) -> None:
        """Frees the disk space of a chunk."""
        for column in self.columns:
            (self.folder / f"{chunk}.{column}.npy").unlink(missing_ok=True)


class Read(NamedTuple):
    """What is known about a source once it has been read.

    users, items: all distinct raw ids, sorted. rows: how many were read. event_types: names of the
    values of `event`. first: the earliest time, in seconds since 1970.
    """

    users: np.ndarray
    items: np.ndarray
    rows: int
    event_types: tuple[str, ...]
    first: int


def ingest(
    raw: Raw, folder: Path, event_types: Sequence[str] = (), incomplete: str = "refuse"
) -> Spilled:
    """Reads all of `raw` once.

    event_types: keep only events of these types; empty: all.
    incomplete: `refuse` rows without user, item or time, or `drop` them.

    Raises DataError: no rows, bad ids or times (`jaxrec.data.schema`), files whose ids are of
    different kinds, event types that do not occur, times that span more than int32 seconds.
    """
    folder.mkdir(parents=True)
    ids: dict[str, Ids] = {}
    types = EventTypes(event_types)
    sizes: list[int] = []
    columns: dict[str, type] = {}
    rows, dropped, first, last = 0, 0, 2**63 - 1, -1
    begin = shown = time.monotonic()
    for chunk in raw.chunks():
        if not len(chunk.frame):
            continue
        rows += len(chunk.frame)
        spill, missing = check(chunk, raw, types, incomplete)
        dropped += missing
        if not len(spill["time"]):
            continue
        for name in ("user", "item"):
            spill[name] = _encode(ids, name, spill[name], getattr(raw.names, name), chunk.source)
        first = min(first, int(spill["time"].min()))
        last = max(last, int(spill["time"].max()))
        for name, column in spill.items():
            np.save(folder / f"{len(sizes)}.{name}.npy", column)
            columns[name] = column.dtype.type
        sizes.append(len(spill["time"]))
        now = time.monotonic()
        if now - shown > REPORT_SECONDS:
            say(f"data: read {rows:,} rows, {rows / (now - begin):,.0f} a second")
            shown = now
    check_whole(raw, types, rows, dropped, sum(sizes), first, last)
    elapsed = max(time.monotonic() - begin, 1e-9)
    say(f"data: read {rows:,} rows in {elapsed:.1f} s, {rows / elapsed:,.0f} a second")
    for name in ("user", "item"):
        ids[name].finish()
    return Spilled(folder, sizes, ids["user"], ids["item"], columns, rows, types.names, first, last)


def check_whole(
    raw: Raw, types: "EventTypes", rows: int, dropped: int, kept: int, first: int, last: int
) -> None:
    """Checks what only the whole source shows, and prints how many rows were dropped.

    Raises DataError when no row is left, requested event types do not occur, or the times span more
    than int32 seconds.
    """
    if not rows:
        raise DataError(f"{raw.source}: no rows. Give a table with at least one event")
    if not kept:
        what = f"all {rows:,} are incomplete" if dropped == rows else "no event is of its types"
        raise DataError(
            f"{raw.source}: no rows are left, {what}. Change data.event_types or repair the table"
        )
    types.check_seen(raw.source, raw.names.event)
    if last - first > INT32_MAX:
        raise DataError(
            f"{raw.source}: times span {last - first} seconds "
            f"({(last - first) / 31556952:.0f} years), more than int32 seconds can hold "
            f"({INT32_MAX}). Remove events with wrong times"
        )
    if dropped:
        say(f"data: {dropped_rows(dropped, rows)}")


class EventTypes:
    """Event types of a source, numbered in order of appearance: 0, 1, ...

    requested: the types to keep; empty: all. numbers: name -> number. seen: all types that occur.
    """

    def __init__(self, requested: Sequence[str]) -> None:
        self.requested = tuple(requested)
        self.numbers: dict[str, int] = {name: i for i, name in enumerate(self.requested)}
        self.seen: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of their numbers."""
        return tuple(self.numbers)

    def encode(self, series: "pl.Series", source: str, column: str) -> np.ndarray:
        """int16 [N] numbers, -1 for types that were not requested. Raises DataError for nulls."""
        import polars as pl

        if series.null_count():
            raise null_column(
                source, column, series.null_count(), int(series.is_null().arg_max() or 0)
            )
        texts = series.cast(pl.String)
        for name in texts.unique(maintain_order=True).to_list():
            self.seen.add(name)
            if not self.requested:
                self.numbers.setdefault(name, len(self.numbers))
        self.check_number(source, column)
        return texts.replace_strict(self.numbers, default=-1, return_dtype=pl.Int16).to_numpy()

    def check_number(self, source: str, column: str) -> None:
        """Raises DataError for more types than uint8 can number."""
        if len(self.numbers) > 255:
            raise DataError(
                f"{source}: column {column!r} has more than 255 different values, such as "
                f"{sorted(self.numbers)[:3]}: event types are a few. Choose another "
                "data.event_column"
            )

    def check_seen(self, source: str, column: str) -> None:
        """Raises DataError when a requested type does not occur."""
        missing = [name for name in self.requested if name not in self.seen]
        if missing:
            raise DataError(
                f"{source}: data.event_types names {missing[0]!r}, but no event is of this type. "
                f"Column {column!r} holds: {', '.join(sorted(self.seen)) or 'nothing'}"
            )


def check(
    chunk: Chunk, raw: Raw, types: EventTypes, incomplete: str = "refuse"
) -> tuple[Columns, int]:
    """(checked columns of the events to keep, number of incomplete rows that were dropped).

    Ids are int64 arrays or polars texts, all other columns are arrays. Raises DataError.
    """
    names = {name: getattr(raw.names, name) for name in ("user", "item", "time")}
    whole = complete_rows(chunk.frame, names, chunk.source, chunk.first_row, incomplete)
    columns = _columns(chunk._replace(frame=whole), raw, types)
    return columns, len(chunk.frame) - len(whole)


def complete_rows(
    frame: "pl.DataFrame", names: Mapping[str, str], source: str, first_row: int, incomplete: str
) -> "pl.DataFrame":
    """The rows that have user, item and time; the others are dropped where `incomplete` is drop.

    names: column of the frame -> what it is called in messages. first_row: number of the frame's
    first row in its source. Raises DataError for rows that lack one and are not to be dropped.
    """
    if incomplete == "drop":
        return frame.drop_nulls()
    for column, name in names.items():
        if nulls := frame[column].null_count():
            first = int(frame[column].is_null().arg_max() or 0)
            raise null_column(source, name, nulls, first + first_row)
    return frame


def dropped_rows(dropped: int, rows: int) -> str:
    """What is said of incomplete rows that were dropped."""
    return f"{dropped:,} of {rows:,} rows have no user, item or time: dropped"


def _columns(chunk: Chunk, raw: Raw, types: EventTypes) -> Columns:
    frame, source, row = chunk.frame, chunk.source, chunk.first_row
    spill: Columns = {}
    for name in ("user", "item"):
        spill[name] = _ids(frame[name], getattr(raw.names, name), source, row)
    moment = to_numpy(frame["time"])
    spill["time"], fraction = seconds(moment, raw.names.time, source, raw.time_unit, row)
    if fraction is not None:
        spill["fraction"] = fraction
    if "returning" in frame.columns:
        spill["returning"] = frame["returning"].to_numpy()
    if "event" not in frame.columns:
        return spill
    event = types.encode(frame["event"], source, raw.names.event)
    spill["event"] = event.astype(np.uint8)
    kept = event >= 0
    if kept.all():
        return spill
    rows = np.flatnonzero(kept)  # arrays and polars texts alike take row numbers
    return {name: column[rows] for name, column in spill.items()}


def _ids(series: "pl.Series", name: str, source: str, first_row: int) -> Column:
    import polars as pl

    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        return check_ids(to_numpy(series), name, source, first_row)
    return series


def _encode(ids: dict[str, Ids], which: str, values: Column, name: str, source: str) -> np.ndarray:
    """Codes of one column; its first chunk decides whether ids are integers or texts."""
    kind: type[IntIds | TextIds] = IntIds if isinstance(values, np.ndarray) else TextIds
    known = ids.setdefault(which, kind())
    if not isinstance(known, kind):
        here, before = ("integers", "text") if kind is IntIds else ("text", "integers")
        raise DataError(
            f"{source}: ids of column {name!r} are {here}, those of the files before it {before}. "
            f"Convert one of them, or set data.{which}_kind=text (table)"
        )
    return known.add(values)


def to_numpy(series: "pl.Series") -> np.ndarray:
    """NumPy values; datetimes in UTC, integers beyond int64 and texts as objects."""
    import polars as pl

    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype == pl.Date:
        series = series.cast(pl.Datetime("ms"))
    if series.dtype == pl.Datetime and series.dtype.time_zone is not None:  # type: ignore[attr-defined]
        # NumPy datetimes have no zone; polars stores UTC underneath
        series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    if series.dtype in (pl.Int128, pl.UInt128):  # CSV integers beyond int64
        return np.asarray([*series.to_list(), None], object)[:-1]
    return series.to_numpy()
