"""Any table of interactions: parquet or CSV files with user, item and time columns.

`data.path` names a file or a glob (files are read in sorted order), `data.user_column`,
`data.item_column` and `data.time_column` its columns. Ids are integers or text; times are seconds
since 1970, datetimes, or ISO text. `data.items_path` may name a table of items with the same id
column and the text columns of `data.text_columns`.
"""

from pathlib import Path
from typing import Any

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.schema import DataError, ItemTexts, Raw, check, check_ids

VERSION = 1


def fingerprint(config: DataConfig) -> Any:
    items = files.find(config.items_path, "data.items_path") if config.items_path else []
    return {
        "reader": VERSION,
        "files": files.fingerprint(files.find(config.path, "data.path")),
        "items": files.fingerprint(items),
    }


def read(config: DataConfig, downloads: Path) -> Raw:
    """The table's interactions and, with `data.items_path`, the items' texts."""
    columns = (config.user_column, config.item_column, config.time_column)
    found = files.find(config.path, "data.path")
    interactions = check(
        files.read_columns(found, columns, times=columns[2:]),
        config.path,
        *columns,
        duplicates=config.duplicates,
    )
    if not config.items_path:
        if config.text_columns:
            raise DataError(
                f"data.text_columns={config.text_columns!r}: they are columns of the items table. "
                "Set data.items_path"
            )
        return Raw(interactions, None, config.path)
    if not config.text_columns:
        raise DataError(
            f"data.items_path={config.items_path!r}: set data.text_columns to its text columns"
        )
    names = (config.item_column, *config.text_columns)
    items = files.read_columns(files.find(config.items_path, "data.items_path"), names)
    ids = check_ids(items[config.item_column], config.item_column, config.items_path)
    kinds = [{"i": "integers", "U": "text"}[x.dtype.kind] for x in (ids, interactions.item)]
    if kinds[0] != kinds[1]:
        raise DataError(
            f"{config.items_path}: item ids of column {config.item_column!r} are {kinds[0]}, those "
            f"of {config.path} {kinds[1]}. Convert one of them"
        )
    texts = ItemTexts(ids, {name: items[name] for name in config.text_columns})
    return Raw(interactions, texts, config.path)
