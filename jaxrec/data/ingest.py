"""The first pass over a source: checks every row, filters event types, writes the rows to disk.

Chunk k of part p of the input becomes the file `p.k.parquet` of a scratch folder, with columns
user, item, time (int64 seconds since 1970), row (number of the row in the input) and, where the
chunk has them, fraction (int32 nanoseconds), event (uint8) and returning (bool).
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from jaxrec.data.raw import Chunk, Raw
from jaxrec.data.schema import INT32_MAX, check_ids, null_column, seconds
from jaxrec.data.tasks import REPORT_SECONDS
from jaxrec.errors import DataError
from jaxrec.runtime.progress import say

if TYPE_CHECKING:
    import polars as pl

PART_ROWS = 1 << 40  # more than a part has: rows of all parts are numbered in input order
Column: TypeAlias = "np.ndarray | pl.Series"
Columns: TypeAlias = dict[str, Any]  # name -> Column: text ids are polars series, all else NumPy


class Part(NamedTuple):
    """What was read of a source, or of one of its files.

    source: its name. kinds: its columns and their types as text. chunks: number of chunk files.
    columns: of the chunk files, sorted. ids: dtype kind (i, U) of users and items. rows: how many
    were read; dropped: incomplete ones; kept: rows of the chunk files. names: event types in order
    of their numbers. seen: all types that occur. first, last: earliest and latest time.
    """

    source: str
    kinds: str
    chunks: int
    columns: list[str]
    ids: dict[str, str]
    rows: int
    dropped: int
    kept: int
    names: tuple[str, ...]
    seen: frozenset[str]
    first: int
    last: int


class Read(NamedTuple):
    """What is known about a source once it has been read.

    users, items: all distinct raw ids, sorted. rows: how many were read. event_types: names of the
    values of `event`. first, last: the earliest and latest time, in seconds since 1970.
    """

    users: np.ndarray
    items: np.ndarray
    rows: int
    event_types: tuple[str, ...]
    first: int
    last: int


def ingest(
    raw: Raw,
    folder: Path,
    event_types: Sequence[str] = (),
    incomplete: str = "refuse",
    number: int = 0,
) -> Part:
    """Reads all of `raw` once, as part `number` of a source, into chunk files.

    event_types: keep only events of these types; empty: all.
    incomplete: `refuse` rows without user, item or time, or `drop` them.

    Raises DataError: bad ids or times (`jaxrec.data.schema`), files whose ids are of different
    kinds. `check_whole` checks what only the whole source shows.
    """
    import polars as pl

    folder.mkdir(parents=True, exist_ok=True)
    types = EventTypes(event_types)
    ids: dict[str, str] = {}
    columns: set[str] = set()
    kinds = ""
    rows, dropped, kept, chunks, first, last = 0, 0, 0, 0, 2**63 - 1, -1
    begin = shown = time.monotonic()
    for chunk in raw.chunks():
        if not len(chunk.frame):
            continue
        kinds = kinds or chunk.kinds
        rows += len(chunk.frame)
        checked, missing = check(chunk, raw, types, incomplete)
        dropped += missing
        size = len(checked["time"])
        if not size:
            continue
        for name in ("user", "item"):
            kind = "i" if isinstance(checked[name], np.ndarray) else "U"
            check_kind(ids, name, kind, getattr(raw.names, name), chunk.source)
        first = min(first, int(checked["time"].min()))
        last = max(last, int(checked["time"].max()))
        checked["row"] = np.arange(size) + number * PART_ROWS + kept
        columns |= checked.keys()
        file = folder / f"{number}.{chunks:06}.parquet"
        pl.DataFrame(checked).write_parquet(file, compression="lz4", statistics=False)
        kept, chunks = kept + size, chunks + 1
        now = time.monotonic()
        if now - shown > REPORT_SECONDS:
            say(f"data: read {rows:,} rows, {rows / (now - begin):,.0f} a second")
            shown = now
    return Part(
        source=raw.source,
        kinds=kinds,
        chunks=chunks,
        columns=sorted(columns),
        ids=ids,
        rows=rows,
        dropped=dropped,
        kept=kept,
        names=types.names,
        seen=frozenset(types.seen),
        first=first,
        last=last,
    )


def check_whole(raw: Raw, parts: Sequence[Part], types: "EventTypes") -> None:
    """Checks what only the whole source shows, and prints how many rows were dropped.

    types: numbered and seen so far by none of the parts; knows all of them afterwards.

    Raises DataError when no row is left, requested event types do not occur, the parts' ids are of
    different kinds, or the times span more than int32 seconds.
    """
    for part in parts:
        for name in part.names:
            types.numbers.setdefault(name, len(types.numbers))
        types.seen |= part.seen
    rows, dropped = sum(part.rows for part in parts), sum(part.dropped for part in parts)
    first, last = min(part.first for part in parts), max(part.last for part in parts)
    if not rows:
        raise DataError(f"{raw.source}: no rows. Give a table with at least one event")
    if not any(part.kept for part in parts):
        what = f"all {rows:,} are incomplete" if dropped == rows else "no event is of its types"
        raise DataError(
            f"{raw.source}: no rows are left, {what}. Change data.event_types or repair the table"
        )
    types.check_seen(raw.source, raw.names.event)
    types.check_number(raw.source, raw.names.event)
    if last - first > INT32_MAX:
        raise DataError(
            f"{raw.source}: times span {last - first} seconds "
            f"({(last - first) / 31556952:.0f} years), more than int32 seconds can hold "
            f"({INT32_MAX}). Remove events with wrong times"
        )
    if dropped:
        say(f"data: {dropped_rows(dropped, rows)}")
    known: dict[str, str] = {}
    for part in parts:
        for name, kind in part.ids.items():
            check_kind(known, name, kind, getattr(raw.names, name), part.source)


def check_kind(known: dict[str, str], which: str, kind: str, column: str, source: str) -> None:
    """Notes the kind of ids (i, U) that comes first, raises DataError for another one."""
    if known.setdefault(which, kind) != kind:
        here, before = ("integers", "text") if kind == "i" else ("text", "integers")
        raise DataError(
            f"{source}: ids of column {column!r} are {here}, those of the files before it "
            f"{before}. Convert one of them, or set data.{which}_kind=text (table)"
        )


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
        spill[name] = checked_ids(frame[name], getattr(raw.names, name), source, row)
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


def checked_ids(series: "pl.Series", name: str, source: str, first_row: int) -> Column:
    """Ids without nulls as int64 [N], or as polars texts. Raises DataError for other kinds."""
    import polars as pl

    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        return check_ids(to_numpy(series), name, source, first_row)
    return series


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
