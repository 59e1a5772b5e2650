"""Raw interactions: columns and their validation.

The columns of every reader in `jaxrec.data.datasets` and of every request pass `check_ids` and
`seconds`, so bad input is refused in one place and with one kind of message: the table, the column,
the bad value, the remedy.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.errors import DataError

INT64_MAX = 2**63 - 1
INT32_MAX = 2**31 - 1
# Seconds since 1970 reach 1e11 in the year 5138: anything above counts smaller units.
LARGEST_SECOND = 10**11
# A smaller unit that falls before March 1973 is really a larger one.
SMALLEST_SECOND = 10**8
# digits of numbers that are calendar times -> how they are written
CALENDAR = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # ticks per second
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


@dataclasses.dataclass(frozen=True)
class Interactions:
    """One row per event.

    user, item: int64 or str (NumPy `U`) [N], raw ids.
    time: int64 [N], seconds since 1970.
    returning: bool [N], event planted as a return to an old item (datasets.PLANTED only).
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    returning: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: np.ndarray) -> "Interactions":
        """The rows at `rows` (indices or a boolean mask)."""
        returning = None if self.returning is None else self.returning[rows]
        return Interactions(self.user[rows], self.item[rows], self.time[rows], returning)


def check(
    columns: Mapping[str, ArrayLike],
    source: str,
    user: str = "user_id",
    item: str = "item_id",
    time: str = "timestamp",
) -> Interactions:
    """A small table of validated interactions; rows with fractions of a second come in time order.

    columns: column name -> array-like [N]. Ids are integers or text, times integers, floats
        (seconds since 1970) or datetime64.
    source: name of the table in messages. user, item, time: names of the columns.

    Raises DataError: a missing column, a wrong type, nulls, ids beyond int64, negative times,
    times in milliseconds or smaller units, no rows.
    """
    require(columns, (user, item, time), source)
    arrays = {name: np.asarray(columns[name]) for name in (user, item, time)}
    if all(not len(array) for array in arrays.values()):
        raise DataError(f"{source}: no rows. Give a table with at least one event")
    users, items = check_ids(arrays[user], user, source), check_ids(arrays[item], item, source)
    moments, fraction = seconds(arrays[time], time, source)
    if not len(users) == len(items) == len(moments):
        raise DataError(
            f"{source}: columns differ in length: {user!r} {len(users)}, {item!r} {len(items)}, "
            f"{time!r} {len(moments)}"
        )
    table = Interactions(users, items, moments)
    return table if fraction is None else table.take(np.lexsort((fraction, moments)))


def require(columns: Iterable[str], needed: Sequence[str], source: str, hint: str = "") -> None:
    """Raises DataError for the first of `needed` that is not among the columns of `source`."""
    have = list(columns)
    missing = [name for name in needed if name not in have]
    if missing:
        advice = hint or (
            "Set data.user_column, data.item_column, data.time_column or data.text_columns to "
            "names in the table"
        )
        separator = next((mark for mark in ";\t|," if len(have) == 1 and mark in have[0]), "")
        if separator:
            advice = f"Fields are separated by {separator!r}: .csv needs commas, .tsv needs tabs"
        raise DataError(
            f"{source}: column {missing[0]!r} is missing, there are: "
            f"{', '.join(map(repr, have)) or 'none'}. {advice}"
        )


def check_ids(values: ArrayLike, name: str, source: str, first_row: int = 0) -> np.ndarray:
    """Ids of column `name` as an int64 or `U` array [N].

    first_row: row number of the first value, where the values are a part of a table. Raises
    DataError for nulls and for anything but integers and text.
    """
    array = np.asarray(values)
    _single_values(array, name, source)
    if array.dtype.kind == "O":
        floats = (float, np.floating)  # NaN; other values may have no truth (lists, arrays)
        missing = [
            i for i, v in enumerate(array) if v is None or (isinstance(v, floats) and v != v)
        ]
        if missing:
            raise null_column(source, name, len(missing), missing[0] + first_row)
        kinds = sorted({type(value).__name__ for value in array})
        if kinds == ["str"]:
            return array.astype(np.str_)
        if kinds == ["int"]:
            large = next((v for v in array if not -INT64_MAX - 1 <= v <= INT64_MAX), None)
            if large is not None:
                raise _beyond_int64(source, name, large)
            return array.astype(np.int64)
        if kinds:
            raise DataError(
                f"{source}: column {name!r} holds {', '.join(kinds)} values. Ids must be "
                "integers or text"
            )
        return array.astype(np.int64)
    if array.dtype.kind == "u" and array.size and int(array.max()) > INT64_MAX:
        raise _beyond_int64(source, name, int(array.max()))
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    if array.dtype.kind in "UT":
        return array.astype(np.str_)
    hint = ""
    if array.dtype.kind == "f":
        nulls = int(np.isnan(array).sum())
        hint = f", {nulls} rows are null or NaN" if nulls else ""
    raise DataError(
        f"{source}: column {name!r} has type {array.dtype}{hint}. Ids must be integers or text "
        "(floats lose digits beyond 2^53): convert the column"
    )


def _single_values(array: np.ndarray, name: str, source: str) -> None:
    """Raises DataError for a column that holds a list in every row."""
    if array.ndim != 1:
        raise DataError(
            f"{source}: column {name!r} holds {array.shape[1:]} values in every row. "
            "Give one row per event"
        )


def null_column(source: str, name: str, rows: int, first: int) -> DataError:
    """The error about missing ids and times; first: number of the first row without one."""
    return DataError(
        f"{source}: column {name!r} is null in {rows} rows, first in row {first}. Remove these rows"
    )


