"""Raw interactions: columns, validation, id vocabulary.

Every reader in `jaxrec.data.datasets` hands its columns to `check`, so bad input is refused in
one place and with one kind of message: the table, the column, what was found, what to do.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

log = logging.getLogger(__name__)

INT64_MAX = 2**63 - 1
INT32_MAX = 2**31 - 1
# Seconds since 1970 reach 1e11 in the year 5138: anything above counts smaller units.
LARGEST_SECOND = 10**11


class DataError(ValueError):
    """Data that cannot be used: names the file or table, what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class Interactions:
    """One row per event, in input order.

    user, item: int64 or str (NumPy `U`) [N], raw ids.
    time: int64 [N], seconds since 1970.
    returning: bool [N], event planted as a return to an early preference (synthetic data only).
    duplicates: how many rows repeat an earlier (user, item, time); still in the table unless
        `check` was told to drop them.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    returning: np.ndarray | None = None
    duplicates: int = 0

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: np.ndarray) -> "Interactions":
        """The rows at `rows` (indices or a boolean mask)."""
        returning = None if self.returning is None else self.returning[rows]
        return dataclasses.replace(
            self,
            user=self.user[rows],
            item=self.item[rows],
            time=self.time[rows],
            returning=returning,
        )


class ItemTexts(NamedTuple):
    """Texts of items: raw `ids` int or str [M], `columns` name -> text or None [M]."""

    ids: np.ndarray
    columns: dict[str, np.ndarray]


class Raw(NamedTuple):
    """What a reader gives: events, texts where there are any, and a name for messages."""

    interactions: Interactions
    texts: ItemTexts | None
    source: str


def check(
    columns: Mapping[str, Any],
    source: str,
    user: str = "user_id",
    item: str = "item_id",
    time: str = "timestamp",
    duplicates: str = "keep",
    returning: np.ndarray | None = None,
) -> Interactions:
    """Validated interactions.

    columns: column name -> array-like [N]. Ids are integers or text, times integers, floats
        (seconds since 1970) or datetime64; rows with fractions of a second are put in time
        order before the fraction is cut off.
    source: how messages call the table (a file name).
    user, item, time: names of the columns.
    duplicates: `keep` or `drop` rows that repeat an earlier (user, item, time).

    Raises DataError: a missing column, a wrong type, nulls, ids beyond int64, negative times,
    times in milliseconds or smaller units, no rows.
    """
    for name in (user, item, time):
        if name not in columns:
            have = ", ".join(map(repr, columns)) or "none"
            raise DataError(
                f"{source}: column {name!r} is missing, there are: {have}. Set data.user_column, "
                "data.item_column and data.time_column to the names in the table"
            )
    users, items = check_ids(columns[user], user, source), check_ids(columns[item], item, source)
    seconds, order = _seconds(np.asarray(columns[time]), time, source)
    if not len(users) == len(items) == len(seconds):
        raise DataError(
            f"{source}: columns differ in length: {user!r} {len(users)}, {item!r} {len(items)}, "
            f"{time!r} {len(seconds)}"
        )
    if not len(seconds):
        raise DataError(f"{source}: no rows. Give a table with at least one event")
    table = Interactions(users, items, seconds, returning)
    if order is not None:
        table = table.take(order)
    repeats = repeated_rows(table)
    count = int(repeats.sum())
    if count:
        kept = "dropped" if duplicates == "drop" else "kept"
        log.info("%s: %d of %d rows repeat an earlier row: %s", source, count, len(repeats), kept)
        if duplicates == "drop":
            table = table.take(~repeats)
    return dataclasses.replace(table, duplicates=count)


def check_ids(values: Any, name: str, source: str) -> np.ndarray:
    """Ids of column `name` as an int64 or `U` array; DataError for anything that is no id."""
    array = np.asarray(values)
    if array.dtype.kind == "O":
        missing = [i for i, value in enumerate(array) if value is None or value != value]
        if missing:
            raise DataError(
                f"{source}: column {name!r} is null in {len(missing)} rows, first in row "
                f"{missing[0]}. Remove these rows"
            )
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


def _beyond_int64(source: str, name: str, value: int) -> DataError:
    return DataError(
        f"{source}: column {name!r} holds {value}, beyond int64 (largest is {INT64_MAX}). "
        "Store such ids as text"
    )


def _seconds(array: np.ndarray, name: str, source: str) -> tuple[np.ndarray, np.ndarray | None]:
    """int64 seconds, and the stable time order when fractions of a second were cut off."""
    order = None
    if array.dtype.kind == "O" and not len(array):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iufM":
        found = f", for example {array[0]!r}" if len(array) else ""
        raise DataError(
            f"{source}: column {name!r} has type {array.dtype}{found}. Times must be seconds "
            "since 1970 or datetimes: convert the column"
        )
    bad = np.isnat(array) if array.dtype.kind == "M" else ~np.isfinite(array)
    if bad.any():
        raise DataError(
            f"{source}: column {name!r} is null, NaN or infinite in {int(bad.sum())} rows, first "
            f"in row {int(bad.argmax())}. Remove or repair these rows"
        )
    # compared before the cast: a float or uint64 beyond int64 must not wrap around
    if array.dtype.kind != "M" and len(array) and array.max() > LARGEST_SECOND:
        raise DataError(
            f"{source}: column {name!r} reaches {array.max()}, more than seconds since 1970 can "
            "be: these look like milliseconds or smaller units. Divide by 1000 (milliseconds), "
            "1e6 (microseconds) or 1e9 (nanoseconds)"
        )
    if array.dtype.kind == "M":
        whole = array.astype("datetime64[s]")  # rounds towards the past
        fractions = bool((whole != array).any())
        seconds = whole.astype(np.int64)
    else:
        floor = np.floor(array) if array.dtype.kind == "f" else array
        fractions = bool((floor != array).any())
        seconds = floor.astype(np.int64)
    if fractions:
        order = np.argsort(array, kind="stable")
    if len(seconds) and seconds.min() < 0:
        row = int((seconds < 0).argmax())
        raise DataError(
            f"{source}: column {name!r} is negative in {int((seconds < 0).sum())} rows, first in "
            f"row {row} ({array[row]}). Times are seconds since 1970: remove or repair these rows"
        )
    return seconds, order


def repeated_rows(table: Interactions) -> np.ndarray:
    """bool [N]: rows whose (user, item, time) occurs in an earlier row."""
    _, user = np.unique(table.user, return_inverse=True)
    _, item = np.unique(table.item, return_inverse=True)
    order = np.lexsort((item, table.time, user))  # stable: the earliest row comes first
    user, item, time = user[order], item[order], table.time[order]
    same = (user[1:] == user[:-1]) & (item[1:] == item[:-1]) & (time[1:] == time[:-1])
    repeats = np.zeros(len(table), bool)
    repeats[order[1:][same]] = True
    return repeats


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """Raw item ids <-> dense ids 1..V; 0 is padding and every unknown item.

    ids: int64 or str [V], raw id of dense ids 1..V.
    """

    ids: np.ndarray

    def __post_init__(self) -> None:
        kind = self.ids.dtype.kind
        if self.ids.ndim != 1 or kind not in "iU":
            raise DataError(f"vocabulary: ids must be one int or text column, not {self.ids.dtype}")
        order = np.argsort(self.ids, kind="stable")
        ranked = self.ids[order]
        if (ranked[1:] == ranked[:-1]).any():
            twice = ranked[1:][ranked[1:] == ranked[:-1]][0]
            raise DataError(f"vocabulary: item id {twice!r} occurs twice")
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_ranked", ranked)

    @classmethod
    def by_frequency(cls, items: np.ndarray) -> "Vocabulary":
        """The distinct values of `items`, most frequent first, ties by raw id."""
        ids, counts = np.unique(items, return_counts=True)
        return cls(ids[np.argsort(-counts, kind="stable")])

    def __len__(self) -> int:
        """V: items without padding."""
        return len(self.ids)

    def encode(self, raw: Any) -> np.ndarray:
        """int32 dense ids of raw ids, 0 for unknown ones, shape of `raw`."""
        raw = np.asarray(raw)
        if raw.size == 0:
            return np.zeros(raw.shape, np.int32)
        if (raw.dtype.kind in "iu") != (self.ids.dtype.kind == "i") or raw.dtype.kind not in "iuU":
            raise DataError(
                f"vocabulary: its item ids are {self._kind}, the given ones {raw.dtype}. "
                f"Convert them to {self._kind}"
            )
        if not len(self):
            return np.zeros(raw.shape, np.int32)
        order, ranked = self.__dict__["_order"], self.__dict__["_ranked"]
        place = np.minimum(np.searchsorted(ranked, raw), len(self) - 1)
        return np.where(ranked[place] == raw, order[place] + 1, 0).astype(np.int32)

    def decode(self, ids: Any) -> np.ndarray:
        """Raw ids of dense ids 1..V; DataError for 0 and anything beyond V."""
        ids = np.asarray(ids)
        if ids.size and (ids.min() < 1 or ids.max() > len(self)):
            raise DataError(
                f"vocabulary: dense ids are 1..{len(self)}, found {ids.min()}..{ids.max()}"
            )
        return self.ids[ids - 1]

    @property
    def _kind(self) -> str:
        return "integers" if self.ids.dtype.kind == "i" else "text"

    def to_json(self) -> str:
        kind = "int" if self.ids.dtype.kind == "i" else "str"
        return json.dumps({"kind": kind, "ids": self.ids.tolist()}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Vocabulary":
        value = json.loads(text)
        return cls(np.asarray(value["ids"], np.int64 if value["kind"] == "int" else np.str_))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the vocabulary as JSON; the file appears complete or not at all."""
        path = Path(path)
        draft = path.with_name(path.name + ".partial")
        draft.write_text(self.to_json(), encoding="utf-8")
        os.replace(draft, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Raises DataError naming the file when it is not a saved vocabulary."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path}: not a saved vocabulary ({error!r})") from error
