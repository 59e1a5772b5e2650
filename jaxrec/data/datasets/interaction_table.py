"""Any table of interactions: parquet, CSV or JSON-lines files with user, item and time columns.

The reader of `data.dataset=table`. `data.path` names a file or a glob (files are read in sorted
order; `.gz` and `.zst` are decompressed), `data.user_column`, `data.item_column` and
`data.time_column` its columns. Ids are integers or text. Times are numbers in `data.time_unit`
since 1970, datetimes, ISO 8601 text, or written as `data.time_format` says; times without a zone
are in `data.time_zone` (default: UTC). `data.event_column` may name a column of event types.
`data.items_path` may name a table of items with the same id column and the text columns
`data.text_columns`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.digests import Digest
from jaxrec.data.raw import Names, Raw
from jaxrec.errors import DataError
from jaxrec.types import Json

if TYPE_CHECKING:
    import polars as pl

VERSION = 2


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    items = files.find(config.items_path, "data.items_path") if config.items_path else []
    return {
        "reader": VERSION,
        "files": files.fingerprint(files.find(config.path, "data.path"), digest),
        "items": files.fingerprint(items, digest),
    }


def read(config: DataConfig, downloads: Path) -> Raw:
    """The table's interactions and, with `data.items_path`, the items' texts."""
    names = Names(config.user_column, config.item_column, config.time_column, config.event_column)
    paths = files.find(config.path, "data.path")
    file_format = files.Format(
        times=[config.time_column],
        time_format=config.time_format,
        zone=config.time_zone,
        null_values=config.null_values,
        null_columns=(config.user_column, config.item_column, config.time_column),
        id_keys={config.user_column: "data.user_kind", config.item_column: "data.item_kind"},
        kinds=_known_kinds(config),
        quotes=config.quotes,
    )
    if config.text_columns and not config.items_path:
        raise DataError(
            f"data.text_columns={config.text_columns!r}: they are columns of the items table. "
            "Set data.items_path"
        )
    if config.items_path and not config.text_columns:
        raise DataError(
            f"data.items_path={config.items_path!r}: set data.text_columns to its text columns"
        )
    for name in config.text_columns:
        if name in ("item", config.item_column):
            raise DataError(
                f"data.text_columns={config.text_columns!r}: {name!r} names the ids of the items, "
                "and no text. Take it out or rename the column"
            )
    if len(set(config.text_columns)) < len(config.text_columns):
        raise DataError(f"data.text_columns={config.text_columns!r}: a column is named twice")
    return Raw(
        lambda: files.chunks(paths, names, file_format),
        names,
        config.path,
        config.time_unit,
        (lambda: _texts(config)) if config.items_path else None,
    )


def _texts(config: DataConfig) -> "Iterator[pl.DataFrame]":
    columns = (config.item_column, *config.text_columns)
    nulls = files.Format(
        null_values=config.null_values,
        null_columns=(config.item_column,),
        id_keys={config.item_column: "data.item_kind"},
        kinds={c: k for c, k in _known_kinds(config).items() if c == config.item_column},
        quotes=config.quotes,
    )
    paths = files.find(config.items_path, "data.items_path")
    for frame, _, _ in files.frames(paths, columns, nulls):
        yield frame.rename({config.item_column: "item"})


def _known_kinds(config: DataConfig) -> dict[str, str]:
    """Columns of ids -> their kinds, where the configuration says them."""
    kinds = {config.user_column: config.user_kind, config.item_column: config.item_kind}
    return {column: kind for column, kind in kinds.items() if kind != "auto"}
