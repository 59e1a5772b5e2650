"""Item texts joined to the vocabulary by raw id, frame by frame."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from jaxrec.data.ingest import to_numpy
from jaxrec.data.schema import check_ids
from jaxrec.data.vocabulary import Vocabulary
from jaxrec.errors import DataError
from jaxrec.runtime.progress import say

if TYPE_CHECKING:
    import polars as pl


def join(
    frames: "Iterator[pl.DataFrame]", vocabulary: Vocabulary, source: str = "items"
) -> dict[str, list[str]]:
    """Column -> texts of dense ids 0..V; empty for missing texts and items, the first row wins.

    frames: a column `item` of raw ids and text columns, the same in every frame. Lists are joined
    with commas; other values become text as by `str`. source: name for messages. Prints how many
    items of the vocabulary have no row. Raises DataError for ids of another type.
    """
    size = len(vocabulary) + 1
    columns: dict[str, list[str]] = {}
    seen = np.zeros(size, bool)
    seen[0] = True
    for frame in frames:
        names = [name for name in frame.columns if name != "item"]
        for name in names:
            columns.setdefault(name, [""] * size)
        frame = frame.drop_nulls("item")
        if not len(frame):
            continue
        ids = check_ids(to_numpy(frame["item"]), "item", source)
        kinds = [{"i": "integers", "U": "text"}[x.dtype.kind] for x in (ids, vocabulary.ids)]
        if kinds[0] != kinds[1]:
            raise DataError(
                f"{source}: item ids of the items table are {kinds[0]}, those of the events "
                f"{kinds[1]}. Convert one of them, or set data.item_kind=text (table)"
            )
        dense = vocabulary.encode(ids)
        items, rows = np.unique(dense, return_index=True)
        new = ~seen[items]
        items, rows = items[new], rows[new]
        seen[items] = True
        for name in names:
            texts = _as_text(frame[name].gather(rows))
            column = columns[name]
            for item, text in zip(items.tolist(), texts, strict=True):
                column[item] = text
    missing = int((~seen).sum())
    if missing:
        say(f"data: {missing:,} of {len(vocabulary):,} items have no row in the items table")
    return columns


def _as_text(series: "pl.Series") -> list[str]:
    import polars as pl

    if series.dtype == pl.List(pl.String):
        series = series.list.join(", ")
    if series.dtype == pl.String:
        return series.fill_null("").to_list()
    # NaN where a numeric column has nulls
    return ["" if v is None or v != v else str(v) for v in series.to_list()]
