"""Readers' streams as plain columns, checked as a preparation checks them."""

import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from jaxrec.config import DataConfig
from jaxrec.data import datasets
from jaxrec.data.ingest import ingest
from jaxrec.data.schema import Interactions


def read(config: DataConfig, downloads: Path):
    """(interactions in input order, texts as a frame or None) of a source."""
    raw = datasets.read(config, downloads)
    events = interactions(raw)
    return events, None if raw.texts is None else pl.concat(list(raw.texts()))


def interactions(raw, **settings) -> Interactions:
    with tempfile.TemporaryDirectory() as folder:
        spilled = ingest(raw, Path(folder) / "chunks", **settings)
        columns = {}
        for name in spilled.columns:
            parts = [spilled.load(chunk, name) for chunk in range(len(spilled.sizes))]
            columns[name] = np.concatenate(parts)
    user = spilled.users.ids[spilled.users.rank(columns["user"])]
    item = spilled.items.ids[spilled.items.rank(columns["item"])]
    return Interactions(user, item, columns["time"], columns.get("returning"))
