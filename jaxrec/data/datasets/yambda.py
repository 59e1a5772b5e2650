"""Yambda: 4.8 billion listens and likes of 1 million users of Yandex Music over ten months.

A. Ploshkin et al.: Yambda-5B, a large-scale multi-modal dataset for ranking and retrieval, RecSys
2025 (arXiv 2505.22238). Licence: Apache-2.0. Sizes 50m, 500m and 5b of `yandex/yambda` on Hugging
Face; `data.path` names downloaded parquet files of `flat/<size>/` (one row an event) or
`sequential/<size>/` (one row a user, lists): listens, likes, dislikes, unlikes, undislikes or
multi_event.

Columns: `uid`, `item_id`, `timestamp` (seconds since the start of the log, in steps of five: many
events share a time and keep the file's order), `is_organic`, and for listens `played_ratio_pct` and
`track_length_seconds`. Event types: those of multi_event (`listen`, `like`, ...) or the file's
name; a listen of less than half of the track is a `skip`, so `data.event_types=("listen",)` is the
paper's Listen+. Tracks have no texts.

Columns and files as in code that reads the downloads (huggingface.co/datasets/yandex/yambda and
its benchmark: a listen counts from `played_ratio_pct >= 50`); `timestamp` ends at 26,000,000, ten
months of seconds.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.digests import Digest
from jaxrec.data.raw import CHUNK, Chunk, Names, Raw
from jaxrec.errors import DataError
from jaxrec.types import Json

if TYPE_CHECKING:
    import polars as pl

VERSION = 1
NAMES = Names("uid", "item_id", "timestamp", "event_type")
KINDS = {"listens": "listen", "likes": "like", "dislikes": "dislike"} | {
    "unlikes": "unlike",
    "undislikes": "undislike",
}
HALF = 50  # per cent of a track
FORMAT = files.Format(
    hint="Set data.path to parquet files of yandex/yambda as they were downloaded"
)
USERS = 1 << 10  # sequences unfolded at once


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    paths = files.find(config.path, "data.path")
    kinds = [KINDS.get(path.stem, path.stem) for path in paths]
    return {"reader": VERSION, "kinds": kinds, "files": files.fingerprint(paths, digest)}


def read(config: DataConfig, downloads: Path) -> Raw:
    """Events of the named files."""
    paths = files.find(config.path, "data.path")
    return Raw(lambda: _chunks(paths), NAMES, config.path)


def _chunks(paths: list[Path]) -> Iterator[Chunk]:
    import polars as pl

    for file in paths:
        with files.guarded(file):
            schema = pl.scan_parquet(file, glob=False).collect_schema()
        columns = ["uid", "item_id", "timestamp"]
        kind = KINDS.get(file.stem)
        columns += ["event_type"] if kind is None else []
        columns += ["played_ratio_pct"] if kind in (None, "listen") else []
        folded = isinstance(schema.get("item_id"), pl.List)
        lists = [column for column in columns if isinstance(schema.get(column), pl.List)]
        for frame, _, row in files.frames([file], columns, FORMAT, USERS if folded else CHUNK):
            if folded:
                _check_lengths(frame, lists, file, row)
                frame = frame.filter(pl.col("item_id").list.len() > 0).explode(lists)
            yield Chunk(frame.select(*_events(kind)), str(file), 0 if folded else row)


def _events(kind: str | None) -> "list[pl.Expr]":
    import polars as pl

    event = pl.col("event_type").cast(pl.String) if kind is None else pl.lit(kind)
    if kind in (None, "listen"):
        short = (event == "listen") & (pl.col("played_ratio_pct") < HALF).fill_null(False)
        event = pl.when(short).then(pl.lit("skip")).otherwise(event)
    return [
        pl.col("uid").alias("user"),
        pl.col("item_id").alias("item"),
        pl.col("timestamp").alias("time"),
        event.alias("event"),
    ]


def _check_lengths(frame: "pl.DataFrame", lists: list[str], file: Path, row: int) -> None:
    import polars as pl

    sizes = frame.select(pl.col(lists).list.len())
    wrong = sizes.min_horizontal() != sizes.max_horizontal()
    if wrong.any():
        first = int(wrong.arg_max() or 0)
        raise DataError(
            f"{file}: the lists of row {row + first} differ in length: "
            f"{dict(zip(lists, sizes.row(first), strict=True))}. Download the file again"
        )
