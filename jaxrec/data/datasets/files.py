"""Streams of rows from parquet, CSV and JSON-lines files, with errors that name the file.

Polars' streaming engine decodes a part of a file at a time and decompresses `.gz` and `.zst` on the
way, so memory does not grow with the files.
"""

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from jaxrec.data.datasets import line_bounds, quoting
from jaxrec.data.datasets.column_kinds import (
    as_kind,
    conversion,
    csv_kinds,
    json_texts,
    without_null_words,
)
from jaxrec.data.datasets.event_times import ZONES, Zones
from jaxrec.data.datasets.file_format import CSV, JSONL, PARQUET, Format
from jaxrec.data.digests import Digest
from jaxrec.data.raw import CHUNK, Chunk, Names
from jaxrec.data.schema import require
from jaxrec.errors import DataError

if TYPE_CHECKING:
    import polars as pl

INFERENCE_ROWS = 10_000  # rows of a JSON-lines file from which its columns are known


def find(pattern: str, key: str, inside: str = "") -> list[Path]:
    """The files that a path or glob names, sorted.

    key: the config key in messages. inside: glob of the files of a folder; empty: folders are
    refused. Raises DataError when there are none.
    """
    path = Path(pattern)
    if path.is_dir() and inside:
        files = sorted(file for file in path.glob(inside) if file.is_file())
        if not files:
            raise DataError(f"{key}={pattern!r}: the folder holds no {inside}")
        return files
    if path.is_dir():
        raise DataError(
            f"{key}={pattern!r} is a folder. Name a file or a glob such as '{path / '*.parquet'}'"
        )
    # a plain file wins over a pattern: its name may hold brackets
    files = [path] if path.is_file() else sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not files:
        raise DataError(f"{key}={pattern!r}: no such file. Check the path or the glob")
    return files


def fingerprint(files: Sequence[Path], digest: Digest) -> list[list[int | str]]:
    """[size, digest of the content] of every file."""
    return [[file.stat().st_size, digest(file)] for file in files]


def chunks(files: Sequence[Path], names: Names, file_format: Format = Format()) -> Iterator[Chunk]:  # noqa: B008
    """The events of all files, one file after the other."""
    columns = {names.user: "user", names.item: "item", names.time: "time", names.event: "event"}
    columns.pop("", None)
    zones = Zones(file_format)
    for frame, file, row in frames(files, list(columns), file_format, zones=zones):
        kinds = f"{_types(frame.schema)}{ZONES[zones.zoned]}"
        yield Chunk(frame.rename(columns), str(file), row, kinds)


def frames(
    files: Sequence[Path],
    columns: Sequence[str],
    file_format: Format = Format(),  # noqa: B008
    rows: int = CHUNK,
    zones: "Zones | None" = None,
) -> Iterator[tuple["pl.DataFrame", Path, int]]:
    """(rows, their file, number of the first one) of the named columns of all files.

    Raises DataError naming the file when it is empty or damaged, lacks a column, or its types
    differ from those of the files before it.
    """
    import polars as pl

    schema: dict[str, pl.DataType] | None = None
    zones = zones or Zones(file_format)
    for file in files:
        with guarded(file):
            lazy = _scan(file, columns, file_format).select(columns)
            found = lazy.collect_schema()
            file_schema = {c: found[c] for c in columns if c not in file_format.kinds}
        if schema is not None and file_schema != schema:
            differing = [c for c in columns if file_schema.get(c) != schema.get(c)]
            raise DataError(
                f"{file}: column types {_types(file_schema)} differ from those of {files[0]}: "
                f"{_types(schema)}. {conversion(differing, file_format.id_keys)}"
            )
        schema, row = file_schema, 0
        with guarded(file):
            batches = lazy.collect_batches(chunk_size=rows, engine="streaming")
        while True:
            with guarded(file):
                frame = next(batches, None)
            if frame is None:
                break
            texts = [c for c in columns if frame.schema[c] == pl.String]
            frame = frame.with_columns(without_null_words(c, file_format) for c in texts)
            for column, kind in file_format.kinds.items():
                frame = frame.with_columns(as_kind(frame[column], kind, file, row, file_format))
            yield zones.read(frame, file, row), file, row
            row += len(frame)