def _beyond_int64(source: str, name: str, value: int) -> DataError:
    return DataError(
        f"{source}: column {name!r} holds {value}, beyond int64 (largest is {INT64_MAX}). "
        "Store such ids as text"
    )


def seconds(
    array: np.ndarray, name: str, source: str, unit: str = "s", first_row: int = 0
) -> tuple[np.ndarray, np.ndarray | None]:
    """int64 [N] seconds since 1970 and int32 [N] nanoseconds beyond them (None: all are 0).

    array: integers or floats that count `unit` (s, ms, us, ns) since 1970, or datetime64.
    first_row: as in `check_ids`.

    Raises DataError: another type, nulls, negative times, calendar times such as 20240131, and
    numbers that cannot count `unit`
    (seconds above 1e11 are smaller units; smaller units that fall before March 1973 are seconds),
    so a column that mixes units is refused whatever `unit` is.
    """
    _single_values(array, name, source)
    if array.dtype.kind not in "iufM":
        example = f", for example {array.tolist()[0]!r}" if len(array) else ""
        raise DataError(
            f"{source}: column {name!r} has type {array.dtype}{example}. Times must be seconds "
            "since 1970 or datetimes: convert the column"
        )
    bad = np.isnat(array) if array.dtype.kind == "M" else ~np.isfinite(array)
    if bad.any():
        raise DataError(
            f"{source}: column {name!r} is null, NaN or infinite in {int(bad.sum())} rows, first "
            f"in row {int(bad.argmax()) + first_row}. Remove or repair these rows"
        )
    negative = array < np.zeros((), array.dtype)  # of datetimes: 1970
    if negative.any():
        row = int(negative.argmax())
        raise DataError(
            f"{source}: column {name!r} is negative in {int(negative.sum())} rows, first in row "
            f"{row + first_row} ({array[row]}). Times are seconds since 1970: remove or repair "
            "these rows"
        )
    if array.dtype.kind == "M":
        whole = array.astype("datetime64[s]")
        rest = (array - whole).astype("timedelta64[ns]").astype(np.int32)
        return whole.astype(np.int64), rest if rest.any() else None
    _check_unit(array, name, source, unit, first_row)
    ticks = UNITS[unit]
    if array.dtype.kind == "f" and len(array) and np.spacing(array.max()) > ticks:
        raise DataError(
            f"{source}: column {name!r} reaches {array.max():.0f} in {array.dtype}, which holds "
            f"times there in steps of {np.spacing(array.max()) / ticks:.0f} seconds: the order of "
            "events is lost. Store the times as integers, float64 or datetimes"
        )
    if array.dtype.kind == "f":
        scaled = array.astype(np.float64) / ticks
        floor = np.floor(scaled)
        rest = ((scaled - floor) * 1e9).astype(np.int32)
        return floor.astype(np.int64), rest if rest.any() else None
    if ticks == 1:
        return array.astype(np.int64), None
    whole, left = np.divmod(array.astype(np.int64), ticks)
    rest = (left * (10**9 // ticks)).astype(np.int32)
    return whole, rest if rest.any() else None


def _calendar(array: np.ndarray) -> str:
    """The format of numbers that are all calendar times, such as 20240131; else an empty text.

    Years 1900 to 2100, with a month and a day and up to an hour, a minute and a second. Counts of a
    unit are valid dates by chance in a few rows, not in all.
    """
    for digits, pattern in CALENDAR.items():
        low, high = 1900 * 10 ** (digits - 4), 2101 * 10 ** (digits - 4)
        if not low <= array.min() <= array.max() < high or (array != np.floor(array)).any():
            continue
        whole = array.astype(np.int64)
        for _ in range((digits - 8) // 2):
            if (whole % 100 >= (24 if whole.max() < 10**10 else 60)).any():
                break
            whole = whole // 100
        else:
            month, day = whole // 100 % 100, whole % 100
            if ((month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)).all():
                return pattern
    return ""


def _check_unit(array: np.ndarray, name: str, source: str, unit: str, first_row: int = 0) -> None:
    """Raises DataError unless the times can count `unit`.

    Compared before any cast: a float or uint64 beyond int64 must not wrap around.
    """
    if not len(array):
        return
    pattern = _calendar(array)
    if pattern:
        raise DataError(
            f"{source}: column {name!r} holds calendar times such as {int(array[0])}, first in row "
            f"{first_row}, and no {UNIT_NAMES[unit]} since 1970. Set data.time_format={pattern!r}"
        )
    if array.max() > LARGEST_SECOND * UNITS[unit]:
        larger = [u for u, ticks in UNITS.items() if array.max() <= LARGEST_SECOND * ticks]
        likely = UNIT_NAMES[larger[0]] if larger else "no unit of time"
        raise DataError(
            f"{source}: column {name!r} reaches {array.max()}, more than {UNIT_NAMES[unit]} since "
            f"1970 can be: these look like {likely}. Divide by 1000 "
            "(milliseconds), 1e6 (microseconds) or 1e9 (nanoseconds), or set data.time_unit"
        )
    if unit != "s" and array.min() < SMALLEST_SECOND * UNITS[unit]:
        raise DataError(
            f"{source}: column {name!r} holds {array.min()}, as {UNIT_NAMES[unit]} since 1970 "
            "before March 1973: these look like seconds or larger units. Set data.time_unit to "
            "what the column counts, and convert columns that mix units"
        )
