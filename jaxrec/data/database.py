"""The SQL engine of the preparation (DuckDB): one database per task, bounded memory, own spill."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.errors import DataError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@contextlib.contextmanager
def opened(scratch: Path, *, threads: int, megabytes: int) -> Iterator["DuckDBPyConnection"]:
    """An empty database in memory, which spills into `scratch` beyond its megabytes.

    Raises DataError where the memory does not suffice, OSError where the disk does not.
    """
    import duckdb

    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": threads,
        "memory_limit": f"{megabytes}MB",
        "temp_directory": str(scratch / "spill"),
        # nothing is fetched from anywhere; what is used is part of the package
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
    }
    try:
        with duckdb.connect(config=settings) as connection:
            # standard output is the program's
            connection.execute("SET enable_progress_bar = false")
            yield connection
    except duckdb.OutOfMemoryException as error:
        raise DataError(
            f"data.prepare_memory={megabytes}: {megabytes:,} MB do not suffice for this source "
            f"({_first_line(error)}). Set it higher"
        ) from error
    except duckdb.IOException as error:
        raise OSError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    """What an error of DuckDB says, without its advice."""
    return str(error).partition("\n")[0]


def text(path: Path) -> str:
    """A path as a text of SQL, to write to."""
    return "'{}'".format(str(path).replace("'", "''"))


def parquet(*paths: Path, pattern: str = "", options: str = "") -> str:
    """SQL that reads parquet files, or those of one folder that match a pattern."""
    plain = str.maketrans({mark: f"[{mark}]" for mark in "[*?"})  # a folder's name is no pattern
    names = [text(Path(str(path).translate(plain)) / pattern) for path in paths]
    return f"read_parquet([{', '.join(names)}]{options and ', ' + options})"
