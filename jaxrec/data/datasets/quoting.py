"""Quotes of CSV files: a stray one would swallow the rows up to the next, whatever column it is in.

RFC 4180: a quote opens a field at its start, closes it at its end, and is doubled inside of it.
Polars takes any other quote as it comes, so a file is checked as a whole before it is read: which
rows it has does not depend on the columns that are asked for.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec.errors import DataError
from jaxrec.runtime.progress import say

LINES = 1 << 18  # that are in memory at a time
LONGEST = 1 << 18  # lines of one field
QUOTE, NEWLINE = ord('"'), ord("\n")


class _Place(NamedTuple):
    """Where a file has been read to. opened: line of the quote whose field is open; 0: none."""

    line: int
    opened: int
    swallowed: int


def check(file: Path, separator: str, columns: int, lines_at_once: int | None = None) -> None:
    """Raises DataError, with file and line, for a quote that neither opens nor closes a field.

    lines_at_once: how many are in memory, default `LINES`. A field that is open longer is refused.

    Says where lines inside quoted fields look like rows: they have all `columns`.
    """
    import polars as pl

    place = _Place(1, 0, 0)
    first_swallowed = 0
    rows = lines_at_once or LINES
    for frame in pl.scan_lines(file, glob=False).collect_batches(chunk_size=rows):
        lines = frame.to_series()
        if not place.opened and not lines.str.contains('"', literal=True).any():
            place = place._replace(line=place.line + len(lines))
            continue
        text = "\n".join(lines.to_list()).removeprefix("\ufeff") + "\n"
        before, place = place, _check(text.encode(), file, separator, columns, place)
        if place.swallowed and not first_swallowed:
            first_swallowed = before.line
        if place.opened and place.line - place.opened > max(rows, LONGEST):
            raise DataError(
                _message(file, place.opened, f"opens a field of over {LONGEST:,} lines")
            )
    if place.opened:
        raise DataError(_message(file, place.opened, "opens a field that is never closed"))
    if place.swallowed:
        say(
            f"data: {file}: {place.swallowed:,} lines behind line {first_swallowed:,} stand inside "
            "quoted fields and look like rows; if they are, set data.quotes=False"
        )


def _check(block: bytes, file: Path, separator: str, columns: int, place: _Place) -> _Place:
    """The place behind a block of whole lines. Raises DataError."""
    text = np.frombuffer(block, np.uint8)
    split = ord(separator)
    quotes, ends = np.flatnonzero(text == QUOTE), np.flatnonzero(text == NEWLINE)
    opens = np.arange(len(quotes)) % 2 == bool(place.opened)
    # text[-1] is the end of a line, as what precedes the first byte
    before, after = text[quotes - 1], text[np.minimum(quotes + 1, len(text) - 1)]
    edge = np.where(opens, before, after)
    stray = ~np.isin(edge, (split, NEWLINE, QUOTE))
    if stray.any():
        line = place.line + int(np.searchsorted(ends, quotes[stray.argmax()]))
        raise DataError(_message(file, line, "stands inside a field"))
    starts = np.concatenate([[0], ends[:-1] + 1])

    def inside(positions: np.ndarray) -> np.ndarray:
        return (np.searchsorted(quotes, positions) + bool(place.opened)) % 2 == 1

    splits = np.flatnonzero(text == split)
    splits = splits[inside(splits)]
    counts = np.searchsorted(splits, ends) - np.searchsorted(splits, starts)
    rows = inside(starts) & (counts >= max(columns - 1, 1))
    opened = 0
    if (len(quotes) + bool(place.opened)) % 2:
        last = int(np.searchsorted(ends, quotes[-1])) if len(quotes) else None
        opened = place.opened if last is None else place.line + last
    return _Place(place.line + len(ends), opened, place.swallowed + int(rows.sum()))


def _message(file: Path, line: int, what: str) -> str:
    return (
        f"{file}, line {line}: a quote {what}, so that the rows behind it cannot be told. Double "
        "quotes inside of a field and put the field in quotes, or set data.quotes=False for files "
        "in which a quote is a character like any other (table)"
    )
