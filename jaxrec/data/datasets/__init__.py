"""One reader per source: `read(config)` returns raw interactions and, where known, item texts."""

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

from jaxrec.config import CHOICES, DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.digests import Digest
from jaxrec.data.raw import Raw
from jaxrec.errors import DataError
from jaxrec.types import Json

# readers of a list of files -> glob of the files that they read of a folder; empty: no folder
FILES = {
    "table": "",
    "amazon_reviews": "",
    "yambda": "",
    "merrec": "**/*.parquet",
    "kuairand": "log_standard_*.csv",
}
MODULES = {"table": "interaction_table"}  # values of data.dataset that are not a module's name
TABLES = ("table", "planted")  # readers of a table whose columns the configuration describes
PLANTED = ("synthetic", "planted")  # readers that mark planted returns
# keys that describe a table; the other readers know the columns of their files
TABLE_KEYS = {
    "user_kind": "auto",
    "item_kind": "auto",
    "quotes": True,
    "event_column": "",
    "time_unit": "s",
    "time_format": "",
    "time_zone": "",
    "null_values": DataConfig.null_values,
}


def read(config: DataConfig, downloads: Path) -> Raw:
    """The interactions of `config.dataset`; raises DataError when they cannot be used.

    downloads: where a reader keeps what it downloads.
    """
    for key, default in TABLE_KEYS.items():
        value = getattr(config, key)
        if config.dataset not in TABLES and value != default:
            raise DataError(
                f"data.{key}={value!r}: only data.dataset={' and '.join(TABLES)} have this key; "
                f"{config.dataset} knows its columns"
            )
    return _reader(config).read(config, downloads)


def parts(config: DataConfig) -> list[DataConfig]:
    """Configurations that read one file each, in the order in which `read` reads them.

    `config` alone for sources that are not a list of files.
    """
    inside = FILES.get(config.dataset)
    if inside is None:
        return [config]
    paths = files.find(config.path, "data.path", inside)
    return [dataclasses.replace(config, path=str(path)) for path in paths]


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """A JSON value that identifies the content of the source: versions, or digests of its files.

    digest: of a file's content.
    """
    return _reader(config).fingerprint(config, digest)


def _reader(config: DataConfig) -> ModuleType:
    # imported on use: only users of a reader need its packages
    names = CHOICES["data.dataset"]
    if config.dataset not in names:
        raise ValueError(f"data.dataset={config.dataset!r}: allowed are {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{MODULES.get(config.dataset, config.dataset)}")
