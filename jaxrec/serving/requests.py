"""What callers give, checked once: raw ids and times to dense ones, grouped by user."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxrec.data import schema
from jaxrec.data.catalog import Catalog
from jaxrec.data.schema import Interactions
from jaxrec.errors import DataError
from jaxrec.serving.rows import Events
from jaxrec.types import UserId

NAMES = ("user_ids", "item_ids", "timestamps")


def check_events(user_ids: Any, item_ids: Any, timestamps: Any) -> Interactions:
    """Three columns [N] as a table; rows whose times have fractions come in time order.

    Raises DataError: different lengths, floats as ids, nulls, NaN, negative times, milliseconds.
    """
    columns = dict(zip(NAMES, map(np.asarray, (user_ids, item_ids, timestamps)), strict=True))
    for name, column in columns.items():
        if column.ndim != 1:
            raise DataError(f"append: {name} has shape {column.shape}: one axis is needed")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"append: columns differ in length: {found}")
    if not lengths["user_ids"]:
        nothing = np.zeros(0, np.int64)
        return Interactions(nothing, nothing, nothing)
    return schema.check(columns, "append", *NAMES)


def digest(table: Interactions, batch: int) -> str:
    """12 hex digits that identify events in their order, and how they are cut into batches."""
    sums = hashlib.blake2b(str(batch).encode(), digest_size=6)
    for column in (table.user, table.item, table.time):
        sums.update(f"{column.dtype} {len(column)} ".encode())
        sums.update(np.ascontiguousarray(column).view(np.uint8).data)
    return sums.hexdigest()


def by_user(
    user_ids: np.ndarray, items: np.ndarray, times: np.ndarray
) -> tuple[list[UserId], list[Events]]:
    """Distinct users, and the events of each in time order; ties keep the order given."""
    if not len(user_ids):
        return [], []
    users, index = np.unique(user_ids, return_inverse=True)
    order = np.lexsort((times, index))  # stable
    ends = np.cumsum(np.bincount(index, minlength=len(users)))[:-1]
    lines = zip(np.split(items[order], ends), np.split(times[order], ends), strict=True)
    return users.tolist(), [Events(*line) for line in lines]


def check_now(now: Any, batch: int, catalog: Catalog) -> np.ndarray | None:
    """int32 [B] model times of the requests from one time or [B] times; None stays None."""
    if now is None:
        return None
    given = np.asarray(now)
    if given.shape not in ((), (batch,)):
        raise DataError(f"now has shape {given.shape}: one time or one of {batch} is needed")
    flat = given.reshape(-1)
    index = np.zeros(len(flat), np.int64)
    # rows with fractions would be reordered: seconds are enough for a request
    flat = np.floor(flat) if flat.dtype.kind == "f" else flat
    seconds = schema.check(
        {"now": flat, "user": index, "item": index}, "now", "user", "item", "now"
    )
    return np.broadcast_to(catalog.seconds(seconds.time, "now"), (batch,))


def check_items(given: Any, batch: int, name: str, catalog: Catalog) -> list[np.ndarray] | None:
    """Dense ids per user, ascending and distinct, from one list of raw ids or one per user.

    None stays None; unknown items are left out: they are no candidates anyway.
    """
    if given is None:
        return None
    if isinstance(given, np.ndarray) and given.ndim in (1, 2):
        nested = given.ndim == 2
    elif isinstance(given, str | bytes | np.ndarray) or not isinstance(given, Iterable):
        raise DataError(f"{name}={given!r}: a list of item ids is needed")
    else:
        given = list(given)
        nested = any(_is_list(part) for part in given)
    if not nested:
        return [_dense(given, name, catalog)] * batch
    if len(given) != batch or not all(_is_list(part) for part in given):
        raise DataError(
            f"{name}: {len(given)} entries for {batch} users: one list of item ids for all users "
            "or one list per user is needed"
        )
    return [_dense(part, name, catalog) for part in given]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray | set | frozenset) and not isinstance(
        value, str | bytes
    )


def _dense(raw: Any, name: str, catalog: Catalog) -> np.ndarray:
    values = raw if isinstance(raw, np.ndarray) else list(raw)
    if not len(values):
        return np.zeros(0, np.int32)
    dense = np.unique(catalog.vocabulary.encode(schema.check_ids(values, name, "recommend")))
    return dense[dense > 0]
