"""A frame of events as a parquet file of a run, named by its content.

The file goes through the ordinary reader of tables (`data.dataset=table`), so a run on a frame is
the run that `train.py` makes of the file.
"""

import hashlib
import pathlib
from typing import TYPE_CHECKING

import numpy as np

from jaxrec.api import columns, frames
from jaxrec.api.frames import Frame
from jaxrec.config import DataConfig
from jaxrec.errors import DataError
from jaxrec.runtime import workdir

if TYPE_CHECKING:
    import polars as pl

FOLDER = "frames"  # of a run; TensorBoard has `events`
ROWS = 1 << 20  # that are hashed at a time


def table(events: Frame, config: DataConfig, source: str) -> frames.Table:
    """The columns of `config` of a frame of events, as they are stored.

    source: of the frame, for messages. Raises DataError naming the column and the remedy.
    """
    names = [config.user_column, config.item_column, config.time_column]
    if config.event_column:
        names.append(config.event_column)
    hint = "Name the columns by user=, item= and time="
    frame, library = frames.read(events, names, source, hint)
    if not len(frame):
        raise DataError(f"{source}: no rows. Give a table with at least one event")
    frame = frame.with_columns(
        columns.ids(frame[config.user_column], source),
        columns.ids(frame[config.item_column], source),
        columns.times(frame[config.time_column]),
    )
    return frames.Table(frame, library)


def place(frame: "pl.DataFrame", folder: pathlib.Path) -> pathlib.Path:
    """Where the file of this content is, or will be, in the folder of a run; an absolute path."""
    return (folder / FOLDER / f"{digest(frame)}.parquet").absolute()


def write(frame: "pl.DataFrame", path: pathlib.Path) -> bool:
    """Writes the file as a whole unless it is there; returns whether it was written.

    Raises DataError where it cannot be written.
    """
    import polars as pl

    if path.is_file():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with workdir.replacing(path) as stream:
            frame.write_parquet(stream)
    except OSError as error:
        raise DataError(f"{path}: events cannot be written: {error}") from error
    except pl.exceptions.PolarsError as error:
        raise DataError(f"events: a column cannot be stored: {error}") from error
    return True


def moved(config: DataConfig, folder: pathlib.Path) -> str:
    """`config.path`, or where the file of events is now if the run's folder was moved."""
    path = pathlib.Path(config.path)
    here = (folder / FOLDER / path.name).absolute()
    return str(here) if path.parent.name == FOLDER and here.is_file() else config.path


def digest(frame: "pl.DataFrame") -> str:
    """16 hex digits of names, types, values and order: not of how parquet happens to store them."""
    sums = hashlib.blake2b(digest_size=8)
    for series in frame.get_columns():
        sums.update(f"{series.name!r} {series.dtype} {len(series)} ".encode())
        for start in range(0, len(series), ROWS):
            _add(sums, series.slice(start, ROWS))
    return sums.hexdigest()


def _add(sums: "hashlib.blake2b", series: "pl.Series") -> None:
    import polars as pl

    sums.update(np.packbits(series.is_null().to_numpy()).tobytes())
    if series.dtype == pl.String:
        sums.update(series.str.len_bytes().fill_null(0).to_numpy().astype("<u8").tobytes())
        sums.update("".join(series.drop_nulls().to_list()).encode())
    elif series.dtype.is_numeric() or series.dtype.is_temporal():
        physical = series.to_physical()
        values = physical.fill_null((physical.dtype.is_float() and 0.0) or 0).to_numpy()
        sums.update(np.ascontiguousarray(values).tobytes())
    else:  # the reader refuses it, in its own words
        sums.update(repr(series.to_list()).encode())
