"""Requests as callers make them, and their answers as frames: of histories and of stored states."""

import datetime
import zoneinfo
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxrec.api import frames
from jaxrec.api.frames import Frame
from jaxrec.api.ranker import say_unknown
from jaxrec.config import DataConfig
from jaxrec.data import schema
from jaxrec.data.catalog import Catalog
from jaxrec.errors import DataError
from jaxrec.serving import raw_inputs
from jaxrec.serving.raw_inputs import ItemLists
from jaxrec.serving.requests import Request
from jaxrec.types import UserId

POPULAR = "given the most popular items (known=False, their scores are training counts)"


class Asked(NamedTuple):
    """Users of a request: raw ids [B], and the library that its answer is a frame of."""

    users: list[UserId]
    library: str


def asked(users: object, data: DataConfig, catalog: Catalog, library: str) -> Asked:
    """Users of a list, an array, a series or a frame, checked against the catalog's kind of ids.

    library: of the answer where users come in none. Raises DataError.
    """
    ids, own = frames.user_ids(users, data.user_column, "recommend")
    catalog.check_users(ids, "recommend")
    return Asked(ids, own or library)


def request(
    k: int,
    count: int,
    catalog: Catalog,
    *,
    now: object,
    zone: str,
    exclude: ItemLists | None,
    candidates: ItemLists | None,
) -> Request:
    """The request of `count` users for k items. Raises DataError naming the argument.

    zone: of a `now` that names none, as `data.time_zone`.
    """
    check_k(k)
    excluded, among = item_lists(exclude, "exclude"), item_lists(candidates, "candidates")
    dense = {
        "exclude": raw_inputs.check_items(excluded, count, "exclude", catalog),
        "candidates": raw_inputs.check_items(among, count, "candidates", catalog),
    }
    say_unknown_items({"exclude": excluded, "candidates": among}, catalog)
    return Request(
        min(k, catalog.num_items),
        now=raw_inputs.check_now(moment(now, zone), count, catalog),
        exclude=dense["exclude"] or [np.zeros(0, np.int32)] * count,
        candidates=dense["candidates"],
    )


def say_unknown_items(lists: Mapping[str, ItemLists | None], catalog: Catalog) -> None:
    """Says how many distinct items of lists, by their name, the model does not know."""
    for name, given in lists.items():
        flat = _flat(given)
        if len(flat):
            unknown = catalog.vocabulary.encode(flat) == 0
            say_unknown(unknown, f"items of {name}", "ignored")


def check_k(k: object) -> None:
    """Raises DataError unless k is a positive integer."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise DataError(f"k={k!r}: a positive integer is needed")


def item_lists(items: object, name: str, call: str = "recommend") -> ItemLists | None:
    """Raw item ids in the form of `raw_inputs.check_items`; a series of any library is a list."""
    if items is None or isinstance(items, np.ndarray):
        return items
    to_list = getattr(items, "to_list", None) or getattr(items, "to_pylist", None)
    if to_list is not None:
        return to_list()
    if isinstance(items, list | tuple | set | frozenset | range):
        return list(items)
    raise DataError(f"{call}: {name} is a {type(items).__name__}: a list of item ids is needed")


def _flat(items: ItemLists | None) -> np.ndarray:
    """The distinct items [N] of one list or of several."""
    listed = [] if items is None else list(items)
    nested = any(isinstance(entry, list | tuple | set | frozenset | np.ndarray) for entry in listed)
    flat = [item for entry in listed for item in entry] if nested else listed
    return np.asarray(sorted(set(flat)))


def known_items(items: object, catalog: Catalog) -> np.ndarray:
    """Dense ids int [N] of raw items. Raises DataError for one that the model does not know."""
    listed = item_lists(items, "items", "similar_items") if items is not None else []
    raw = schema.check_ids(list(listed or []), "items", "similar_items")
    dense = catalog.vocabulary.encode(raw)
    if (dense == 0).any():
        unknown = raw[int((dense == 0).argmax())].item()
        raise DataError(f"similar_items: the model does not know item {unknown!r}")
    return dense


def moment(now: object, zone: str) -> ArrayLike | None:
    """The time of a request as NumPy takes it; a datetime is turned to UTC, from its or `zone`."""
    if isinstance(now, datetime.datetime):
        if now.tzinfo is None:
            now = now.replace(tzinfo=zoneinfo.ZoneInfo(zone or "UTC"))
        return np.datetime64(now.astimezone(datetime.UTC).replace(tzinfo=None), "us")
    if isinstance(now, datetime.date):
        return np.datetime64(now, "s")
    if now is not None and hasattr(now, "to_numpy"):
        return now.to_numpy()
    return now  # type: ignore[return-value]


def frame(
    who: Asked,
    known: np.ndarray,
    items: np.ndarray,
    scores: np.ndarray,
    *,
    data: DataConfig,
    catalog: Catalog,
) -> Frame:
    """Lists as rows: user, item, score, rank (1 is best), known; missing items are left out.

    known: bool [B]; items: raw ids [B, k]; scores: float32 [B, k], -inf where there is no item.
    """
    say_unknown(~known, "users", POPULAR)
    there = ~np.isneginf(scores)
    row, place = np.nonzero(there)
    users = np.asarray(who.users, np.str_ if catalog.text_users else np.int64)
    columns = {
        data.user_column: users[row],
        data.item_column: items[there],
        "score": scores[there],
        "rank": (place + 1).astype(np.int64),
        "known": known[row],
    }
    return frames.make(columns, who.library)
