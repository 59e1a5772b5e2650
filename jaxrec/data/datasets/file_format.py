"""How the files of a source are read, and where a row of them stands."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

COMPRESSED = ("", ".gz", ".zst")
PARQUET = (".parquet", ".pq")
CSV = tuple(kind + packed for kind in (".csv", ".tsv") for packed in COMPRESSED)
JSONL = tuple(kind + packed for kind in (".jsonl", ".ndjson") for packed in COMPRESSED)


class Format(NamedTuple):
    """How to read the files of a source.

    types: column -> polars type name ("Int64", "String", ...); others are inferred. text: the files
    are comma or tab separated, whatever their ending. header: column names of CSV files without a
    header line. separator: of CSV files. times: columns whose text is parsed as ISO datetimes.
    time_format: how they are written instead (strptime), numbers included; empty: ISO. zone: of
    times without a zone, empty for UTC. null_values: words of `null_columns` that mean null.
    id_keys: columns of ids -> the configuration key that says their kind; in a CSV they are text
    where a value has a leading zero. kinds: columns of ids that are "text" or "integer" whatever
    the file says. quotes: whether " around a field of a CSV quotes it. hint: advice about a missing
    column.
    """

    types: Mapping[str, str] = {}
    text: bool = False
    header: Sequence[str] = ()
    separator: str = ""
    times: Sequence[str] = ()
    time_format: str = ""
    zone: str = ""
    null_values: Sequence[str] = ()
    null_columns: Sequence[str] = ()
    id_keys: Mapping[str, str] = {}
    kinds: Mapping[str, str] = {}
    quotes: bool = True
    hint: str = ""


def place(file: Path, row: int, file_format: Format) -> str:
    """Where a row stands, for messages; in texts the line, if every row takes one."""
    name = file.name.lower()
    if not file_format.text and name.endswith(PARQUET):
        return f"row {row}"
    header = not file_format.header and not name.endswith(JSONL)
    return f"line {row + 1 + header}"
