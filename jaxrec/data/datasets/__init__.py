"""One reader per source: `read(config)` gives raw interactions and, where known, item texts."""

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxrec.config import CHOICES, DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.raw import Raw
from jaxrec.errors import DataError

# readers of a list of files -> what of a folder they read
FILES = {
    "table": "",
    "amazon_reviews": "",
    "yambda": "",
    "merrec": "**/*.parquet",
    "kuairand": "log_standard_*.csv",
}
# keys that say what a table is; the other readers know it of their files
TABLE_KEYS = {"event_column": "", "time_unit": "s", "time_zone": ""}


def read(config: DataConfig, downloads: Path) -> Raw:
    """The interactions of `config.dataset`; raises DataError when they cannot be used.

    downloads: where a reader keeps what it downloads.
    """
    for key, default in TABLE_KEYS.items():
        value = getattr(config, key)
        if config.dataset != "table" and value != default:
            raise DataError(
                f"data.{key}={value!r}: only data.dataset=table has this key; "
                f"{config.dataset} knows its columns"
            )
    return _reader(config).read(config, downloads)


def parts(config: DataConfig) -> list[DataConfig]:
    """Configurations that read one file each, in the order in which `read` reads all of them; of
    sources that are no list of files: `config`."""
    inside = FILES.get(config.dataset)
    if inside is None:
        return [config]
    found = files.find(config.path, "data.path", inside)
    return [dataclasses.replace(config, path=str(file)) for file in found]


def fingerprint(config: DataConfig) -> Any:
    """JSON value that identifies the source's content: versions, or hashes of the files."""
    return _reader(config).fingerprint(config)


def _reader(config: DataConfig) -> ModuleType:
    # by name, when asked for: a reader's own packages are needed by its users alone
    names = CHOICES["data.dataset"]
    if config.dataset not in names:
        raise ValueError(f"data.dataset={config.dataset!r}: allowed are {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{config.dataset}")
