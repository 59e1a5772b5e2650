"""Reading parquet and CSV files into NumPy columns, with errors that name the file."""

import glob
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.data.schema import DataError

if TYPE_CHECKING:
    import polars as pl

PARQUET = (".parquet", ".pq")
CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


def find(pattern: str, key: str) -> list[Path]:
    """The files that a path or glob names, sorted; `key` is the config key in messages."""
    path = Path(pattern)
    if path.is_dir():
        raise DataError(
            f"{key}={pattern!r} is a folder. Name a file or a glob such as '{path / '*.parquet'}'"
        )
    # a plain file wins over a pattern: its name may hold brackets
    files = [path] if path.is_file() else sorted(Path(name) for name in glob.glob(pattern))
    if not files:
        raise DataError(f"{key}={pattern!r}: no such file. Check the path or the glob")
    return files


def fingerprint(files: Sequence[Path]) -> list[Any]:
    """Size and hash of the first and last MiB of every file: tells edited files apart cheaply."""
    prints: list[Any] = []
    for file in files:
        size = file.stat().st_size
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            digest.update(stream.read(2**20))
            stream.seek(max(0, size - 2**20))
            digest.update(stream.read())
        prints.append([size, digest.hexdigest()[:16]])
    return prints


def read_columns(
    files: Sequence[Path], columns: Sequence[str], times: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The named columns of all files, one below the other.

    times: columns in which text is read as ISO datetimes (CSV has no datetime type).

    Integers with nulls come as floats with NaN and texts with nulls as objects with None:
    `schema.check` refuses both. Raises DataError naming the file when it is empty or damaged,
    lacks a column, or its types differ from those of the files before it.
    """
    import polars as pl

    frames: list[pl.DataFrame] = []
    for file in files:
        frame = _read(file, columns, times)
        if frames and frame.schema != frames[0].schema:
            raise DataError(
                f"{file}: column types {_types(frame)} differ from those of {files[0]}: "
                f"{_types(frames[0])}. Convert one of them"
            )
        frames.append(frame)
    table = pl.concat(frames)
    return {name: _to_numpy(table[name]) for name in columns}


def _read(file: Path, columns: Sequence[str], times: Sequence[str]) -> "pl.DataFrame":
    import polars as pl

    name = file.name.lower()
    if not name.endswith(PARQUET + CSV):
        raise DataError(
            f"{file}: unknown kind of file. Known endings are {', '.join(PARQUET + CSV)}"
        )
    if not file.is_file():
        raise DataError(f"{file}: no such file")
    if not file.stat().st_size:
        raise DataError(f"{file}: the file is empty (0 bytes)")
    try:
        if name.endswith(PARQUET):
            have = list(pl.read_parquet_schema(file))
            _need(file, columns, have)
            frame = pl.read_parquet(file, columns=list(columns), glob=False)
        else:
            # types from all rows: a guess from the first ones breaks on mixed ids
            separator = "\t" if ".tsv" in name else ","
            frame = pl.read_csv(file, separator=separator, infer_schema_length=None, glob=False)
            _need(file, columns, frame.columns)
            frame = frame.select(columns)
    except DataError:
        raise
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read, the file is damaged or not what its ending says: {error}"
        ) from error
    for column in times:
        if frame.schema[column] == pl.String:
            try:
                parsed = frame[column].str.to_datetime(strict=True, time_zone="UTC")
            except pl.exceptions.PolarsError as error:
                raise DataError(
                    f"{file}: column {column!r} is text that is not an ISO datetime, for example "
                    f"{frame[column].drop_nulls()[0]!r}. Give seconds since 1970 or datetimes such "
                    "as 2024-01-31T12:00:00"
                ) from error
            frame = frame.with_columns(parsed)
    return frame


def _need(file: Path, columns: Sequence[str], have: Sequence[str]) -> None:
    missing = [name for name in columns if name not in have]
    if missing:
        raise DataError(
            f"{file}: column {missing[0]!r} is missing, there are: {', '.join(map(repr, have))}. "
            "Set data.user_column, data.item_column, data.time_column or data.text_columns to "
            "names in the table"
        )


def _types(frame: "pl.DataFrame") -> str:
    return ", ".join(f"{name} {kind}" for name, kind in frame.schema.items())


def _to_numpy(series: "pl.Series") -> np.ndarray:
    import polars as pl

    if series.dtype in (pl.Categorical, pl.Enum):
        series = series.cast(pl.String)
    if series.dtype == pl.Date:
        series = series.cast(pl.Datetime("ms"))
    if series.dtype == pl.Datetime and series.dtype.time_zone is not None:  # type: ignore[attr-defined]
        # NumPy datetimes have no zone; polars stores UTC underneath
        series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return series.to_numpy()
