"""Data frames of any library in, data frames of the same library out (narwhals).

A pandas index is no column and is left out.
"""

import difflib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from jaxrec.api import columns
from jaxrec.data import schema
from jaxrec.errors import ConfigError, DataError
from jaxrec.state_store.keys import id_list
from jaxrec.types import UserId

if TYPE_CHECKING:
    import polars as pl

# a frame of pandas, polars (lazy ones too), pyarrow or another library that narwhals knows
Frame: TypeAlias = Any
Library: TypeAlias = Literal["pandas", "polars", "pyarrow"]
LIBRARIES: tuple[Library, ...] = ("pandas", "polars", "pyarrow")


class Table(NamedTuple):
    """Columns of somebody's frame. frame: polars. library: that the frame is of."""

    frame: "pl.DataFrame"
    library: str


def require_extra() -> None:
    """Raises ConfigError where a package of the extra `frames` is missing."""
    try:
        import narwhals  # noqa: F401
        import polars  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"data frames need the package {error.name}: pip install 'jaxrec[frames]'"
        ) from error


def is_path(events: object) -> bool:
    """Whether events are named by a path or a glob instead of held by a frame."""
    return isinstance(events, str | os.PathLike)


def read(frame: Frame, names: Sequence[str], source: str, hint: str) -> Table:
    """The named columns of a frame, in their order.

    source: of the frame, and hint: about a missing column, for messages. A lazy frame is collected.
    Raises DataError for anything but a frame, a missing column and names that are there twice.
    """
    import narwhals as nw
    import polars as pl

    try:
        table = nw.from_native(frame)
        if isinstance(table, nw.LazyFrame):
            _require(table.collect_schema().names(), names, source, hint)
            table = table.select(*names).collect()
        else:
            _require(list(table.columns), names, source, hint)
        series = [columns.convert(table[name], source) for name in names]
    except DataError:
        raise
    except TypeError as error:
        raise DataError(
            f"{source}: a {type(frame).__name__} is no data frame. Give one of "
            f"{', '.join(LIBRARIES)}, or a path of files"
        ) from error
    except nw.exceptions.DuplicateError as error:
        twice = str(error).partition("- ")[2].partition("\n")[0]
        raise DataError(f"{source}: column {twice}. Rename or drop one of them") from error
    except (nw.exceptions.NarwhalsError, pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{source}: the frame cannot be read: {error}") from error
    return Table(pl.DataFrame(series), str(table.implementation.value))


def _require(have: Sequence[str], names: Sequence[str], source: str, hint: str) -> None:
    for name in names:
        close = difflib.get_close_matches(_plain(name), [_plain(other) for other in have], 1)
        likely = next((other for other in have if close and _plain(other) == close[0]), None)
        advice = hint if likely is None else f"Did you mean {likely!r}? {hint}"
        schema.require(have, (name,), source, advice)


def _plain(name: object) -> str:
    """A column's name without case and punctuation: userId, user_id and USER ID are alike."""
    return "".join(letter for letter in str(name).lower() if letter.isalnum())


def user_ids(users: object, column: str, source: str) -> tuple[list[UserId], str | None]:
    """(raw ids, the library they came in) of a list, an array, a series or a frame with `column`.

    Raises DataError for one id instead of several, for nulls and for ids that are floats.
    """
    import narwhals as nw

    held: object = users
    library: str | None = None
    if not isinstance(users, list | tuple | set | frozenset | np.ndarray | str | bytes):
        found = nw.from_native(users, pass_through=True, allow_series=True)
        if isinstance(found, nw.DataFrame | nw.LazyFrame):
            table = read(users, [column], source, "Give a frame with the column of users")
            held, library = table.frame[column], table.library
        elif isinstance(found, nw.Series):
            held, library = columns.convert(found, source), str(found.implementation.value)
    if library is not None:
        held = columns.ids(held, source)  # type: ignore[arg-type]
        if held.null_count():
            raise schema.null_column(
                source, held.name, held.null_count(), int(held.is_null().arg_max() or 0)
            )
        held = held.to_list()
    try:
        return id_list(held), library
    except (TypeError, ValueError) as error:
        raise DataError(f"{source}: {error}") from error


def make(values: Mapping[str, np.ndarray], library: str) -> Frame:
    """A frame of a library from columns by name. Raises ConfigError where it is not installed."""
    import narwhals as nw

    try:
        return nw.from_dict(dict(values), backend=library).to_native()  # type: ignore[arg-type]
    except (ImportError, ModuleNotFoundError) as error:
        raise ConfigError(f"results as {library}: {library} is not installed") from error
