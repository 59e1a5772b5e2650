"""Kinds of values in the columns of files: integers, numbers or texts, and words for nulls."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.data.datasets.file_format import Format, place
from jaxrec.data.schema import INT64_MAX
from jaxrec.errors import DataError

if TYPE_CHECKING:
    import polars as pl

INTEGER = r"^[+-]?\d+$"
LEADING_ZERO = r"^[+-]?0\d"  # an id with one is text: 001 and 1 are two ids
NO_ID = r"^(?:true|false|\[.*|\{.*)$"  # in JSON lines
NUMBER = r"(?i)^[+-]?(?:\d+\.?\d*(?:e[+-]?\d+)?|\.\d+(?:e[+-]?\d+)?|nan|inf)$"


def csv_kinds(
    file: Path, plain: "pl.LazyFrame", columns: Sequence[str], file_format: Format
) -> "tuple[dict[str, type[pl.DataType]], list[str]]":
    """Types of CSV columns, from all rows, and the columns that hold words for nulls.

    A guess of the types from the first rows breaks on mixed ids.
    """
    import polars as pl

    tests = []
    for column in columns:
        texts = without_null_words(column, file_format)
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


def json_texts(
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


def as_kind(
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
            f"{file}, {place(file, first_row + row, file_format)}: column {series.name!r} holds "
            f"{series[row]!r}, which is no integer of 64 bits as {file_format.id_keys[series.name]}"
            "=integer says. Repair the row or set it to text"
        )
    return integers


def conversion(differing: Collection[str], id_keys: Mapping[str, str]) -> str:
    """What to do about columns whose types differ between files; id_keys: as of `Format`."""
    keys = [key for column, key in id_keys.items() if column in differing]
    return f"Set {keys[0]}=text" if keys else "Convert one of them"


def without_null_words(column: str, file_format: Format) -> "pl.Expr":
    """A column of texts in which words that mean null are null."""
    import polars as pl

    if column not in file_format.null_columns or not file_format.null_values:
        return pl.col(column)
    words = pl.col(column).is_in(list(file_format.null_values))
    return pl.when(~words).then(pl.col(column)).alias(column)
