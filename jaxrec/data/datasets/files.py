"""Streams of rows from parquet, CSV and JSON-lines files, with errors that name the file.

Polars' streaming engine decodes a part of a file at a time and decompresses `.gz` and `.zst` on the
way, so memory does not grow with the files.
"""

import contextlib
import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from jaxrec.data.datasets import quoting
from jaxrec.data.digests import Digest
from jaxrec.data.raw import CHUNK, Chunk, Names
from jaxrec.data.schema import INT64_MAX, require
from jaxrec.errors import DataError

if TYPE_CHECKING:
    import polars as pl

COMPRESSED = ("", ".gz", ".zst")
PARQUET = (".parquet", ".pq")
CSV = tuple(kind + packed for kind in (".csv", ".tsv") for packed in COMPRESSED)
JSONL = tuple(kind + packed for kind in (".jsonl", ".ndjson") for packed in COMPRESSED)
INFERENCE_ROWS = 10_000  # rows of a JSON-lines file from which its columns are known
OFFSET = r"(?:Z|[+-]\d{2}:?\d{2})$"  # of an ISO time with a zone
# texts that are ISO 8601; others, such as 02/01/2024, can be read in more than one way
ISO = r"^\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?)?$"
INTEGER = r"^[+-]?\d+$"
LEADING_ZERO = r"^[+-]?0\d"  # an id with one is text: 001 and 1 are two ids
NO_ID = r"^(?:true|false|\[.*|\{.*)$"  # in JSON lines
NUMBER = r"(?i)^[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan|inf)$"


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
    zones = _Zones(file_format)
    for frame, file, row in frames(files, list(columns), file_format, zones=zones):
        kinds = f"{_types(frame.schema)}{ZONES[zones.zoned]}"
        yield Chunk(frame.rename(columns), str(file), row, kinds)