@contextlib.contextmanager
def guarded(file: Path) -> Iterator[None]:
    """Turns errors of reading into a DataError that names the file."""
    import polars as pl

    try:
        yield
    except DataError:
        raise
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        reason = str(error).split("\n\nYou might want to try")[0]
        if reason.startswith("cannot parse"):  # of JSON lines, whose values have kinds
            raise DataError(
                f"{file}: a column holds values of several kinds: {reason}. Where these are ids of "
                "a table, set data.user_kind or data.item_kind=text"
            ) from error
        raise DataError(
            f"{file}: cannot be read, the file is damaged or not what its ending says: {reason}"
        ) from error


class _CsvOptions(TypedDict):
    """Arguments of polars' `scan_csv`."""

    separator: str
    glob: bool
    has_header: bool
    infer_schema: bool
    new_columns: list[str] | None
    quote_char: str | None


def _scan(file: Path, columns: Sequence[str], file_format: Format) -> "pl.LazyFrame":
    """A lazy frame of the file that has at least `columns`."""
    import polars as pl

    name = file.name.lower()
    if not file_format.text and not name.endswith(PARQUET + CSV + JSONL):
        raise DataError(
            f"{file}: unknown kind of file. Known endings are {', '.join(PARQUET + CSV + JSONL)}"
        )
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    if not file.stat().st_size:
        raise DataError(f"{file}: the file is empty. Remove it or write it again")
    lines = quoting.LINES
    if file_format.text or not name.endswith(PARQUET):
        lines = line_bounds.rows_at_once(file, lines)
    types = {column: getattr(pl, kind) for column, kind in file_format.types.items()}
    if not file_format.text and name.endswith(PARQUET):
        lazy = pl.scan_parquet(file, glob=False)
        require(lazy.collect_schema().names(), columns, str(file), file_format.hint)
        rows = lazy.select(pl.len()).collect().item()
        line_bounds.check_values(file, rows * len(columns))
        return lazy
    if not file_format.text and name.endswith(JSONL):
        lazy = pl.scan_ndjson(file, infer_schema_length=INFERENCE_ROWS)
        require(lazy.collect_schema().names(), columns, str(file), file_format.hint)
        known = lazy.collect_schema()
        types = {c: known[c] for c in columns} | types
        numbers = [c for c, kind in types.items() if kind == pl.Int64]
        types |= json_texts(file, numbers, file_format)
        return pl.scan_ndjson(file, schema={c: types[c] for c in columns})
    options: _CsvOptions = {
        "separator": file_format.separator or ("\t" if ".tsv" in name else ","),
        "glob": False,
        "has_header": not file_format.header,
        "infer_schema": False,
        "new_columns": list(file_format.header) or None,
        "quote_char": '"' if file_format.quotes else None,
    }
    plain = pl.scan_csv(file, **options)
    names = plain.collect_schema().names()
    require(names, columns, str(file), file_format.hint)
    if file_format.quotes:
        quoting.check(file, options["separator"], len(names), lines)
    if not file_format.header:
        types |= dict.fromkeys(file_format.kinds, pl.String)
        kinds, words = csv_kinds(file, plain, [c for c in columns if c not in types], file_format)
        types |= kinds | dict.fromkeys(words, pl.String)
        return pl.scan_csv(file, **options, schema_overrides=types).with_columns(
            without_null_words(c, file_format).cast(kinds[c]) for c in words
        )
    # overrides cannot name columns that are renamed by `new_columns`
    return plain.with_columns(pl.col(c).cast(kind) for c, kind in types.items() if c in columns)


def _types(schema: "Mapping[str, pl.DataType]") -> str:
    return ", ".join(f"{name} {kind}" for name, kind in schema.items())
