"""Real histories into which returns of old items are planted, so that a long history must help.

A table of events (read as data.dataset=table) keeps all its events, in their order. Some of its
items are *durable*: each with probability `planted.durable`. After an event, with probability
`planted.rate`, an *occasion* is inserted, an item that the table does not have. With probability
`planted.returns` a return follows it: one of the durable items of this user that are due, all of
them as likely. Whenever the user has such an item, it is due again after a delay of its own, drawn
evenly from `gap` to `gap + spread` events, until `reach` events have passed. An occasion needs an
item that is due. Both carry the time of the event before them; `returning` marks the returns. Where
the table has texts of items (`data.items_path`), that of an occasion is "occasion".

What can be predicted: real events as ever; a return by who remembers which durable items the
user had `gap` and more events ago. A model that sees fewer than `gap` events can only know which
items are durable, and which of them people of this taste choose. Without `spread` most returns
come as soon as they may, which favours a model that counts exactly to `gap`.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxrec.config import DataConfig, PlantedConfig
from jaxrec.data.datasets import interaction_table
from jaxrec.data.digests import Digest
from jaxrec.data.ingest import checked_ids, complete_rows, dropped_rows
from jaxrec.data.raw import Chunk, Raw
from jaxrec.errors import DataError
from jaxrec.runtime.progress import say
from jaxrec.types import Json

if TYPE_CHECKING:
    import polars as pl

VERSION = 2
OCCASION = "occasion"  # text of the item that announces returns, and its id where ids are text


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    return {"reader": VERSION, "table": interaction_table.fingerprint(config, digest)}


def read(config: DataConfig, downloads: Path) -> Raw:
    """The table's interactions with the returns of `config.planted`, seeded with `config.seed`."""
    table = interaction_table.read(config, downloads)
    # events and texts ask for it; what it drops is said once
    frame = functools.cache(functools.partial(_frame, table, config.incomplete))

    def chunks() -> Iterator[Chunk]:
        yield Chunk(_plant(frame(), config.planted, config.seed), table.source)

    if (given := table.texts) is None:
        return table._replace(chunks=chunks)

    def texts() -> "Iterator[pl.DataFrame]":
        import polars as pl

        occasion = _occasion(frame()["item"])
        # the first row of an item wins: items without events may have any id
        yield pl.DataFrame([occasion, *(pl.Series(c, [OCCASION]) for c in config.text_columns)])
        yield from given()

    return table._replace(chunks=chunks, texts=texts)


def plant(
    users: np.ndarray, items: np.ndarray, config: PlantedConfig, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where every event of the planted histories comes from, int64, int64 and bool [M].

    users: int [N], in order; items: int [N] from 0 on, the events of a user oldest first. Returns
    the row whose item an event has (-1 for an occasion), the row whose user and time it has, and
    whether it is a return.
    """
    durable = np.random.default_rng([seed % 2**64, 0]).random(items.max() + 1) < config.durable
    starts = np.flatnonzero(np.diff(users, prepend=users[0] - 1)).tolist()
    parts = [
        _history(items[begin:end], durable, config, [seed % 2**64, 1, number], begin)
        for number, (begin, end) in enumerate(zip(starts, [*starts[1:], len(users)], strict=True))
    ]
    source, place, returning = (np.concatenate(column) for column in zip(*parts, strict=True))
    return source, place, returning


def chance_of_return(events: np.ndarray, config: PlantedConfig) -> np.ndarray:
    """Probability that a durable item is due, last seen so many events before a position."""
    delays = config.spread + 1  # as likely each
    chance = np.clip((events - config.gap + 1) / delays, 0.0, 1.0)
    return np.where(events <= config.reach, chance, 0.0)


def _history(
    items: np.ndarray, durable: np.ndarray, config: PlantedConfig, seed: list[int], first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`plant` of one user whose events are the rows from `first` on."""
    rng = np.random.default_rng(seed)
    after = rng.random(len(items)) < config.rate
    source: list[int] = []
    place: list[int] = []
    returning: list[bool] = []
    # durable item -> the first and the last position of a return, and a row of it
    last: dict[int, tuple[int, int, int]] = {}

    def add(row: int, here: int, returns: bool = False) -> None:
        source.append(row)
        place.append(here)
        returning.append(returns)

    def see(item: int, row: int) -> None:
        seen = len(source) - 1
        delay = config.gap + int(rng.integers(config.spread + 1))
        last[item] = seen + delay, seen + config.reach, row

    for here, (item, announced) in enumerate(zip(items.tolist(), after.tolist(), strict=True)):
        add(here, here)
        if durable[item]:
            see(item, here)
        position = len(source) + 1  # of a return behind an occasion
        due = announced and [
            chosen for chosen, (first_at, end, _) in last.items() if first_at <= position <= end
        ]
        if due:
            add(-1, here)
            if rng.random() < config.returns:
                chosen = due[rng.integers(len(due))]
                row = last[chosen][2]
                add(row, here, returns=True)
                see(chosen, row)
    rows = np.array(source, np.int64)
    rows = np.where(rows < 0, -1, rows + first)
    return rows, np.array(place, np.int64) + first, np.array(returning, bool)


def _frame(table: Raw, incomplete: str) -> "pl.DataFrame":
    """All events of a table, users in order, the events of a user oldest first.

    incomplete: `data.incomplete`. Raises DataError for ids and nulls as ingest does, and where
    there are no events.
    """
    import polars as pl

    frames: list[pl.DataFrame] = []
    names = {name: getattr(table.names, name) for name in ("user", "item", "time")}
    rows = dropped = 0
    for chunk in table.chunks():
        if not len(chunk.frame):
            continue
        whole = complete_rows(chunk.frame, names, chunk.source, chunk.first_row, incomplete)
        rows, dropped = rows + len(chunk.frame), dropped + len(chunk.frame) - len(whole)
        for name in ("user", "item"):
            ids = checked_ids(whole[name], names[name], chunk.source, chunk.first_row)
            whole = whole.with_columns(pl.Series(name, ids))
        frames.append(whole)
    if dropped:
        say(f"data: {dropped_rows(dropped, rows)}")
    if rows == dropped:
        raise DataError(f"data.path={table.source!r}: no events to plant returns in")
    return pl.concat(frames).sort("user", "time", maintain_order=True)


def _plant(frame: "pl.DataFrame", config: PlantedConfig, seed: int) -> "pl.DataFrame":
    import polars as pl

    users, items = (frame[name].rank("dense").to_numpy() for name in ("user", "item"))
    numbers = users.astype(np.int64), items.astype(np.int64) - 1
    source, place, returning = plant(*numbers, config, seed)
    ids = frame["item"]
    item = ids[np.maximum(source, 0)].set(pl.Series(source < 0), _occasion(ids)[0])
    return frame[place].with_columns(item.alias("item"), pl.Series("returning", returning))


def _occasion(ids: "pl.Series") -> "pl.Series":
    """The id of the occasion, one row of the kind of ids; DataError where an item has it."""
    import polars as pl

    occasion = OCCASION if ids.dtype == pl.String else ids.max() + 1  # type: ignore[operator]
    if (ids == occasion).any():
        raise DataError(f"an item has the id {OCCASION!r}, which announces returns. Rename it")
    return pl.Series("item", [occasion], ids.dtype)