def frames(
    files: Sequence[Path],
    columns: Sequence[str],
    file_format: Format = Format(),  # noqa: B008
    rows: int = CHUNK,
    zones: "_Zones | None" = None,
) -> Iterator[tuple["pl.DataFrame", Path, int]]:
    """(rows, their file, number of the first one) of the named columns of all files.

    Raises DataError naming the file when it is empty or damaged, lacks a column, or its types
    differ from those of the files before it.
    """
    import polars as pl

    schema: dict[str, pl.DataType] | None = None
    zones = zones or _Zones(file_format)
    for file in files:
        with guarded(file):
            lazy = _scan(file, columns, file_format).select(columns)
            found = lazy.collect_schema()
            file_schema = {c: found[c] for c in columns if c not in file_format.kinds}
        if schema is not None and file_schema != schema:
            raise DataError(
                f"{file}: column types {_types(file_schema)} differ from those of {files[0]}: "
                f"{_types(schema)}. {_conversion(schema, file_schema, file_format)}"
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
            frame = frame.with_columns(_without_null_words(c, file_format) for c in texts)
            for column, kind in file_format.kinds.items():
                frame = frame.with_columns(_as_kind(frame[column], kind, file, row, file_format))
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
    types = {column: getattr(pl, kind) for column, kind in file_format.types.items()}
    if not file_format.text and name.endswith(PARQUET):
        lazy = pl.scan_parquet(file, glob=False)
        require(lazy.collect_schema().names(), columns, str(file), file_format.hint)
        return lazy
    if not file_format.text and name.endswith(JSONL):
        lazy = pl.scan_ndjson(file, infer_schema_length=INFERENCE_ROWS)
        require(lazy.collect_schema().names(), columns, str(file), file_format.hint)
        known = lazy.collect_schema()
        types = {c: known[c] for c in columns} | types
        numbers = [c for c, kind in types.items() if kind == pl.Int64]
        types |= _json_texts(file, numbers, file_format)
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
        quoting.check(file, options["separator"], len(names))
    if not file_format.header:
        types |= dict.fromkeys(file_format.kinds, pl.String)
        kinds, words = _kinds(file, plain, [c for c in columns if c not in types], file_format)
        types |= kinds | dict.fromkeys(words, pl.String)
        return pl.scan_csv(file, **options, schema_overrides=types).with_columns(
            _without_null_words(c, file_format).cast(kinds[c]) for c in words
        )
    # overrides cannot name columns that are renamed by `new_columns`
    return plain.with_columns(pl.col(c).cast(kind) for c, kind in types.items() if c in columns)


def _kinds(
    file: Path, plain: "pl.LazyFrame", columns: Sequence[str], file_format: Format
) -> "tuple[dict[str, type[pl.DataType]], list[str]]":
    """Types of CSV columns, from all rows, and the columns that hold words for nulls.

    A guess of the types from the first rows breaks on mixed ids.
    """
    import polars as pl

    tests = []
    for column in columns:
        texts = _without_null_words(column, file_format)
        # integers beyond int64 are no texts: they are refused by name
        large = texts.filter(
            (texts.str.len_bytes() > 18) & texts.cast(pl.Int64, strict=False).is_null()
        )
        tests += [
            texts.str.contains(INTEGER).all().alias(f"integer {column}"),
            texts.str.contains(NUMBER).all().alias(f"number {column}"),
            texts.str.contains(LEADING_ZERO).any().alias(f"zeros {column}"),
            large.first().alias(f"large {column}"),
            texts.filter(~texts.str.contains(INTEGER)).first().alias(f"fraction {column}"),
            (texts.is_null() & pl.col(column).is_not_null()).any().alias(f"words {column}"),
        ]
    values = plain.select(tests).collect(engine="streaming").row(0, named=True) if tests else {}
    kinds: dict[str, type[pl.DataType]] = {}
    for column in columns:
        if column in file_format.id_keys and values[f"zeros {column}"]:
            kinds[column] = pl.String
        elif values[f"integer {column}"]:
            if values[f"large {column}"] is not None:
                advice = (
                    "Times are seconds since 1970: repair the column"
                    if column in file_format.times
                    else f"Set {file_format.id_keys[column]}=text"
                    if column in file_format.id_keys
                    else "Store such ids as text"
                )
                raise DataError(
                    f"{file}: column {column!r} holds {values[f'large {column}']}, beyond int64 "
                    f"(largest is {INT64_MAX}). {advice}"
                )
            kinds[column] = pl.Int64
        elif values[f"number {column}"] and column in file_format.id_keys:
            raise DataError(
                f"{file}: column {column!r} holds numbers that are no integers, such as "
                f"{values[f'fraction {column}']}, and so no ids. If they are names, set "
                f"{file_format.id_keys[column]}=text"
            )
        else:
            kinds[column] = pl.Float64 if values[f"number {column}"] else pl.String
    return kinds, [column for column in columns if values[f"words {column}"]]


def _json_texts(
    file: Path, columns: Sequence[str], file_format: Format
) -> "dict[str, type[pl.DataType]]":
    """Columns of ids of a JSON-lines file, integers at its beginning, that hold texts as well."""
    import polars as pl

    ids = [c for c in columns if c in file_format.id_keys and c not in file_format.kinds]
    if not ids:
        return {}
    texts = pl.scan_ndjson(file, schema=dict.fromkeys(ids, pl.String))
    names = {c: ~pl.col(c).str.contains(NUMBER) | pl.col(c).str.contains(LEADING_ZERO) for c in ids}
    # lists and truth values are no ids: reading them as integers names them
    tests = [(found & ~pl.col(c).str.contains(NO_ID)).any().alias(c) for c, found in names.items()]
    mixed = texts.select(tests).collect(engine="streaming").row(0, named=True)
    return {c: pl.String for c in ids if mixed[c]}


def _as_kind(
    series: "pl.Series", kind: str, file: Path, first_row: int, file_format: Format
) -> "pl.Series":
    """Ids as "text" or "integer". Raises DataError for a text that is no integer."""
    import polars as pl

    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if kind == "text":
        return series.cast(pl.String) if series.dtype.is_integer() else series
    if series.dtype != pl.String:
        return series
    integers = series.cast(pl.Int64, strict=False)
    bad = integers.is_null() & series.is_not_null()
    if bad.any():
        row = int(bad.arg_max() or 0)
        raise DataError(
            f"{file}, {_place(file, first_row + row, file_format)}: column {series.name!r} holds "
            f"{series[row]!r}, which is no integer of 64 bits as {file_format.id_keys[series.name]}"
            "=integer says. Repair the row or set it to text"
        )
    return integers


def _conversion(
    before: "Mapping[str, pl.DataType]", here: "Mapping[str, pl.DataType]", file_format: Format
) -> str:
    """What to do about types that differ between files."""
    keys = [key for c, key in file_format.id_keys.items() if before.get(c) != here.get(c)]
    return f"Set {keys[0]}=text" if keys else "Convert one of them"


def _without_null_words(column: str, file_format: Format) -> "pl.Expr":
    """A column of texts in which words that mean null are null."""
    import polars as pl

    if column not in file_format.null_columns or not file_format.null_values:
        return pl.col(column)
    words = pl.col(column).is_in(list(file_format.null_values))
    return pl.when(~words).then(pl.col(column)).alias(column)


ZONES = {None: "", True: ", times with a zone", False: ", times without a zone"}


class _Zones:
    """Parses the time columns of a source; zoned: whether its times have a zone, None: unknown."""

    def __init__(self, file_format: Format) -> None:
        self.file_format = file_format
        self.zoned: bool | None = None

    def read(self, frame: "pl.DataFrame", file: Path, first_row: int) -> "pl.DataFrame":
        import polars as pl

        zone = self.file_format.zone
        for column in self.file_format.times:
            series = frame[column]
            if self.file_format.time_format:
                series = self._parse_format(series, column, file, first_row)
            elif series.dtype == pl.String:
                series = self._parse(series, column, file, first_row)
            if series.dtype == pl.Date:
                series = series.cast(pl.Datetime("ms"))
            if zone and series.dtype == pl.Datetime and series.dtype.time_zone is None:  # type: ignore[attr-defined]
                try:
                    series = series.dt.replace_time_zone(zone, ambiguous="earliest")
                except pl.exceptions.PolarsError as error:
                    raise DataError(
                        f"{file}: column {column!r} holds a time that does not exist in "
                        f"data.time_zone={zone!r}: {error}"
                    ) from error
            frame = frame.with_columns(series)
        return frame

    def _parse_format(
        self, series: "pl.Series", column: str, file: Path, first_row: int
    ) -> "pl.Series":
        """Datetimes of numbers or texts that are written as the format says."""
        import polars as pl

        pattern = self.file_format.time_format
        if series.dtype.is_temporal():
            raise DataError(
                f"{file}: column {column!r} holds datetimes, which need no "
                f"data.time_format={pattern!r}: leave it empty"
            )
        texts = series.cast(pl.String)
        # polars needs minutes beside hours
        minute = " 00" if "%H" in pattern and "%M" not in pattern else ""
        try:
            times = (texts + minute).str.to_datetime(
                pattern + (" %M" if minute else ""), time_unit="us", strict=False
            )
        except pl.exceptions.PolarsError as error:
            raise DataError(f"data.time_format={pattern!r}: no format of times: {error}") from error
        bad = times.is_null() & texts.is_not_null()
        if bad.any():
            row = int(bad.arg_max() or 0)
            raise DataError(
                f"{file}, {_place(file, first_row + row, self.file_format)}: column {column!r} "
                f"holds {texts[row]!r}, which is not written as data.time_format={pattern!r}. "
                "Repair the row or change the format"
            )
        return times

    def _parse(self, series: "pl.Series", column: str, file: Path, first_row: int) -> "pl.Series":
        import polars as pl

        texts = series.str.replace(r" ?UTC$", "Z")
        self._refuse(~texts.str.contains(ISO), series, file, first_row)
        zoned = texts.drop_nulls().str.contains(OFFSET)
        if len(zoned):
            mixed = zoned.any() != zoned.all() or self.zoned not in (None, zoned.all())
            if mixed:
                raise DataError(
                    f"{file}: column {column!r} mixes times with and without a zone (Z or +hh:mm). "
                    "Write all of them one way; data.time_zone is for those without"
                )
            self.zoned = bool(zoned.all())
        zone = None if self.file_format.zone and not self.zoned else "UTC"
        try:
            return texts.str.to_datetime(strict=True, time_zone=zone)
        except pl.exceptions.PolarsError:  # a day or an hour that does not exist
            dates = texts.str.slice(0, 10).str.to_date("%Y-%m-%d", strict=False)
            self._refuse(dates.is_null() & texts.is_not_null(), series, file, first_row)
            self._refuse(texts.is_not_null(), series, file, first_row)
            raise

    def _refuse(self, bad: "pl.Series", series: "pl.Series", file: Path, first_row: int) -> None:
        """Raises DataError for the first row that is bad; a null is none."""
        if not bad.any():
            return
        row = int(bad.fill_null(False).arg_max() or 0)
        raise DataError(
            f"{file}, {_place(file, first_row + row, self.file_format)}: column {series.name!r} is "
            f"text that is not an ISO 8601 datetime, for example {series[row]!r}. Give seconds "
            "since 1970 or datetimes such as 2024-01-31T12:00:00, or say how the times are "
            "written, such as data.time_format='%d/%m/%Y %H:%M:%S'"
        )


def _place(file: Path, row: int, file_format: Format) -> str:
    """Where a row stands, for messages; in texts the line, if every row takes one."""
    name = file.name.lower()
    if not file_format.text and name.endswith(PARQUET):
        return f"row {row}"
    header = not file_format.header and not name.endswith(JSONL)
    return f"line {row + 1 + header}"


def _types(schema: "Mapping[str, pl.DataType]") -> str:
    return ", ".join(f"{name} {kind}" for name, kind in schema.items())
