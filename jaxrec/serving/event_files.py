"""Files that the command line reads and writes: events and user ids in, top lists out.

Parquet and CSV need polars; lines of text and JSON do not.
"""

import contextlib
import csv
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TextIO

import numpy as np

from jaxrec.config import DataConfig
from jaxrec.data import schema
from jaxrec.data.datasets import files
from jaxrec.data.ingest import complete_rows, to_numpy
from jaxrec.errors import DataError
from jaxrec.types import ItemId, UserId
from jaxrec.untrusted import lines

STDIN = "-"
TABLES = (*files.PARQUET, *files.CSV)
JSON_LINES = (".jsonl", ".ndjson")
LISTS = (*JSON_LINES, ".csv", *files.PARQUET)  # what lists can be written as


class TopList(NamedTuple):
    """A user's recommendations, best first; missing items are left out.

    titles: None where there is none of an item, or as a whole where nobody asked for them.
    """

    user: UserId
    items: list[ItemId]
    scores: list[float]
    titles: list[str | None] | None = None

    def columns(self) -> dict[str, object]:
        """The fields by name, without titles that nobody asked for."""
        return {name: value for name, value in self._asdict().items() if value is not None}


class ReadEvents(NamedTuple):
    """users, items, times: columns [N] of events, times as datetime64[ns].

    incomplete: rows without user, item or time that were dropped (`data.incomplete`). rows: all
    that were read.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    incomplete: int
    rows: int


def read_events(
    pattern: str, config: DataConfig, *, text_users: bool = False, text_items: bool = False
) -> ReadEvents:
    """The events of parquet, CSV or JSON-lines files, whose columns are those of the training data.

    text_users, text_items: ids are text in the training data, so digits in a CSV are text too.

    Raises DataError naming the file and the column.
    """
    names = (config.user_column, config.item_column, config.time_column)
    ids = ((names[0], text_users), (names[1], text_items))
    table_format = files.Format(
        kinds={name: "text" for name, text in ids if text},
        quotes=config.quotes,
        times=[config.time_column],
        time_format=config.time_format,
        zone=config.time_zone,
        null_values=config.null_values,
        null_columns=names,
    )
    chunks, rows, dropped = [], 0, 0
    called = {name: name for name in names}
    for read, file, row in files.frames(files.find(pattern, "--events"), names, table_format):
        frame = complete_rows(read, called, str(file), row, config.incomplete)
        rows, dropped = rows + len(read), dropped + len(read) - len(frame)
        if not len(frame):
            continue
        user, item, moment = (to_numpy(frame[name]) for name in names)
        # of the training table; data sets that know their columns have the default
        seconds, rest = schema.seconds(moment, names[2], str(file), config.time_unit, row)
        nanoseconds = np.zeros(len(seconds), np.int64) if rest is None else rest.astype(np.int64)
        times = (seconds * 10**9 + nanoseconds).astype("datetime64[ns]")
        chunks.append(
            (
                schema.check_ids(user, names[0], str(file), row),
                schema.check_ids(item, names[1], str(file), row),
                times,
            )
        )
    if not chunks:
        why = f" are left, all {rows:,} are incomplete. Repair the file" if dropped else ""
        raise DataError(f"--events={pattern}: no rows{why}")
    users, items, moments = (np.concatenate(column) for column in zip(*chunks, strict=True))
    return ReadEvents(users, items, moments, dropped, rows)


def read_users(source: str, config: DataConfig, text: bool) -> list[UserId]:
    """Raw user ids from a table, from a file with one id per line, or from standard input (-).

    text: whether ids are text; otherwise lines must be integers. Raises DataError naming the
    file and the line.
    """
    return read_ids(source, "--users", config.user_column, text)


def read_ids(source: str, flag: str, column: str, text: bool) -> list[UserId]:
    """`read_users` for ids of any kind: those of a table's `column`, or one per line.

    In texts a byte order mark, blank lines, quotes around an id and a first line that is the name
    of the column are no ids.
    """
    if source != STDIN and source.lower().endswith(TABLES):
        return _table_ids(source, flag, column, text)
    if source == STDIN:
        return list(_ids(sys.stdin, "standard input", column, text))
    path = pathlib.Path(source)
    if not path.is_file():
        raise DataError(f"{flag}={source}: no such file")
    with path.open(encoding="utf-8") as stream:
        return list(_ids(stream, source, column, text))


def _table_ids(source: str, flag: str, column: str, text: bool) -> list[UserId]:
    ids: list[UserId] = []
    written = files.Format(types={column: "String"})  # in a CSV; the ids' kind is known
    for frame, file, row in files.frames(files.find(source, flag), (column,), written):
        if file.name.lower().endswith(files.CSV):
            cells = ((row + i + 2, value or "") for i, value in enumerate(frame[column].to_list()))
            ids += [_id(v.strip(), n, str(file), text) for n, v in cells if v.strip()]
            continue
        values = schema.check_ids(to_numpy(frame[column]), column, str(file), row).tolist()
        ids += [str(raw) for raw in values] if text else values
    return ids


def _ids(stream: TextIO, source: str, column: str, text: bool) -> Iterator[UserId]:
    number = 0
    try:
        for line in lines.bounded(stream, source, DataError):
            number += 1
            value = line.removeprefix("\ufeff").strip() if number == 1 else line.strip()
            if len(value) > 1 and value[0] == value[-1] == '"':
                value = value[1:-1].replace('""', '"')
            if value and not (number == 1 and value == column):
                yield _id(value, number, source, text)
    except UnicodeDecodeError as error:
        known = ", ".join(TABLES)
        raise DataError(
            f"{source}, behind line {number}: no text in UTF-8. One id per line is needed, or a "
            f"table whose name ends in {known}"
        ) from error


def _id(value: str, line: int, source: str, text: bool) -> UserId:
    """An id of the data's kind. Raises DataError for text where ids are integers."""
    if text:
        return value
    try:
        return int(value)
    except ValueError as error:
        raise DataError(
            f"{source}, line {line}: {value!r} is no integer, as the ids of the data are"
        ) from error


