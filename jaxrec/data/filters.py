"""Filters of users and items, counted by the SQL engine, one pass for each filter."""

import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxrec.data.sorting import Events, Sorted
from jaxrec.errors import DataError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of the filters.

    min_item_events, min_user_events: items and users with fewer events are dropped.
    max_user_events: users with more events are dropped; 0 for no limit. core: both filters are
    repeated until nothing changes (k-core).
    """

    min_item_events: int = 1
    min_user_events: int = 1
    max_user_events: int = 0
    core: bool = False


class Kept(NamedTuple):
    """Users and items that stay, by rank.

    items: int64 [I] events of each item among the kept users, 0 for dropped items. users: bool [U].
    """

    items: np.ndarray
    users: np.ndarray


def choose(
    connection: "DuckDBPyConnection", buckets: Sorted, num_items: int, limits: Limits, source: str
) -> Kept:
    """The users and items that pass `limits`.

    Items are filtered first, then users by the number of their remaining events. Without `core`
    each filter runs once: an item may end below its limit when its users are dropped, and is
    dropped only when no event is left. Raises DataError when nothing is left.
    """
    events, users = buckets.query, int(buckets.bounds[-1])
    few, long = max(limits.min_user_events, 1), limits.max_user_events or 2**62
    of_users = ""  # of all
    found = _count(connection, "item", f"FROM {events}")
    while True:
        if found.most < limits.min_item_events:
            raise DataError(
                f"{source}: no item has {limits.min_item_events} events, the most frequent of "
                f"{found.number} has {found.most}. Lower data.min_item_events"
            )
        items = _keep(connection, "item", f"events >= {limits.min_item_events}")
        of_items = f"FROM {events} SEMI JOIN items USING (item)"
        found = _count(connection, "user", f"{of_items} {of_users}")
        before, users = users, _keep(connection, "user", f"events BETWEEN {few} AND {long}")
        if not users:
            raise _no_users(found, before, limits, source)
        of_users = "SEMI JOIN users USING (user)"
        found = _count(connection, "item", f"{of_items} {of_users}")
        settled = (users, found.number) == (before, items)
        if not limits.core or (settled and found.least >= limits.min_item_events):
            return _kept(connection, num_items, int(buckets.bounds[-1]))


class _Counted(NamedTuple):
    """How many users or items have events, and the fewest and most that one has."""

    number: int
    least: int
    most: int


def _count(connection: "DuckDBPyConnection", name: str, rows: str) -> _Counted:
    """Makes a table `users` or `items` with the events of each in the rows."""
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {name}s AS SELECT {name}, count(*) AS events {rows} "
        f"GROUP BY {name}"
    )
    query = f"SELECT count(*), coalesce(min(events), 0), coalesce(max(events), 0) FROM {name}s"
    return _Counted(*connection.execute(query).fetchall()[0])


def _keep(connection: "DuckDBPyConnection", name: str, rule: str) -> int:
    """Drops the rows of `users` or `items` that break the rule; returns how many are left."""
    connection.execute(f"DELETE FROM {name}s WHERE NOT ({rule})")
    return int(connection.execute(f"SELECT count(*) FROM {name}s").fetchall()[0][0])


def _kept(connection: "DuckDBPyConnection", num_items: int, num_users: int) -> Kept:
    """The users and items of the tables."""
    items = connection.execute("FROM items").fetchnumpy()
    users = connection.execute("SELECT user FROM users").fetchnumpy()
    kept = Kept(np.zeros(num_items, np.int64), np.zeros(num_users, bool))
    kept.items[items["item"]] = items["events"]
    kept.users[users["user"]] = True
    return kept


def _no_users(found: _Counted, users: int, limits: Limits, source: str) -> DataError:
    """users: how many there were before."""
    few = limits.min_user_events
    if limits.max_user_events and found.most >= few:
        return DataError(
            f"{source}: no user has {few} to {limits.max_user_events} events, the histories of "
            f"{users} users have up to {found.most}. Change data.min_user_events or "
            "data.max_user_events"
        )
    return DataError(
        f"{source}: no user has {few} events of items with at least {limits.min_item_events} "
        f"events, the longest of {found.number} histories has {found.most}. Lower "
        "data.min_user_events or data.min_item_events"
    )


def apply(events: Events, items: np.ndarray, users: np.ndarray) -> Events:
    """The events of kept items (bool [I]) of kept users (bool [U of the bucket])."""
    return events.select(items[events.items]).of_users(users)
