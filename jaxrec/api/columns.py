"""Columns of any data frame as polars series that the reader of tables understands.

Missing values of every kind (None, NaN, NaT, NA) become nulls; categories become what they name.
pandas is converted without pyarrow, which it does not need.
"""

import datetime
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxrec.data import schema
from jaxrec.errors import DataError

if TYPE_CHECKING:
    import narwhals as nw
    import polars as pl

DATE_UNITS = ("D", "ms", "us", "ns")  # of NumPy's datetimes, as polars takes them


def convert(series: "nw.Series[Any]", source: str) -> "pl.Series":
    """A column of a data frame as a polars series of the same name.

    source: of the frame, for messages. Raises DataError for values that no id or time can be.
    """
    import polars as pl

    native, name = series.to_native(), series.name
    if series.implementation.is_polars():
        return native
    if series.implementation.is_pyarrow():
        return pl.Series(name, native)
    if not series.implementation.is_pandas_like():
        return of_values(series.to_list(), name, source)
    zone = getattr(native.dtype, "tz", None)
    if zone is not None and native.dtype.kind == "M" and not hasattr(native.dtype, "pyarrow_dtype"):
        naive = native.dt.tz_convert("UTC").dt.tz_localize(None)
        return _of_numpy(naive.to_numpy(), name).dt.replace_time_zone("UTC")
    if isinstance(native.dtype, np.dtype) and native.dtype.kind in "iufbmM":
        return _of_numpy(native.to_numpy(), name)
    missing = native.isna().tolist()
    values = zip(native.tolist(), missing, strict=True)
    return of_values([None if gone else value for value, gone in values], name, source)


def _of_numpy(array: np.ndarray, name: str) -> "pl.Series":
    import polars as pl

    if array.dtype.kind == "M" and np.datetime_data(array.dtype)[0] not in DATE_UNITS:
        array = array.astype("datetime64[ms]")  # coarser units, such as whole seconds
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    # NaN is how pandas says that a value is missing
    return pl.Series(name, array, nan_to_null=array.dtype.kind == "f")


def of_values(values: Iterable[object], name: str, source: str) -> "pl.Series":
    """Python values, None where there is none, as a series. Raises DataError for mixed kinds."""
    import polars as pl

    plain = [_plain(value) for value in values]
    kinds = {type(value) for value in plain if value is not None}
    if kinds == {int, float}:
        return pl.Series(name, [None if v is None else float(v) for v in plain], pl.Float64)
    if len(kinds) == 1 and kinds <= {int, float, str, bool, datetime.date, datetime.datetime}:
        if kinds == {datetime.datetime}:
            return _of_datetimes(plain, name, source)
        if kinds == {int}:
            present = np.asarray([value for value in plain if value is not None], object)
            schema.check_ids(present, name, source)  # beyond int64
        return pl.Series(name, plain, strict=True)
    if not kinds:
        return pl.Series(name, plain, pl.Null)
    described = ", ".join(sorted(kind.__name__ for kind in kinds))
    raise DataError(
        f"{source}: column {name!r} holds {described} values. Ids must be integers or text, all of "
        "one kind, and times seconds since 1970, datetimes or ISO 8601 text: convert the column"
    )


def _plain(value: object) -> Any:
    """Python's own type of a scalar; NaN and NaT are None."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, datetime.datetime):  # pandas' timestamps among them
        if value != value:  # NaT
            return None
        return value.to_pydatetime(warn=False) if hasattr(value, "to_pydatetime") else value
    return value


def _of_datetimes(values: list[Any], name: str, source: str) -> "pl.Series":
    """Datetimes, all with or all without a zone. Raises DataError for a mixture."""
    import polars as pl

    zoned = {value.tzinfo is not None for value in values if value is not None}
    if len(zoned) > 1:
        raise DataError(
            f"{source}: column {name!r} mixes times with and without a zone. Write all of them one "
            "way; data.time_zone is for those without"
        )
    if zoned == {False}:
        return pl.Series(name, values, pl.Datetime("us"))
    utc = [None if v is None else v.astimezone(datetime.UTC).replace(tzinfo=None) for v in values]
    return pl.Series(name, utc, pl.Datetime("us")).dt.replace_time_zone("UTC")


def ids(series: "pl.Series", source: str) -> "pl.Series":
    """A column of ids in the one form in which it is stored: int64 or text.

    Raises DataError for floats and for integers beyond int64. Other types pass: the reader of
    tables refuses them.
    """
    import polars as pl

    if series.dtype in (pl.Categorical, pl.Enum):
        return series.cast(pl.String)
    if series.dtype == pl.Null:
        return series.cast(pl.String)
    if series.dtype.is_float():
        missing = series.null_count() + series.is_nan().to_list().count(True)
        nulls = f", {missing} rows are null or NaN" if missing else ""
        raise DataError(
            f"{source}: column {series.name!r} has type {series.dtype}{nulls}. Ids must be "
            "integers or text (floats lose digits beyond 2^53): convert the column, in pandas "
            "with missing values by .astype('Int64')"
        )
    if series.dtype.is_integer():
        whole = series.cast(pl.Int64, strict=False)
        if whole.null_count() > series.null_count():
            schema.check_ids(np.asarray(series.drop_nulls().to_list(), object), series.name, source)
        return whole
    return series


def times(series: "pl.Series") -> "pl.Series":
    """A column of times in the one form in which it is stored.

    Integers are int64; datetimes count microseconds, or nanoseconds where they have some, and those
    with a zone are in UTC. Other types pass: the reader of tables takes or refuses them.
    """
    import polars as pl

    kind = series.dtype
    if kind in (pl.Categorical, pl.Enum):
        return series.cast(pl.String)
    if kind == pl.Null:
        return series.cast(pl.Int64)
    if kind.is_integer():
        whole = series.cast(pl.Int64, strict=False)
        return whole if whole.null_count() == series.null_count() else series
    if isinstance(kind, pl.Datetime):
        if kind.time_zone is not None:
            series = series.dt.convert_time_zone("UTC")
        fine = kind.time_unit == "ns" and bool((series.to_physical() % 1000 != 0).any())
        return series if fine else series.dt.cast_time_unit("us")
    return series