def write_lists(lists: Iterable[TopList], target: str) -> int:
    """Recommendations as JSON lines (standard output for -), CSV or parquet; returns how many.

    A row of JSON lines and parquet is a user; one of CSV an item of a user, with its rank from 1.

    A file is there as a whole or, after an error, not at all. Raises DataError for another kind
    of file, and where it cannot be written (disk full).
    """
    if target == STDIN:
        return _write_json(lists, sys.stdout)
    path = pathlib.Path(target)
    check_target(target)
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        count = _write(lists, draft, target.lower())
        os.replace(draft, path)
    except OSError as error:
        raise DataError(f"--output={target}: cannot be written: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # it is gone, or its folder was never there
            draft.unlink()
    return count


def _write(lists: Iterable[TopList], path: pathlib.Path, target: str) -> int:
    """Writes the kind of file that `target` ends in. Raises OSError."""
    if target.endswith(".csv"):
        with path.open("w", encoding="utf-8", newline="") as stream:
            return _write_csv(lists, stream)
    if target.endswith(JSON_LINES):
        with path.open("w", encoding="utf-8") as stream:
            return _write_json(lists, stream)
    import polars as pl

    rows = list(lists)
    names = rows[0].columns() if rows else TopList._fields[:3]
    frame = pl.DataFrame({name: [getattr(row, name) for row in rows] for name in names})
    try:
        frame.write_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise OSError(str(error)) from error
    return len(rows)


def check_target(target: str) -> None:
    """Raises DataError when `write_lists` could not write there."""
    if target != STDIN and not target.lower().endswith(LISTS):
        known = ", ".join(LISTS)
        raise DataError(f"--output={target}: known endings are {known}; - is standard output")


def _write_json(lists: Iterable[TopList], stream: TextIO) -> int:
    count = 0
    for top_list in lists:
        stream.write(json.dumps(top_list.columns(), ensure_ascii=False) + "\n")
        count += 1
    stream.flush()
    return count


def _write_csv(lists: Iterable[TopList], stream: TextIO) -> int:
    writer, count = csv.writer(stream, lineterminator="\n"), 0
    for top_list in lists:
        if not count:
            titled = ["title"] if top_list.titles is not None else []
            writer.writerow(["user", "rank", "item", "score", *titled])
        columns = [top_list.items, top_list.scores, *filter(None, [top_list.titles])]
        for rank, row in enumerate(zip(*columns, strict=True), 1):
            writer.writerow([top_list.user, rank, *row])
        count += 1
    return count
