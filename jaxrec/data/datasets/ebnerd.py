"""EB-NeRD: news read on ekstrabladet.dk, 1 million users over six weeks of 2023.

J. Kruse et al.: EB-NeRD, a large-scale dataset for news recommendation, RecSys Challenge 2024
(arXiv 2410.03432). Licence: research use, see recsys.eb.dk, where the bundles (demo, small, large)
are downloaded after registration. `data.path` is an unpacked bundle:

    articles.parquet   article_id, title, subtitle, topics, ...
    train/history.parquet, validation/history.parquet
        user_id and four lists of equal length, the clicks of the weeks before: article_id_fixed,
        impression_time_fixed, read_time_fixed, scroll_percentage_fixed
    train/behaviors.parquet, validation/behaviors.parquet
        impressions of one week: user_id, impression_time, article_ids_inview, article_ids_clicked

Events are the clicks of both, the history's first. `data.variant` is `train`, `validation`, or
empty for both. The history of `validation` holds clicks of the `train` week again: with both parts
`data.duplicates` must be `drop`. Times have no zone and are taken as UTC.

Layout as on recsys.eb.dk/dataset (a history covers the three weeks before its behaviors), columns
as in github.com/ebanalyse/ebnerd-benchmark (src/ebrec/utils/_constants.py and its notebooks, which
also show the types: u32 users, lists of i32 articles, datetime[us], f32).
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.digests import Digest
from jaxrec.data.raw import Chunk, Names, Raw
from jaxrec.errors import DataError
from jaxrec.types import Json

if TYPE_CHECKING:
    import polars as pl

VERSION = 1
PARTS = ("train", "validation")
NAMES = Names("user_id", "article_id_fixed", "impression_time_fixed")
LISTS = (
    "article_id_fixed",
    "impression_time_fixed",
    "read_time_fixed",
    "scroll_percentage_fixed",
)
IMPRESSIONS = ("user_id", "impression_time", "article_ids_inview", "article_ids_clicked")
TEXTS = ("title", "subtitle", "topics")
FORMAT = files.Format(hint="Set data.path to an unpacked bundle of recsys.eb.dk")
USERS = 1 << 14  # histories unfolded at once


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    paths = [path for part in _parts(config) for path in _files(config, part)]
    return {"reader": VERSION, "files": files.fingerprint([_articles(config), *paths], digest)}


def read(config: DataConfig, downloads: Path) -> Raw:
    """Clicks of histories and behaviors; title, subtitle and topics of articles."""
    parts = _parts(config)
    if len(parts) > 1 and config.duplicates != "drop":
        raise DataError(
            f"data.duplicates={config.duplicates!r}: the history of ebnerd's validation part holds "
            "clicks of the train part again. Set data.duplicates=drop, or data.variant to one part"
        )

    def chunks() -> Iterator[Chunk]:
        zoned: dict[bool, str] = {}
        for part in parts:
            history, behaviors = _files(config, part)
            for chunk in itertools.chain(_history(history), _clicks(behaviors)):
                _check_zone(chunk, zoned)
                yield chunk

    def texts() -> "Iterator[pl.DataFrame]":
        for frame, _, _ in files.frames([_articles(config)], ("article_id", *TEXTS), FORMAT):
            yield frame.rename({"article_id": "item"})

    _articles(config)
    return Raw(chunks, NAMES, config.path, texts=texts)


def _check_zone(chunk: Chunk, zoned: dict[bool, str]) -> None:
    """Raises DataError where only some files have times with a zone; zoned: the files so far."""
    named = getattr(chunk.frame.schema["time"], "time_zone", None) is not None
    zoned.setdefault(named, chunk.source)
    if len(zoned) > 1:
        raise DataError(
            f"{chunk.source}: its times are {'with' if named else 'without'} a time zone, unlike "
            f"those of {zoned[not named]}. Download the bundle again"
        )


def _history(file: Path) -> Iterator[Chunk]:
    import polars as pl

    for frame, _, row in files.frames([file], ("user_id", *LISTS), FORMAT, rows=USERS):
        sizes = frame.select(pl.col(LISTS).list.len().fill_null(0))
        if (sizes.min_horizontal() != sizes.max_horizontal()).any():
            first = int((sizes.min_horizontal() != sizes.max_horizontal()).arg_max() or 0)
            raise DataError(
                f"{file}: the lists of row {row + first} differ in length: "
                f"{dict(zip(LISTS, sizes.row(first), strict=True))}. Download the bundle again"
            )
        unfolded = frame.filter(sizes[LISTS[0]] > 0).explode(LISTS)
        yield _events(unfolded, file, "article_id_fixed", "impression_time_fixed")


def _clicks(file: Path) -> Iterator[Chunk]:
    import polars as pl

    for frame, _, _ in files.frames([file], IMPRESSIONS, FORMAT):
        clicked = frame.filter(pl.col("article_ids_clicked").list.len() > 0)
        unfolded = clicked.explode("article_ids_clicked")
        yield _events(unfolded, file, "article_ids_clicked", "impression_time")


def _events(frame: "pl.DataFrame", file: Path, item: str, time: str) -> Chunk:
    import polars as pl

    columns = {
        "user": frame["user_id"],
        "item": frame[item].cast(pl.Int64),
        "time": frame[time],
    }
    return Chunk(pl.DataFrame(columns), str(file))


def _parts(config: DataConfig) -> tuple[str, ...]:
    if config.variant not in ("", *PARTS):
        raise DataError(f"data.variant={config.variant!r}: allowed are {', '.join(PARTS)}, ''")
    return (config.variant,) if config.variant else PARTS


def _files(config: DataConfig, part: str) -> tuple[Path, Path]:
    return _inside(config, f"{part}/history.parquet"), _inside(config, f"{part}/behaviors.parquet")


def _articles(config: DataConfig) -> Path:
    return _inside(config, "articles.parquet")


def _inside(config: DataConfig, name: str) -> Path:
    file = Path(config.path) / name
    if not file.is_file():
        raise DataError(f"data.path={config.path!r}: there is no {name} in it. {FORMAT.hint}")
    return file
