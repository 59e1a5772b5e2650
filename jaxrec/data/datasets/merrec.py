"""MerRec: 1.27 billion events of 5.6 million users on a second-hand market (Mercari US, 2023).

L. Li et al.: MerRec, a large-scale multipurpose Mercari dataset for consumer-to-consumer
recommendation systems, KDD 2025 (arXiv 2402.14230). Licence: CC BY-NC 4.0. Download the parquet
shards of `mercari-us/merrec` from Hugging Face (one folder a month, 20230501 to 20231001; well
over 100 GB in all, one shard will do to start) and set `data.path` to a folder, a shard or a glob.

An event is one row: `user_id`, `product_id` as the item (listings, `item_id`, sell once; a product
groups equal ones), `stime`, and `event_id`, one of six types (item_view, item_like,
item_add_to_cart_tap, offer_make, buy_start, buy_comp), kept in records; `data.event_types` chooses.
Users look at a product again and again: see `data.repeats`. Item texts are
name, brand and three levels of categories of the first row of a product.

Columns as in the authors' code that reads the shards (github.com/mercari/mercari-ml-merrec-pub-us:
preprocess_mtl.py, data.py, mercatran/data.py), folders as in the listing of the dataset's page. No
source tells the type of `stime`: datetimes, ISO text and seconds are read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.digests import Digest
from jaxrec.data.raw import Names, Raw
from jaxrec.types import Json

if TYPE_CHECKING:
    import polars as pl

VERSION = 1
NAMES = Names("user_id", "product_id", "stime", "event_id")
TEXTS = ("name", "brand_name", "c0_name", "c1_name", "c2_name")
FORMAT = files.Format(
    times=["stime"],
    hint="Set data.path to parquet shards of mercari-us/merrec as they were downloaded",
)


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    return {"reader": VERSION, "files": files.fingerprint(_files(config), digest)}


def read(config: DataConfig, downloads: Path) -> Raw:
    """Events of all shards in the order of their names; texts of products."""
    shards = _files(config)

    def texts() -> "Iterator[pl.DataFrame]":
        for frame, _, _ in files.frames(shards, ("product_id", *TEXTS), FORMAT._replace(times=())):
            # most rows repeat a product
            yield frame.unique("product_id", keep="first", maintain_order=True).rename(
                {"product_id": "item"}
            )

    return Raw(lambda: files.chunks(shards, NAMES, FORMAT), NAMES, config.path, texts=texts)


def _files(config: DataConfig) -> list[Path]:
    return files.find(config.path, "data.path", inside="**/*.parquet")
