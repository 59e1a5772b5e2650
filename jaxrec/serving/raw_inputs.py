"""Checks what callers pass, and turns raw ids and times into dense ones, grouped by user."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.data import schema
from jaxrec.data.catalog import Catalog
from jaxrec.data.schema import Interactions
from jaxrec.errors import DataError
from jaxrec.serving.state_rows import Events
from jaxrec.types import ItemId, UserId

# raw item ids: one list for all users, or a list per user
ItemLists: TypeAlias = Iterable[ItemId] | Iterable[Iterable[ItemId]] | np.ndarray

# 5 and "5" are two ids
MIXED = "integers and texts are mixed; use those of the training data"
NAMES = ("user_ids", "item_ids", "timestamps")


class NewEvents(NamedTuple):
    """Checked events of distinct users.

    users, events: the users and the known events of each. unknown_items: how many events were left
    out because the model does not know their items. table: all events, raw.
    """

    users: list[UserId]
    events: list[Events]
    unknown_items: int
    table: Interactions


def new_events(
    user_ids: ArrayLike, item_ids: ArrayLike, timestamps: ArrayLike, catalog: Catalog
) -> NewEvents:
    """Three columns [N] of raw ids and times as events of users, in dense ids and model times.

    Raises DataError as `check_events`, and for user ids of another kind than in training.
    """
    table = check_events(user_ids, item_ids, timestamps)
    times = catalog.seconds(table.time, "append")
    items = catalog.vocabulary.encode(table.item)
    known = items > 0
    users, events = by_user(table.user[known], items[known], times[known])
    catalog.check_users(users, "append")
    return NewEvents(users, events, int((~known).sum()), table)


def check_events(user_ids: ArrayLike, item_ids: ArrayLike, timestamps: ArrayLike) -> Interactions:
    """Three columns [N] as a table; rows are sorted by time if times have fractions of a second.

    Raises DataError: different lengths, floats as ids, integers beside texts, nulls, NaN, negative
    times, milliseconds.
    """
    user, item, time = NAMES
    columns = {
        user: _ids(user_ids, f"append: {user}"),
        item: _ids(item_ids, f"append: {item}"),
        time: np.asarray(timestamps),
    }
    for name, column in columns.items():
        if column.ndim != 1:
            raise DataError(f"append: {name} has shape {column.shape}: one axis is needed")
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        described = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise DataError(f"append: columns differ in length: {described}")
    if not lengths["user_ids"]:
        empty = np.zeros(0, np.int64)
        return Interactions(empty, empty, empty)
    return schema.check(columns, "append", *NAMES)


def digest(table: Interactions, batch: int) -> str:
    """12 hex digits of a set of events, in whatever order, and of how it is cut into batches."""
    sums = hashlib.blake2b(str(batch).encode(), digest_size=6)
    order = np.lexsort((table.time, table.item, table.user))
    for column in (table.user, table.item, table.time):
        sums.update(f"{column.dtype} {len(column)} ".encode())
        sums.update(np.ascontiguousarray(column[order]).view(np.uint8).data)
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
    columns = zip(np.split(items[order], ends), np.split(times[order], ends), strict=True)
    return users.tolist(), [Events(*pair) for pair in columns]


def check_k(k: object) -> int:
    """The length of a list. Raises ValueError unless it is a positive integer."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k={k!r}: a positive integer is needed")
    return int(k)


def check_now(now: ArrayLike | None, batch: int, catalog: Catalog) -> np.ndarray | None:
    """int32 [B] model times of the requests from one time or [B] times; None stays None."""
    if now is None:
        return None
    moments = np.asarray(now)
    if moments.shape not in ((), (batch,)):
        raise DataError(f"now has shape {moments.shape}: one time or one of {batch} is needed")
    flat = moments.reshape(-1)
    index = np.zeros(len(flat), np.int64)
    # `schema.check` sorts rows whose times have fractions; a request needs whole seconds only
    flat = np.floor(flat) if flat.dtype.kind == "f" else flat
    seconds = schema.check(
        {"now": flat, "user": index, "item": index}, "now", "user", "item", "now"
    )
    return np.broadcast_to(catalog.seconds(seconds.time, "now"), (batch,))


def check_items(
    items: ItemLists | None, batch: int, name: str, catalog: Catalog
) -> list[np.ndarray] | None:
    """Dense ids per user, ascending and distinct, from one list of raw ids or one per user.

    None stays None. Unknown items are left out: they are no candidates anyway. name: the
    argument, for messages. Raises DataError.
    """
    if items is None:
        return None
    if isinstance(items, np.ndarray) and items.ndim in (1, 2):
        nested = items.ndim == 2
    elif isinstance(items, str | bytes | np.ndarray) or not isinstance(items, Iterable):
        raise DataError(f"{name}={items!r}: a list of item ids is needed")
    else:
        items = list(items)
        nested = any(_is_list(entry) for entry in items)
    if not nested:
        return [_dense(items, name, catalog)] * batch
    if len(items) != batch or not all(_is_list(entry) for entry in items):
        raise DataError(
            f"{name}: {len(items)} entries for {batch} users: one list of item ids for all users "
            "or one list per user is needed"
        )
    return [_dense(entry, name, catalog) for entry in items]


def _ids(values: ArrayLike, what: str) -> np.ndarray:
    """Ids as an array, before `schema.check_ids` looks at them.

    NumPy makes texts of a list of integers and texts, and integers of booleans. Raises DataError
    naming `what` for the first; an array of other mixtures keeps the values as they are.
    """
    array = np.asarray(values)
    if not isinstance(values, list | tuple) or array.dtype.kind not in "iuUS":
        return array
    kinds = {_kind(value) for value in values}
    if kinds == {"integer", "text"}:
        raise DataError(f"{what}: {MIXED}")
    return array if len(kinds) < 2 else np.asarray(values, object)


def _kind(value: object) -> str:
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return "integer"
    return "text" if isinstance(value, str) else type(value).__name__


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence | np.ndarray | set | frozenset) and not isinstance(
        value, str | bytes
    )


def _dense(raw: Iterable[ItemId] | np.ndarray, name: str, catalog: Catalog) -> np.ndarray:
    """int32 [X] dense ids, ascending and distinct; unknown items are left out."""
    values = raw if isinstance(raw, np.ndarray) else list(raw)
    if not len(values):
        return np.zeros(0, np.int32)
    checked = schema.check_ids(_ids(values, name), name, "recommend")
    try:
        dense = np.unique(catalog.vocabulary.encode(checked))
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    return dense[dense > 0]
