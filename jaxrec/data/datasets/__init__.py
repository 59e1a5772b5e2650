"""One reader per source: `read(config)` gives raw interactions and, where known, item texts."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxrec.config import DataConfig
from jaxrec.data.schema import Raw


def read(config: DataConfig, downloads: Path) -> Raw:
    """The interactions of `config.dataset`; raises DataError when they cannot be used.

    downloads: where a reader keeps what it downloads.
    """
    return _reader(config).read(config, downloads)


def fingerprint(config: DataConfig) -> Any:
    """JSON value that identifies the source's content: versions, or hashes of the files."""
    return _reader(config).fingerprint(config)


def _reader(config: DataConfig) -> ModuleType:
    # by name, when asked for: a reader's own packages are needed by its users alone
    names = ("completejourney", "movielens", "synthetic", "table")
    if config.dataset not in names:
        raise ValueError(f"data.dataset={config.dataset!r}: allowed are {', '.join(names)}")
    return importlib.import_module(f"{__name__}.{config.dataset}")
