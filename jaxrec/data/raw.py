"""What a reader returns: chunks of events in input order, and texts of items."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import polars as pl

CHUNK = 1 << 20  # rows of a chunk, approximately


class Names(NamedTuple):
    """Names of the columns in the source; event: the column of event types, empty for none."""

    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    event: str = ""


class Chunk(NamedTuple):
    """Some rows of one file.

    frame: columns `user`, `item` (integers or text), `time` (integers, floats, datetimes) and,
        where the source has them, `event` (text) and `returning` (bool).
    source: name of the file in messages.
    first_row: number of the first row in the file.
    kinds: the file's columns and their types as text, the same for all files of a source.
    """

    frame: "pl.DataFrame"
    source: str
    first_row: int = 0
    kinds: str = ""


class Raw(NamedTuple):
    """A source of events.

    chunks: starts reading; every call gives the same rows in the same order.
    names: of the columns, for messages.
    source: name of the source, for messages.
    time_unit: unit of numeric times: s, ms, us, ns.
    texts: starts reading item texts: frames with a column `item` and text columns; the first row
        of an item wins. None: the source has no texts.
    """

    chunks: Callable[[], Iterator[Chunk]]
    names: Names
    source: str
    time_unit: str = "s"
    texts: "Callable[[], Iterator[pl.DataFrame]] | None" = None
