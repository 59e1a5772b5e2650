"""A recommender of random parameters and an empty store."""

import pytest

from tests.serving import standin


@pytest.fixture
def rec():
    return standin.make()


@pytest.fixture
def store(rec, tmp_path):
    with rec.create_store(tmp_path / "states", num_shards=2) as store:
        yield store
