"""What a reader gives: a stream of chunks of events, in input order, and texts of items."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import polars as pl

CHUNK = 1 << 20  # rows that readers hand over at once, about


class Names(NamedTuple):
    """Names of the columns in the source; `event` is the type of an event, empty: none."""

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    event: str = ""


class Chunk(NamedTuple):
    """Some rows of one file.

    frame: columns `user`, `item` (integers or text), `time` (integers, floats, datetimes) and,
        where the source has them, `event` (text) and `returning` (bool).
    source: how messages call where the rows come from (a file name).
    first_row: number of the first row there.
    kinds: types of the file's columns in words, the same for all files of a source.
    """

    frame: "pl.DataFrame"
    source: str
    first_row: int = 0
    kinds: str = ""


class Raw(NamedTuple):
    """A source of events.

    chunks: starts reading; the same rows in the same order each time it is called.
    names: of the columns, for messages.
    source: name of the whole, for messages.
    time_unit: what number times count: s, ms, us, ns.
    texts: starts reading item texts: frames of a column `item` and text columns, or None. The
        first row of an item wins.
    """

    chunks: Callable[[], Iterator[Chunk]]
    names: Names
    source: str
    time_unit: str = "s"
    texts: "Callable[[], Iterator[pl.DataFrame]] | None" = None
