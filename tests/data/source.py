"""Readers' streams as plain columns, checked as a preparation checks them."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from jaxrec.config import DataConfig
from jaxrec.data import datasets
from jaxrec.data.ingest import EventTypes, check_whole, ingest
from jaxrec.data.schema import Interactions


def read(config: DataConfig, downloads: Path):
    """(interactions in input order, texts as a frame or None) of a source."""
    raw = datasets.read(config, downloads)
    events = interactions(raw)
    return events, None if raw.texts is None else pl.concat(list(raw.texts()))


def interactions(raw, **settings) -> Interactions:
    with tempfile.TemporaryDirectory() as folder:
        part = ingest(raw, Path(folder), **settings)
        check_whole(raw, [part], EventTypes(settings.get("event_types", ())))
        files = sorted(Path(folder).iterdir())
        rows = pl.concat([pl.read_parquet(file) for file in files], how="diagonal")
    columns = {name: column.to_numpy() for name, column in rows.to_dict(as_series=True).items()}
    user, item = (
        column.astype(np.str_) if column.dtype.kind == "O" else column
        for column in (columns["user"], columns["item"])
    )
    return Interactions(user, item, columns["time"], columns.get("returning"))
